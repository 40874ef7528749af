"""Measures what the store alone does to end a job: `Session.settle` of many at once, with no worker around it."""

from __future__ import annotations

import asyncio
import time

from place import Place

from offload import Offload, State, Task, chain, group, previous
from offload.broker import Session
from offload.job import Done, Lease, WorkerInfo

AT_ONCE = 100
"""Successes that one call records."""


def seconds_to_settle(place: Place, jobs: int, *, joined: bool, loop_factory: type[asyncio.AbstractEventLoop] | None) -> float:
    """How long it takes to record the successes of so many jobs, plain ones or parts of a group that a join waits for."""
    with place.fresh() as url, asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_seconds(Offload(url), jobs, joined=joined))


def declared(app: Offload) -> tuple[Task[[int], int], Task[[list[int]], int]]:
    """The tasks of the parts, and of the join, which comes to the sum of their numbers."""

    @app.task(name="part")
    async def part(n: int) -> int:
        return n

    @app.task
    async def join(numbers: list[int]) -> int:
        return sum(numbers)

    return part, join


async def _seconds(app: Offload, jobs: int, *, joined: bool) -> float:
    part, join = declared(app)
    parts = [part.job(n) for n in range(jobs)]
    if joined:
        await chain(group(*parts), join.job(previous)).aenqueue()
    else:
        await app.aenqueue_many(parts)
    worker = WorkerInfo(name="settled", host="here", pid=0, tasks={part.name: "async", join.name: "async"})
    seconds = 0.0
    async with (await app.store()).session(worker) as session:
        for _ in range(0, jobs, AT_ONCE):
            leases = await _claimed(session)
            began = time.perf_counter()
            lost = await session.settle([(lease, Done(b"1")) for lease in leases])
            seconds += time.perf_counter() - began
            if lost:
                raise SystemExit(f"{len(lost)} leases were lost")
    counts = await app.acounts()
    await app.aclose()
    ended = sum(states.get(State.SUCCEEDED, 0) for states in counts.values())
    if ended != jobs:
        raise SystemExit(f"of {jobs} jobs {ended} ended")
    return seconds


async def _claimed(session: Session) -> list[Lease]:
    leases: list[Lease] = []
    while len(leases) < AT_ONCE:
        leases += await session.fetch(None, AT_ONCE - len(leases), {"async": AT_ONCE})
    return leases
