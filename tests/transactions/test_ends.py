"""A block that cannot commit, or is cancelled as it begins, leaves no transaction open; and one that always meets others ends at last."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from tests.conftest import Eventually
from tests.transactions import program
from tests.transactions.conftest import Shop
from tests.transactions.test_stopping import task_of

from offload import Offload, Retry, State, completing, current
from offload.connections.aiosqlite import AiosqliteAdapter
from offload.connections.sqlite import end

ORPHAN = "insert into leaves (root) values (7)"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db"


@pytest.fixture
def path(shop: Shop) -> str:
    """The database, with a foreign key that is looked at when the transaction commits."""
    program.sql(shop.url, "create table leaves (root integer references marks (n) deferrable initially deferred)")
    return shop.url.removeprefix("sqlite:///")


def test_a_commit_that_fails_is_rolled_back_and_tried_again_by_the_policy(shop: Shop, path: str) -> None:
    left_open: list[bool] = []

    def sync() -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma foreign_keys = on")
            try:
                with current.transaction(connection):
                    connection.execute(ORPHAN)
            finally:
                left_open.append(connection.in_transaction)

    async def coroutine() -> None:
        async with aiosqlite.connect(path) as connection:
            await connection.execute("pragma foreign_keys = on")
            try:
                async with current.atransaction(connection):
                    await connection.execute(ORPHAN)
            finally:
                left_open.append(connection.in_transaction)

    for function in (sync, coroutine):
        with task_of(shop, function, retry=Retry(max_retries=1, initial=0)) as task:
            record = shop.ran(task.enqueue())
        assert (record.state, [failure.type for failure in record.errors]) == (State.DEAD, ["sqlite3.IntegrityError"] * 2)
    assert left_open == [False] * 4


class Manual:
    """What Python 3.12 gives for `autocommit=True`: commit and rollback do nothing."""

    autocommit = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None: ...

    def rollback(self) -> None: ...


def test_connections_whose_commit_does_nothing_are_ended_by_statements() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("create table marks (n)")
        for how in ("commit", "rollback"):
            connection.execute("begin")
            connection.execute("insert into marks values (1)")
            end(Manual(connection), how)
            assert not connection.in_transaction
            end(Manual(connection), how)
        assert connection.execute("select count(*) from marks").fetchone() == (1,)


@pytest.mark.parametrize("verb", ["enqueue", "begin"])
def test_what_is_cancelled_meanwhile_is_over_before_the_caller_goes_on(shop: Shop, verb: str, eventually: Eventually) -> None:
    """Another connection holds the lock, for which the thread waits; it is let go after the cancellation."""
    path = shop.url.removeprefix("sqlite:///")

    async def main() -> None:
        async with aiosqlite.connect(path) as connection:
            asked: list[str] = []
            await connection.set_trace_callback(asked.append)

            async def work() -> None:
                if verb == "enqueue":
                    await program.note.using(connection=connection).aenqueue(7)
                else:
                    async with AiosqliteAdapter(connection).block():
                        raise AssertionError("it was cancelled before")

            with closing(sqlite3.connect(path)) as other:
                other.execute("begin immediate")
                task = asyncio.ensure_future(work())
                await eventually(lambda: any("begin immediate" in each.lower() for each in asked))
                task.cancel()
                other.rollback()
            with pytest.raises(asyncio.CancelledError):
                await task
            await connection.rollback()
            asked.clear()
            program.sql(shop.url, f"insert into marks (n) values ({len(shop.marks())})")
            assert (asked, connection.in_transaction) == ([], False)

    asyncio.run(main())
    assert shop.jobs() == []


def test_a_transaction_that_always_meets_another_one_fails_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "AGAIN_WITHIN", 0.0)
    monkeypatch.setattr(completing, "MOST_HANDED_BACK", 3)
    runs: list[int] = []
    app = Offload(f"sqlite:///{tmp_path}/jobs.db")
    app.migrate()

    def unlucky() -> None:
        runs.append(current.attempt)
        with current.transaction():
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    with app.testing(f"sqlite:///{tmp_path}/jobs.db"):
        shop = Shop.__new__(Shop)
        shop.app = app
        task = app.task(retry=Retry(max_retries=1, initial=0))(unlucky)
        record = shop.ran(task.enqueue())
    assert (record.state, record.attempt, runs) == (State.DEAD, 2, [1, 1, 1, 1, 2])


def test_an_error_that_a_task_made_of_a_lock_is_the_tasks_own(shop: Shop) -> None:
    def translates() -> None:
        with current.transaction():
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise ValueError("the other system is busy") from error

    with task_of(shop, translates) as task:
        record = shop.ran(task.enqueue())
    assert (record.state, record.errors[0].type) == (State.DEAD, "ValueError")
