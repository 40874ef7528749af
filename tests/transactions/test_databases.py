"""One transaction spans one database, and ends where its block ends: what would only look so is refused by name."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from tests.transactions import program
from tests.transactions.conftest import Hand, Shop
from tests.transactions.kinds import KINDS, Kind, _django_connection
from tests.transactions.test_stopping import nobody_holds_a_lock, task_of

from offload import BadDeclaration, Offload, Record, Retry, State, Worker, current
from offload.brokers.postgres.lending import MOST_KEPT
from offload.portal import portal

OF = {kind.name: kind for kind in KINDS}
ENDED = "the transaction of this block was ended inside it"
on_postgresql = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.engine == "postgresql"], ids=lambda kind: kind.name)
those_that_commit = pytest.mark.parametrize("kind", [kind for kind in KINDS if "django" not in kind.name], ids=lambda kind: kind.name)
django_kinds = pytest.mark.parametrize("kind", [OF["django on sqlite"], OF["django on postgresql"]], ids=lambda kind: kind.name)


def of(*names: str) -> Any:
    return pytest.mark.parametrize("kind", [OF[name] for name in names], ids=lambda kind: kind.name)


@pytest.fixture
def elsewhere(shop: Shop, shared_postgres: Callable[[None], Any]) -> Iterator[str]:
    """The URL of another database with jobs."""
    url = shared_postgres(None).database()
    other = Offload(url)
    other.migrate()
    yield url
    assert other.counts() == {}
    other.close()


@on_postgresql
def test_a_connection_to_another_database_is_refused_though_there_are_jobs_too(shop: Shop, kind: Kind, hand: Hand, elsewhere: str) -> None:
    hand.enqueue(1)  # so the app knows its own database
    hand.commit()

    async def coroutine() -> None:
        async with kind.opened(elsewhere) as connection:
            await program.note.using(connection=connection).aenqueue(2)

    def sync() -> None:
        with kind.opened(elsewhere) as connection:
            kind.begin(connection)
            program.note.using(connection=connection).enqueue(2)

    for _ in range(2):
        with pytest.raises(BadDeclaration, match=r"is to the database 'test_\d+' and not 'test_\d+', where this app keeps its jobs"):
            portal.run(coroutine) if kind.is_async else sync()
    assert shop.jobs() == [1]


@of("psycopg", "async psycopg")
def test_a_block_on_a_connection_to_another_database_is_refused_before_anything_is_done(shop: Shop, kind: Kind, elsewhere: str) -> None:
    entered: list[bool] = []

    async def coroutine() -> None:
        async with kind.opened(elsewhere) as connection, current.atransaction(connection):
            entered.append(True)

    def sync() -> None:
        with kind.opened(elsewhere) as connection, current.transaction(connection):
            entered.append(True)

    with task_of(shop, coroutine if kind.is_async else sync) as task:
        record = shop.ran(task.enqueue())
    assert record.state is State.DEAD
    assert "where this app keeps its jobs" in record.errors[0].message
    assert not entered


@of("psycopg")
def test_a_job_of_an_app_elsewhere_is_refused_in_a_block(shop: Shop, kind: Kind, elsewhere: str) -> None:
    other = Offload(elsewhere)
    there = other.task(name="there")(lambda: None)

    def work() -> None:
        with current.transaction():
            program.note.enqueue(1)
            there.enqueue()

    with task_of(shop, work) as task:
        record = shop.ran(task.enqueue())
    other.close()
    assert "where this app keeps its jobs" in record.errors[0].message
    assert shop.jobs() == []


def outcome_on(kind: Kind, shop: Shop, inside: Callable[[Any], Any]) -> Record:
    """The record of a job that does `inside` in its block, on a connection which it has written on before."""

    async def coroutine() -> None:
        async with kind.opened(shop.url) as connection:
            await kind.insert(connection, 1)
            async with current.atransaction(connection):
                await inside(connection)
                await kind.insert(connection, 2)
                current.complete(7)

    def sync() -> None:
        with kind.opened(shop.url) as connection:
            kind.insert(connection, 1)
            with current.transaction(connection):
                inside(connection)
                kind.insert(connection, 2)
                current.complete(7)

    with task_of(shop, coroutine if kind.is_async else sync) as task:
        return shop.ran(task.enqueue())


@those_that_commit
def test_a_connection_of_ones_own_that_is_committed_inside_does_not_end_the_job(shop: Shop, kind: Kind) -> None:
    record = outcome_on(kind, shop, kind.commit)
    assert record.state is State.DEAD
    assert any(words in record.errors[0].message for words in (ENDED, "Explicit commit() forbidden within a Transaction context"))
    assert 2 not in shop.marks()
    nobody_holds_a_lock(shop)


@those_that_commit
def test_a_connection_of_ones_own_that_is_rolled_back_inside_does_not_end_the_job(shop: Shop, kind: Kind) -> None:
    record = outcome_on(kind, shop, kind.rollback)
    assert record.state is State.DEAD
    assert any(words in record.errors[0].message for words in (ENDED, "Explicit rollback() forbidden within a Transaction context"))
    assert shop.marks() == []
    nobody_holds_a_lock(shop)


@of("psycopg: Session", "pysqlite: Session")
@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "rollback_only"])
def test_a_session_whose_commit_is_none_does_not_end_the_job(shop: Shop, kind: Kind, mode: Any) -> None:
    """It is bound to a connection whose transaction is somebody else's to commit."""
    if (kind.engine, mode) == ("sqlite", "create_savepoint"):
        pytest.skip("there the savepoint is the transaction, for SQLAlchemy begins no other one, and its release is a commit")

    def work() -> None:
        with (
            OF[kind.name.replace("Session", "Connection")].opened(shop.url) as outer,
            outer.begin(),
            Session(outer, join_transaction_mode=mode) as session,
            current.transaction(session),
        ):
            session.execute(text(program.insert(1)))
            program.note.enqueue(1)
            current.complete(7)

    with task_of(shop, work) as task:
        record = shop.ran(task.enqueue())
    assert (record.state, record.result) == (State.DEAD, None)
    assert "its commit is none, and all was rolled back" in record.errors[0].message
    assert (shop.marks(), shop.jobs()) == ([], [])
    nobody_holds_a_lock(shop)


@django_kinds
@pytest.mark.parametrize("how", ["set_rollback", "a block within"])
def test_a_block_that_django_rolls_back_without_an_error_does_not_end_the_job(shop: Shop, kind: Kind, how: str) -> None:
    transaction: Any = import_module("django.db.transaction")

    def work() -> None:
        with kind.opened(shop.url) as connection, current.transaction(connection):
            kind.insert(connection, 1)
            program.note.enqueue(1)
            current.complete(7)
            if how == "set_rollback":
                transaction.set_rollback(True, using=connection.alias)
                return
            with pytest.raises(KeyError), transaction.atomic(using=connection.alias, savepoint=False):
                raise KeyError

    with task_of(shop, work) as task:
        record = shop.ran(task.enqueue())
    assert (record.state, record.result) == (State.DEAD, None)
    assert record.errors[0].type == "django.db.transaction.TransactionManagementError"
    assert (shop.marks(), shop.jobs()) == ([], [])


@django_kinds
def test_a_copy_of_a_django_connection_is_not_taken_for_the_threads_own(shop: Shop, kind: Kind) -> None:
    transaction: Any = import_module("django.db.transaction")

    connection = _django_connection(shop.url)
    with transaction.atomic(using=connection.alias), pytest.raises(BadDeclaration, match="is not the one that django"):
        program.note.using(connection=connection.copy()).enqueue(1)
    connection.close()
    assert shop.jobs() == []


@of("psycopg", "async psycopg")
def test_pipeline_mode_is_refused(shop: Shop, kind: Kind) -> None:
    async def coroutine() -> None:
        async with kind.opened(shop.url) as connection, connection.pipeline():
            await program.note.using(connection=connection).aenqueue(1)

    def sync() -> None:
        with kind.opened(shop.url) as connection, connection.pipeline():
            program.note.using(connection=connection).enqueue(1)

    with pytest.raises(BadDeclaration, match=r"leave the block of connection\.pipeline"):
        portal.run(coroutine) if kind.is_async else sync()


@of("psycopg")
def test_the_cursors_of_a_connection_do_not_matter(shop: Shop, kind: Kind) -> None:
    with closing(psycopg.connect(shop.url, cursor_factory=psycopg.RawCursor)) as plain:
        connection: Any = plain
        connection.row_factory = dict_row
        program.note.using(connection=connection).enqueue(1)
        connection.commit()
    assert shop.jobs() == [1]


@of("psycopg: Session", "psycopg2: Session")
def test_a_session_in_two_phases_is_refused(shop: Shop, kind: Kind) -> None:
    engine = create_engine(shop.url.replace("postgresql", f"postgresql+{kind.name.partition(':')[0]}", 1))
    with Session(engine, twophase=True) as session:
        with pytest.raises(BadDeclaration, match="in a two-phase transaction cannot be joined"):
            program.note.using(connection=session).enqueue(1)
        session.invalidate()
    engine.dispose()


@of("aiosqlite: AsyncConnection")
def test_an_async_connection_that_was_not_opened_is_refused(shop: Shop, kind: Kind) -> None:
    engine = create_async_engine(shop.url.replace("sqlite", "sqlite+aiosqlite", 1))

    async def main() -> None:
        with pytest.raises(BadDeclaration, match="an AsyncConnection of SQLAlchemy that is not open"):
            await program.note.using(connection=engine.connect()).aenqueue(1)

    portal.run(main)


class Derived(sqlite3.Connection):
    """A program may have a class of its own."""


@of("pysqlite: Session")
def test_a_class_of_connections_derived_from_sqlite3s_is_sqlite3s(shop: Shop, kind: Kind) -> None:
    engine = create_engine(shop.url, connect_args={"factory": Derived})
    with Session(engine) as session:
        program.note.using(connection=session).enqueue(1)
        session.commit()
    engine.dispose()
    assert shop.jobs() == [1]


@pytest.mark.parametrize("how", ["coroutines", "threads"])
def test_as_many_blocks_as_are_lent_may_use_a_second_connection_at_once(fresh_database: Callable[[], str], how: str) -> None:
    url = fresh_database()
    with closing(Offload(url)) as app:

        @app.task(name="note")
        async def note() -> None: ...

        inside = threading.Barrier(MOST_KEPT)
        together = asyncio.Barrier(MOST_KEPT)

        @app.task(name="coroutines", retry=Retry(max_retries=0), timeout=20)
        async def in_coroutine() -> None:
            async with current.atransaction(), await psycopg.AsyncConnection.connect(url) as other:
                await together.wait()
                await note.using(connection=other).aenqueue()

        @app.task(name="threads", retry=Retry(max_retries=0), timeout=20)
        def in_thread() -> None:
            with current.transaction(), psycopg.connect(url) as other:
                inside.wait(20)
                note.using(connection=other).enqueue()

        async def drain() -> None:
            async with app:
                await Worker(app, threads=MOST_KEPT).drain()

        task = {"coroutines": in_coroutine, "threads": in_thread}[how]
        handles = app.enqueue_many([task.job() for _ in range(MOST_KEPT)])
        asyncio.run(drain())
        assert {handle.record().state for handle in handles} == {State.SUCCEEDED}
