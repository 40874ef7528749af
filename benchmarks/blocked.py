"""Measures how much jobs that wait for a key slow down the others: free jobs behind very many of one key, beside the same without them.

The key has a limit of 1, and a job that holds its slot runs all the time. The blocked ones are enqueued first, then the free ones.
"""

from __future__ import annotations

import asyncio
import time

from part import Tally
from place import Place

from offload import Concurrency, Offload, Worker

KEY = "the only one"


def seconds_to_run(place: Place, free: int, blocked: int, loop_factory: type[asyncio.AbstractEventLoop] | None) -> float:
    """From the start of one worker to the end of the last of `free` jobs, while `blocked` others wait."""
    with place.fresh() as url, asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_seconds(Offload(url), free, blocked))


async def _seconds(app: Offload, free: int, blocked: int) -> float:
    worker, tally, all_ran = Worker(app), Tally(free), asyncio.Event()
    ended = 0.0
    runs_left, blocked_left = free, blocked

    @app.task(keep=0, limits=[Concurrency(1, key=KEY)])
    async def hold() -> None:
        await all_ran.wait()

    @app.task(keep=0, limits=[Concurrency(1, key=KEY)])
    async def wait() -> None:  # the first may be claimed before the worker has stopped
        nonlocal blocked_left
        blocked_left -= 1

    @app.task(keep=0)
    async def run(number: int) -> None:
        nonlocal ended, runs_left
        tally.mark(number)
        runs_left -= 1
        if runs_left == 0:
            ended = time.perf_counter()
            worker.stop()
            all_ran.set()

    await hold.aenqueue()
    await app.aenqueue_many(wait.job() for _ in range(blocked))
    await app.aenqueue_many(run.job(number) for number in range(free))
    began = time.perf_counter()
    await worker.run()
    left = sum(number for states in (await app.acounts()).values() for number in states.values())
    await app.aclose()
    if tally.runs != b"\1" * free or left != blocked_left:
        raise SystemExit(f"{tally.runs.count(1)} of {free} free jobs ran once, {left} jobs are left where {blocked_left} wait")
    return ended - began
