"""What the error of an ended attempt keeps, and where a thread stands."""

from __future__ import annotations

import asyncio
import sqlite3
import weakref
from contextlib import closing
from pathlib import Path

import pytest
from tests.worker.program import NEVER

from offload import Offload, State, Worker
from offload.worker.stacks import let_go

pytestmark = pytest.mark.anyio

engines = ["sqlite"]


class Held:
    """Something that a failing function has in a local variable."""


def error_of(held: Held) -> ValueError:
    mine = held
    try:
        raise KeyError("first")
    except KeyError as first:
        try:
            raise ExceptionGroup("several", [first]) from None
        except ExceptionGroup:
            return ValueError(f"with {mine} in hand")


def fails(alive: list[weakref.ref[Held]]) -> None:
    held = Held()
    alive.append(weakref.ref(held))
    try:
        raise KeyError("first")
    finally:
        held = Held()
        alive.append(weakref.ref(held))
        raise ExceptionGroup("both", [error_of(held), ValueError("another")])


def test_an_error_let_go_of_holds_no_locals_and_keeps_its_lines() -> None:
    alive: list[weakref.ref[Held]] = []
    with pytest.raises(ExceptionGroup) as caught:
        fails(alive)
    lines = [entry.lineno for entry in caught.traceback]
    assert alive[-1]() is not None
    let_go(caught.value)
    assert [ref() for ref in alive] == [None, None]
    assert [entry.lineno for entry in caught.traceback] == lines


async def test_a_coroutine_that_caught_the_error_and_goes_on_is_not_ended() -> None:
    caught: asyncio.Future[ValueError] = asyncio.get_running_loop().create_future()
    go_on = asyncio.Event()

    async def service() -> str:
        try:
            raise ValueError("of one request")
        except ValueError as error:
            caught.set_result(error)
        await go_on.wait()
        return "well"

    running = asyncio.create_task(service())
    let_go(await caught)
    go_on.set()
    assert await running == "well"


async def test_a_task_that_fails_with_a_cursor_open_on_the_queues_own_file_keeps_nobody_waiting(app: Offload, tmp_path: Path) -> None:
    """A connection of SQLite that is closed while a cursor is open keeps its transaction, and so the lock, until the cursor is gone."""

    @app.task(retry=NEVER)
    def fail(path: str) -> None:
        with closing(sqlite3.connect(path)) as mine:
            mine.execute("create table mine (n integer)")
            mine.executemany("insert into mine values (?)", [(1,), (2,)])
            rows = mine.execute("select n from mine")
            assert next(rows) == (1,)
            raise ValueError("with a row to come")

    handle = await fail.aenqueue(str(tmp_path / "offload.db"))
    async with Worker(app):
        with pytest.raises(Exception, match="with a row to come"):
            await handle.aresult(10)
    assert (await handle.arecord()).state is State.DEAD
