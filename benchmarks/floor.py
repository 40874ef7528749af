"""What the floors have in common: their loop, one asyncio task a job or one hop to a thread a batch, and calls of enqueue one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from part import Part, Tally, Told

BATCH = 100
CHUNK = 1000
Id = TypeVar("Id")


def body(n: int) -> bytes:
    """What a job carries."""
    return msgspec.json.encode({"n": n})


def chunks(jobs: int) -> list[list[bytes]]:
    """The bodies of jobs that are enqueued in bulk, a transaction at a time."""
    return [[body(n) for n in range(start, min(start + CHUNK, jobs))] for start in range(0, jobs, CHUNK)]


def one_by_one(part: Part, enqueue: Callable[[bytes], object]) -> Told:
    """Call `enqueue` for one job after the other."""
    told = Told()
    for n in range(part.jobs):
        begin = time.monotonic()
        enqueue(body(n))
        told.note(begin)
        time.sleep(part.pause)
    return told


async def one_by_one_async(part: Part, enqueue: Callable[[bytes], Awaitable[object]]) -> Told:
    """The same in a coroutine."""
    told = Told()
    for n in range(part.jobs):
        begin = time.monotonic()
        await enqueue(body(n))
        told.note(begin)
    return told


async def work(
    part: Part,
    tally: Tally,
    told: Callable[[Callable[[], None]], None],
    turn: Callable[[list[Id]], Awaitable[Sequence[tuple[Id, Any]]]],
    rest: Callable[[], Awaitable[object]],
) -> None:
    """Run what `turn` claims, which settles the batch before by the way; `rest` when there is nothing."""
    going = True

    def stop() -> None:
        nonlocal going
        going = False

    told(stop)
    run = _run_tasks if part.kind == "async" else _run_in_thread
    done: list[Id] = []
    while going:
        claimed = await turn(done)
        done = [id for id, _ in claimed]
        if claimed:
            await run(tally, [msgspec.json.decode(each) for _, each in claimed])
        elif part.until == "empty":
            return
        else:
            await rest()


async def _run_tasks(tally: Tally, arguments: list[dict[str, int]]) -> None:
    async def task(n: int) -> None:
        tally.mark(n)

    running = [asyncio.create_task(task(**each)) for each in arguments]
    for each in running:
        await each


async def _run_in_thread(tally: Tally, arguments: list[dict[str, int]]) -> None:
    def batch() -> None:
        for each in arguments:
            tally.mark(**each)

    await asyncio.to_thread(batch)
