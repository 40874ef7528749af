"""`?driver=apsw`: the same store by another library, and never both on one file in one process."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from offload import BadDeclaration, BrokerError, Offload, Retry, State, Worker, current
from offload.broker import Broker
from offload.brokers.sqlite import SqliteBroker
from offload.portal import portal
from offload.testing.clock import TestClock
from offload.testing.contract import BrokerContract

apsw = pytest.importorskip("apsw")


class TestApsw(BrokerContract):
    @pytest.fixture
    async def broker(self, clock: TestClock, tmp_path: Path) -> AsyncIterator[Broker]:
        broker = SqliteBroker.connect(f"sqlite:///{tmp_path}/offload.db?synchronous=normal&driver=apsw", clock)
        await broker.open()
        yield broker
        await broker.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"{tmp_path}/shop.db"


@pytest.fixture
def app(path: str) -> Iterator[Offload]:
    app = Offload(f"sqlite:///{path}?driver=apsw")
    app.migrate()
    yield app
    app.close()


def test_two_libraries_on_one_file_in_one_process_are_refused(app: Offload, path: str) -> None:
    other = Offload(f"sqlite:///{path}")
    with pytest.raises(BadDeclaration, match="is open in this process with apsw, and two SQLite libraries lose each other's locks"):
        other.counts()
    with closing(sqlite3.connect(path)) as connection, pytest.raises(BadDeclaration, match="use connections of apsw"):
        app.using(connection=connection).enqueue("note", n=1)
    other.close()


def test_jobs_join_a_transaction_of_apsw(app: Offload, path: str) -> None:
    connection = apsw.Connection(path)
    with pytest.raises(BadDeclaration, match="has no transaction that the job could join"):
        app.using(connection=connection).enqueue("note", n=1)
    for n, end in ((1, "rollback"), (2, "commit")):
        connection.execute("begin immediate")
        app.using(connection=connection, id=str(n)).enqueue("note", n=n)
        connection.execute(end)
    with connection:
        app.using(connection=connection, id="3").enqueue("note", n=3)
    connection.close()
    assert sorted(record.id for record in app.find()) == ["2", "3"]


def test_a_job_ends_in_a_transaction_of_apsw(app: Offload, path: str) -> None:
    @app.task(retry=Retry(max_retries=0))
    def write(n: int, *, wrong: bool = False) -> int:
        with current.transaction() as connection:
            assert isinstance(connection, apsw.Connection)
            connection.execute("create table if not exists marks (n integer)")
            connection.execute("insert into marks values (?)", (n,))
            current.complete(n)
            if wrong:
                raise ValueError("wrong")
        return -1

    async def work() -> None:
        await Worker(app).drain()

    right, wrong = write.enqueue(1), write.enqueue(2, wrong=True)
    portal.run(work)
    assert (right.record().state, right.result()) == (State.SUCCEEDED, 1)
    assert wrong.record().state is State.DEAD
    connection = apsw.Connection(path)
    assert connection.execute("select n from marks").fetchall() == [(1,)]
    connection.close()


def test_errors_of_apsw_mean_what_sqlites_mean(tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_bytes(b"no database at all, but a text that is long enough to be looked at" * 20)
    app = Offload(f"sqlite:///{tmp_path}/shop.db?driver=apsw")
    with pytest.raises(BrokerError, match="is not an SQLite database"):
        app.counts()


def test_a_driver_that_is_none_is_refused() -> None:
    with pytest.raises(BadDeclaration, match="driver is sqlite3 or apsw, not 'pysqlite3'"):
        Offload("sqlite:///shop.db?driver=pysqlite3")
