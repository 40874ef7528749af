"""What it costs that workers declare limits: nothing for those who do not name them, and one look at who stands first when they change."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from offload.brokers.sqlite import SqliteBroker, file
from offload.brokers.sqlite.gating import Gates, Past, declare, member
from offload.brokers.sqlite.transaction import Transaction
from offload.job import SlotLimit
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import job

RULES = tuple(SlotLimit(f"tenant {n}", 3, f"tenant {n}") for n in range(30))


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(file.connect(tmp_path / "offload.db", "full")) as connection:
        file.migrate(connection, 0)
        yield connection


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def fill(path: Path, clock: TestClock, number: int) -> None:
    """Have so many jobs more come to one key, of which one may go."""
    broker = SqliteBroker.connect(f"sqlite:///{path}?synchronous=normal", clock)
    await broker.open()
    await broker.enqueue([job(clock, limits=(SlotLimit("k", 1),)) for _ in range(number)])
    await broker.close()


def declared(connection: sqlite3.Connection, limits: tuple[SlotLimit, ...]) -> tuple[int, int]:
    """The statements, and the steps of SQLite's machine, that it takes to declare limits. Nothing stays declared."""
    statements: list[str] = []
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.execute("begin immediate")
    connection.set_trace_callback(statements.append)
    connection.set_progress_handler(count, 1)
    declare(Transaction(connection.execute, careful=True), limits)
    connection.set_progress_handler(None, 0)
    connection.set_trace_callback(None)
    connection.execute("rollback")
    return len(statements), steps


@pytest.mark.anyio
async def test_declaring_limits_costs_the_same_however_many_wait(connection: sqlite3.Connection, tmp_path: Path, clock: TestClock) -> None:
    await fill(tmp_path / "offload.db", clock, 10)
    few = declared(connection, RULES[:1])
    await fill(tmp_path / "offload.db", clock, 990)
    assert declared(connection, RULES[:1]) == few


def test_many_limits_are_declared_by_as_many_statements_as_one(connection: sqlite3.Connection) -> None:
    assert declared(connection, RULES)[0] == declared(connection, RULES[:1])[0] == 3


def test_of_what_workers_declare_no_more_is_read_than_jobs_name(connection: sqlite3.Connection, clock: TestClock) -> None:
    answers: list[Any] = []

    class Cursor(sqlite3.Cursor):
        def fetchone(self) -> Any:
            answers.append(super().fetchone())
            return answers[-1]

    declare(Transaction(connection.execute, careful=True), RULES)
    tx = Transaction(lambda sql, values: connection.cursor(Cursor).execute(sql, values), careful=True)
    gates = Gates(tx, 0, lambda _: None)
    one = member(job(clock, limits=(SlotLimit("tenant 7", 1, "tenant 7"),)), 1, 1, Past())
    gates.expect([one])
    assert gates.run(lambda ledger: ledger.enter(one))
    assert "tenant 7" in str(answers)
    assert "tenant 8" not in str(answers)
