"""Coroutines that enqueue on one connection take turns, and what has not had its turn when a block ends is not part of it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.transactions import program
from tests.transactions.conftest import Hand, Shop
from tests.transactions.kinds import KINDS, Kind
from tests.transactions.test_stopping import task_of

from offload import BadDeclaration, IdConflict, State, current
from offload.connections import AsyncAdapter, adapter_of
from offload.joining import Block, joined

OF = {kind.name: kind for kind in KINDS}
every_async_kind = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.is_async], ids=lambda kind: kind.name)
on_sqlite = pytest.mark.parametrize("kind", [OF["aiosqlite"]], ids=lambda kind: kind.name)


@every_async_kind
def test_coroutines_that_enqueue_at_the_same_time_do_not_undo_each_other(shop: Shop, kind: Kind, hand: Hand) -> None:
    program.note.using(id="known").enqueue(0)

    async def main() -> Any:
        note = program.note.using(connection=hand.connection)
        wrong = program.note.using(connection=hand.connection, id="known")
        return await asyncio.gather(note.aenqueue(1), wrong.aenqueue(2), note.aenqueue(3), wrong.aenqueue(4), return_exceptions=True)

    outcomes = hand.wait(main())
    assert [type(outcome) for outcome in outcomes[1::2]] == [IdConflict] * 2
    hand.commit()
    assert shop.jobs() == [0, 1, 3]


@on_sqlite
def test_coroutines_that_enqueue_at_the_same_time_leave_the_connection_its_patience(shop: Shop, kind: Kind) -> None:
    async def main() -> Any:
        async with kind.opened(shop.url) as connection:
            await asyncio.gather(*(program.note.using(connection=connection).aenqueue(n) for n in range(5)))
            return await (await connection.execute("pragma busy_timeout")).fetchone()

    assert asyncio.run(main()) == (5000,)


@every_async_kind
@pytest.mark.parametrize("wrong", [False, True], ids=["committed", "rolled back"])
def test_a_job_whose_turn_comes_after_the_block_is_refused(shop: Shop, kind: Kind, wrong: bool, eventually: Eventually) -> None:
    """The task that enqueues it has begun before the block ended, and nobody has awaited it there."""
    refused: list[BaseException | None] = []
    free: list[bool] = []

    async def leaves_a_task_behind() -> None:
        async with kind.opened(shop.url) as connection:
            try:
                await block(connection)
            finally:
                free.append(kind.name != "aiosqlite" or not connection.in_transaction)

    async def block(connection: Any) -> None:
        adapter = adapter_of(connection)
        assert isinstance(adapter, AsyncAdapter)
        turn = adapter._turn()
        async with current.atransaction(connection):
            await program.note.aenqueue(1)
            block = joined()
            assert block is not None
            await turn.acquire()
            left = asyncio.create_task(program.note.aenqueue(2))
            await eventually(lambda: bool(turn._waiters))

            async def let_go() -> None:
                await eventually(lambda: not block.open)
                turn.release()

            going = asyncio.create_task(let_go())
            left.add_done_callback(lambda left: refused.append(left.exception()))
            current.complete(7)
            if wrong:
                raise ValueError("wrong")
        await asyncio.gather(going, left, return_exceptions=True)

    with task_of(shop, leaves_a_task_behind) as task:
        record = shop.ran(task.enqueue())
    assert record.state is (State.DEAD if wrong else State.SUCCEEDED), record.errors
    assert [type(error) for error in refused] == [BadDeclaration]
    assert "the block of current.transaction() had ended" in str(refused[0])
    assert (shop.jobs(), free) == ([] if wrong else [1], [True])


@on_sqlite
def test_what_is_being_enqueued_as_the_block_rolls_back_is_rolled_back_too(shop: Shop, kind: Kind, eventually: Eventually) -> None:
    """An enqueue on aiosqlite goes on in its thread, whatever becomes of who awaits it."""
    begun, go_on = threading.Event(), threading.Event()
    broker: Any = type(shop.app.broker)
    enqueue_on = broker.enqueue_on

    def slowly(self: Any, jobs: Any) -> Callable[[Any], Any]:
        def run(execute: Any) -> Any:
            begun.set()
            assert go_on.wait(20)
            return enqueue_on(self, jobs)(execute)

        return run

    async def wrong() -> None:
        async with kind.opened(shop.url) as connection:
            try:
                async with current.atransaction(connection):
                    block = joined()
                    assert block is not None
                    left = asyncio.create_task(program.note.aenqueue(1))
                    await eventually(begun.is_set)

                    async def let_go() -> None:
                        await eventually(lambda: not block.open)
                        go_on.set()

                    going = asyncio.create_task(let_go())
                    raise ValueError("wrong")
            finally:
                await asyncio.gather(going, left, return_exceptions=True)
                await connection.commit()

    with pytest.MonkeyPatch.context() as patch, task_of(shop, wrong) as task:
        handle = task.enqueue()
        patch.setattr(broker, "enqueue_on", slowly)
        assert shop.ran(handle).errors[0].message == "wrong"
    assert shop.jobs() == []


def test_a_thread_that_comes_after_the_block_is_refused() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        adapter: Any = adapter_of(connection)
        block: Any = Block(adapter)
        assert block.adapter.run(lambda execute: execute("select 7", ()).fetchone()) == (7,)
        block.end()
        with pytest.raises(BadDeclaration, match="had ended before this job came to its turn"):
            block.adapter.run(lambda execute: execute("select 7", ()).fetchone())
