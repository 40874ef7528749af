"""Under the pytest fixtures jobs live in memory, where nothing can join a transaction: what tests see there."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from offload import Offload, Record, Retry, State, Unsupported, current

app = Offload("sqlite:///shop.db")
NEVER = Retry(max_retries=0)


@pytest.fixture
def offload_app() -> Offload:
    return app


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "shop.db", check_same_thread=False)) as connection:
        connection.execute("create table marks (n integer)")
        yield connection


shops: list[sqlite3.Connection] = []


@app.task(retry=NEVER)
def mark(n: int, *, wrong: bool = False) -> int:
    with current.transaction(shops[0]) as connection:
        connection.execute("insert into marks values (?)", (n,))
        other.enqueue(n)
        current.complete(2 * n)
        if wrong:
            raise ValueError("wrong")
    return -1


@app.task(retry=NEVER)
def other(n: int) -> int:
    return n


@app.task(retry=NEVER)
def own() -> None:
    with current.transaction():
        pass


def test_a_job_enqueued_on_a_connection_is_there_at_once(shop: sqlite3.Connection, enqueued: Callable[..., list[Record]]) -> None:
    other.using(connection=shop).enqueue(1)
    assert [record.task for record in enqueued()] == [other.name]


def test_a_block_on_a_connection_of_the_tests_ends_the_job(
    shop: sqlite3.Connection, drain: Callable[[], int], enqueued: Callable[..., list[Record]]
) -> None:
    shops[:] = [shop]
    right = mark.enqueue(1)
    drain()
    wrong = mark.enqueue(2, wrong=True)
    drain()
    assert (right.record().state, right.result()) == (State.SUCCEEDED, 2)
    assert wrong.record().state is State.DEAD
    assert shop.execute("select n from marks").fetchall() == [(1,)]
    assert enqueued(other)


def test_a_block_without_a_connection_has_no_database(drain: Callable[[], int]) -> None:
    handle = own.enqueue()
    drain()
    assert handle.record().errors[0].type == f"offload.errors.{Unsupported.__name__}"
