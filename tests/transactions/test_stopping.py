"""Stopping a task whose transaction is open leaves no lock behind, and no half of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from tests.transactions import program
from tests.transactions.conftest import Shop
from tests.transactions.kinds import KINDS, Kind

from offload import Retry, State, current
from offload.records import Record
from offload.worker import executor

NEVER = Retry(max_retries=0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that was told to stop is told again every few milliseconds."""
    monkeypatch.setattr(executor, "NUDGE_EVERY", {"async": 0.01, "thread": 0.01, "process": 0.01})
    monkeypatch.setattr(executor, "STUCK_AFTER", 20.0)


@contextmanager
def task_of(shop: Shop, function: Any, **options: Any) -> Iterator[Any]:
    task = shop.app.task(**{"retry": NEVER, **options})(function)
    try:
        yield task
    finally:
        del shop.app.tasks[task.name]


def timed_out(record: Record) -> bool:
    """Whether a time limit was the end of a job."""
    return record.state is State.DEAD and record.errors[0].type == "TimeoutError"


async def ainsert(mine: Any, n: int) -> None:
    """Insert a row on the connection of a coroutine's block, which is awaited where the engine's is."""
    done = mine.execute(program.insert(n))
    if hasattr(done, "__await__"):
        await done


def nobody_holds_a_lock(shop: Shop) -> None:
    program.sql(shop.url, "insert into marks (n) values (999)")
    assert shop.marks()[-1] == 999


def test_a_time_limit_in_the_block_rolls_back(shop: Shop, impatient: None) -> None:
    def slow(n: int) -> None:
        with current.transaction() as mine:
            mine.execute(program.insert(n))
            program.note.enqueue(n)
            while True:
                time.sleep(0.001)

    with task_of(shop, slow, timeout=0.2) as task:
        record = shop.ran(task.enqueue(7))
    assert timed_out(record)
    assert (shop.marks(), shop.jobs()) == ([], [])
    nobody_holds_a_lock(shop)


def test_a_time_limit_while_a_coroutine_has_its_block_open_rolls_back(shop: Shop) -> None:
    async def slow(n: int) -> None:
        async with current.atransaction() as mine:
            await ainsert(mine, n)
            await asyncio.Event().wait()

    with task_of(shop, slow, timeout=0.2) as task:
        record = shop.ran(task.enqueue(7))
    assert record.state is State.DEAD
    assert shop.marks() == []
    nobody_holds_a_lock(shop)


def nothing_goes_on(shop: Shop) -> None:
    """Neither a lock nor a statement is left."""
    nobody_holds_a_lock(shop)
    if not shop.url.startswith("sqlite"):
        assert program.sql(shop.url, "select query from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'") == []


def test_a_time_limit_ends_the_statement_that_a_thread_waits_for(shop: Shop, engine: str) -> None:
    def slow(n: int) -> None:
        with current.transaction() as mine:
            mine.execute(program.insert(n))
            program.note.enqueue(n)
            mine.execute(program.ENDLESS[engine])

    with task_of(shop, slow, timeout=0.5) as task:
        record = shop.ran(task.enqueue(7))
    assert timed_out(record)
    assert (shop.marks(), shop.jobs()) == ([], [])
    nothing_goes_on(shop)


@pytest.mark.process
def test_a_time_limit_ends_the_statement_that_a_child_process_waits_for(shop: Shop, engine: str) -> None:
    record = shop.ran(program.waits_in_process.enqueue(7, program.ENDLESS[engine]))
    assert timed_out(record)
    assert (shop.marks(), shop.jobs()) == ([], [])
    nothing_goes_on(shop)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.is_async], ids=lambda kind: kind.name)
def test_a_time_limit_ends_a_statement_on_a_connection_of_the_tasks_own(shop: Shop, kind: Kind) -> None:
    def slow(n: int) -> None:
        with kind.opened(shop.url) as given, current.transaction(given):
            kind.insert(given, n)
            kind.execute(given, program.ENDLESS[kind.engine])

    with kind.opened(shop.url):
        pass  # a driver that is imported within the task's time may be stopped half imported, and stays so for the next test
    with task_of(shop, slow, timeout=0.5) as task:
        record = shop.ran(task.enqueue(7))
    assert timed_out(record)
    assert shop.marks() == []
    nothing_goes_on(shop)


def slow_ends(shop: Shop, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Begin and end transactions of threads slowly, in Python, where an exception from outside could get in."""
    broker: Any = type(shop.app.broker)
    transaction = broker.transaction

    @contextmanager
    def slowly(self: Any) -> Iterator[Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.001)
        with transaction(self) as connection:
            yield connection
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.001)

    monkeypatch.setattr(broker, "transaction", slowly)


def test_nothing_stops_a_thread_while_it_commits(shop: Shop, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit comes to its end while the block ends: the commit goes through, and the job has succeeded."""
    slow_ends(shop, monkeypatch, 0.4)

    def quick(n: int) -> None:
        with current.transaction() as mine:
            mine.execute(program.insert(n))
            current.complete(n)

    with task_of(shop, quick, timeout=0.6) as task:
        record = shop.ran(task.enqueue(7))
    assert (record.state, record.result, record.errors) == (State.SUCCEEDED, 7, ())
    assert shop.marks() == [7]
    nobody_holds_a_lock(shop)


def test_nothing_stops_a_thread_while_it_begins_and_then_it_is_stopped(
    shop: Shop, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_ends(shop, monkeypatch, 0.4)
    begun = threading.Event()

    def late(n: int) -> None:
        with current.transaction() as mine:
            begun.set()
            mine.execute(program.insert(n))
            while True:
                time.sleep(0.001)

    with task_of(shop, late, timeout=0.1) as task:
        record = shop.ran(task.enqueue(7))
    assert timed_out(record)
    assert shop.marks() == []
    nobody_holds_a_lock(shop)


def test_a_commit_under_way_is_waited_for_although_the_coroutine_is_cancelled(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    broker: Any = type(shop.app.broker)
    atransaction = broker.atransaction
    committing = asyncio.Event()

    @asynccontextmanager
    async def slowly(self: Any) -> AsyncIterator[Any]:
        async with atransaction(self) as connection:
            yield connection
            committing.set()
            await asyncio.sleep(0.5)

    monkeypatch.setattr(broker, "atransaction", slowly)

    async def quick(n: int) -> None:
        async with current.atransaction() as mine:
            await ainsert(mine, n)
            current.complete(n)

    with task_of(shop, quick, timeout=0.2) as task:
        record = shop.ran(task.enqueue(7))
    assert committing.is_set()
    assert (record.state, record.result) == (State.SUCCEEDED, 7)
    assert shop.marks() == [7]


def test_a_thread_stopped_before_it_is_in_its_with_leaves_no_transaction_open(shop: Shop) -> None:
    """What was begun is undone by the end of the attempt, although the error that is kept of it still holds all that was there."""

    def stopped(n: int) -> None:
        block = current.transaction()
        mine = block.__enter__()
        mine.execute(program.insert(n))
        raise ValueError("as if it came from outside, between the two steps of a `with`")

    with task_of(shop, stopped) as task:
        record = shop.ran(task.enqueue(7))
    assert record.state is State.DEAD
    assert shop.marks() == []
    nobody_holds_a_lock(shop)
