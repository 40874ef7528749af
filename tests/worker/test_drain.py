"""`drain` runs what is due, here and now, and says how many attempts that took."""

from __future__ import annotations

from datetime import timedelta

import pytest

from offload import Offload, Retry, State, Worker, Workflow, current
from offload.drafts import Draft
from offload.testing.clock import START, TestClock

pytestmark = pytest.mark.anyio


async def test_drain_runs_all_that_is_ready_and_what_that_enqueues(timed: Offload) -> None:
    seen: list[int] = []

    @timed.task
    async def work(more: int) -> None:
        seen.append(more)
        if more:
            await work.aenqueue(more - 1)

    @timed.task
    def thread() -> None:
        seen.append(-1)

    await work.aenqueue(3)
    await thread.aenqueue()
    assert await Worker(timed).drain() == 5
    assert sorted(seen) == [-1, 0, 1, 2, 3]
    assert await Worker(timed).drain() == 0


async def test_drain_of_nothing_is_zero(timed: Offload) -> None:
    assert await Worker(timed).drain() == 0


async def test_drain_runs_more_jobs_than_fit_at_once(timed: Offload) -> None:
    @timed.task
    async def work() -> None: ...

    await timed.aenqueue_many([work.job() for _ in range(2_500)])
    assert await Worker(timed, concurrency=7).drain() == 2_500


WIDTH = 2_100
"""More than twice what one operation works off."""


@pytest.mark.parametrize("burst", [False, True], ids=["drain", "burst"])
async def test_what_comes_in_pieces_is_run_to_its_end(app: Offload, burst: bool) -> None:
    @app.task(retry=False)
    async def broken() -> None:
        raise ValueError

    @app.task
    async def work() -> None: ...

    flow = Workflow()
    first = flow.add(broken.job())
    fallen = [flow.add(work.job(), after=[first]) for _ in range(WIDTH)]
    last = flow.add(work.job(), after=fallen, if_parent_fails="run")
    run = await flow.aenqueue()
    await _worked(app, burst=burst)
    assert (await run.handle(last).arecord()).state is State.SUCCEEDED


@pytest.mark.parametrize("burst", [False, True], ids=["drain", "burst"])
async def test_jobs_of_unknown_tasks_hide_nobody(app: Offload, burst: bool) -> None:
    @app.task
    async def work() -> None: ...

    await app.aenqueue_many([Draft(task="another's") for _ in range(WIDTH)])
    last = await work.aenqueue()
    await _worked(app, burst=burst)
    assert (await last.arecord()).state is State.SUCCEEDED


async def _worked(app: Offload, *, burst: bool) -> None:
    if burst:
        await Worker(app, burst=True).run()
    else:
        await Worker(app).drain()


async def test_delays_come_due_as_the_clock_is_advanced(timed: Offload, clock: TestClock) -> None:
    seen: list[str] = []

    @timed.task
    async def work(name: str) -> None:
        seen.append(name)

    await work.using(delay=60).aenqueue("delayed")
    await work.using(run_at=START + timedelta(hours=1)).aenqueue("at one")
    for advance, due in ((59, []), (1, ["delayed"]), (3_539, ["delayed"]), (1, ["delayed", "at one"])):
        clock.advance(advance)
        await Worker(timed).drain()
        assert seen == due


async def test_retries_come_due_as_the_clock_is_advanced(timed: Offload, clock: TestClock) -> None:
    attempts: list[int] = []

    @timed.task(retry=Retry(max_retries=3, initial=60, factor=2, jitter=0))
    def fails() -> None:
        attempts.append(current.attempt)
        raise ValueError("no")

    handle = await fails.aenqueue()
    counts = [await Worker(timed).drain()]
    for seconds in (60, 119, 1, 240):
        clock.advance(seconds)
        counts.append(await Worker(timed).drain())
    assert counts == [1, 1, 0, 1, 1]
    assert attempts == [1, 2, 3, 4]
    record = await handle.arecord()
    assert (record.state, [failure.at for failure in record.errors]) == (
        State.DEAD,
        [START + timedelta(seconds=seconds) for seconds in (0, 60, 180, 420)],
    )


async def test_schedules_tick_as_the_clock_is_advanced(timed: Offload, clock: TestClock) -> None:
    ticks: list[object] = []

    @timed.cron("*/10 * * * *")
    @timed.task
    async def often() -> None:
        ticks.append(current.job.run_at)

    assert await Worker(timed).drain() == 0
    for _ in range(3):
        clock.advance(timedelta(minutes=10))
        assert await Worker(timed).drain() == 1
    assert ticks == [START + timedelta(minutes=minutes) for minutes in (10, 20, 30)]


async def test_a_clock_that_jumps_back_fires_no_tick_twice(timed: Offload, clock: TestClock) -> None:
    ticks: list[int] = []

    @timed.cron("0 * * * *")
    @timed.task
    async def hourly() -> None:
        ticks.append(1)

    await Worker(timed).drain()
    clock.advance(timedelta(hours=1))
    await Worker(timed).drain()
    clock.jump(timedelta(minutes=-30))
    await Worker(timed).drain()
    clock.jump(timedelta(minutes=30))
    await Worker(timed).drain()
    assert len(ticks) == 1


async def test_expired_jobs_are_never_run(timed: Offload, clock: TestClock) -> None:
    @timed.task(expires_in=60)
    async def work() -> None:
        raise AssertionError("it ran")

    handle = await work.aenqueue()
    clock.advance(60)
    assert await Worker(timed).drain() == 0
    assert (await handle.arecord()).state is State.EXPIRED


async def test_drain_leaves_what_is_paused(timed: Offload) -> None:
    @timed.task
    async def work() -> None: ...

    await work.aenqueue()
    await timed.apause("default")
    assert await Worker(timed).drain() == 0
    await timed.aresume("default")
    assert await Worker(timed).drain() == 1
