"""A worker that is told to stop loses nothing: what runs may end, the rest is handed back at once with its attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker import program as tasks
from tests.worker.program import Marks
from tests.worker.running import left, running

from offload import Offload, State, Worker
from offload.worker import executor

pytestmark = pytest.mark.anyio


async def states(app: Offload) -> dict[State, int]:
    return (await app.acounts()).get("default", {})


async def test_running_jobs_may_end_within_the_grace(app: Offload) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> str:
        started.set()
        await go_on.wait()
        return "done"

    worker = Worker(app, grace=30)
    async with running(worker) as run:
        handle = await work.aenqueue()
        await started.wait()
        worker.stop()
        later = await work.aenqueue()
        go_on.set()
        assert await left(run) == "stopped"
    assert (await handle.arecord()).state is State.SUCCEEDED
    assert ((await later.arecord()).state, (await later.arecord()).attempt) == (State.READY, 0)


@pytest.mark.parametrize(
    "task",
    [
        tasks.hang_async,
        tasks.hang_thread,
        pytest.param(tasks.hang_process, marks=pytest.mark.process),
        pytest.param(tasks.hang_in_a_child, marks=pytest.mark.process),
    ],
    ids=["coroutine", "thread", "process", "coroutine in a process"],
)
async def test_after_the_grace_jobs_are_ready_again_with_their_attempt_given_back(
    program: Offload, task: Any, marks: Marks, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "offload.worker")
    worker = Worker(program, grace=0.05)
    async with running(worker) as run:
        handle = await task.aenqueue(marks.folder)
        await eventually(marks)
        worker.stop()
        assert await left(run) == "stopped"
    record = await handle.arecord()
    assert (record.state, record.attempt, record.crashes, record.errors) == (State.READY, 0, 0, ())
    assert "was handed back: the worker leaves, and its grace is over" in caplog.text


async def test_a_second_stop_releases_at_once(program: Offload, marks: Marks, eventually: Eventually) -> None:
    worker = Worker(program, grace=600)
    async with running(worker) as run:
        handles = [await task.aenqueue(marks.folder) for task in (tasks.hang_async, tasks.hang_thread)]
        await eventually(lambda: len(marks()) == 2)
        worker.stop()
        await asyncio.sleep(0)
        assert not run.done()
        worker.stop()
        assert await left(run) == "stopped"
    for handle in handles:
        assert ((await handle.arecord()).state, (await handle.arecord()).attempt) == (State.READY, 0)


async def test_a_stubborn_coroutine_does_not_hold_up_the_leaving(app: Offload, impatient: None) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def stubborn() -> None:
        started.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    worker = Worker(app, grace=0)
    async with running(worker) as run:
        handle = await stubborn.aenqueue()
        await started.wait()
        worker.stop()
        assert await left(run) == "stopped"
    assert ((await handle.arecord()).state, (await handle.arecord()).attempt) == (State.READY, 0)
    go_on.set()


async def test_an_attempt_past_its_time_limit_still_counts_when_the_worker_leaves(
    app: Offload, impatient: None, eventually: Eventually
) -> None:
    told, go_on = asyncio.Event(), asyncio.Event()

    @app.task(timeout=0.02)
    async def stubborn() -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                told.set()

    worker = Worker(app, grace=0)
    async with running(worker) as run:
        handle = await stubborn.aenqueue()
        await told.wait()
        worker.stop()
        assert await left(run) == "stopped"
    record = await handle.arecord()
    assert (record.state, record.attempt, [failure.type for failure in record.errors]) == (State.SCHEDULED, 1, ["TimeoutError"])
    go_on.set()


async def test_a_task_that_returns_when_it_is_told_to_leave_has_succeeded(app: Offload, eventually: Eventually) -> None:
    started = asyncio.Event()

    @app.task
    async def careful() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "saved what there was"
        return "never"

    worker = Worker(app, grace=0)
    async with running(worker) as run:
        handle = await careful.aenqueue()
        await started.wait()
        worker.stop()
        await left(run)
    assert await handle.aresult(1) == "saved what there was"


async def test_what_was_claimed_ahead_is_handed_back(
    app: Offload, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "offload.worker")
    monkeypatch.setattr(executor, "HAND_BACK_AFTER", 600)
    blocking, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def work(block: bool) -> None:
        if block:
            blocking.set()
            await go_on.wait()

    worker = Worker(app, concurrency=1, grace=600)
    await app.aenqueue_many([work.job(number == 2_000) for number in range(2_301)])

    async def claimed() -> int:
        return (await states(app)).get(State.RUNNING, 0)

    async def claimed_ahead() -> bool:
        return await claimed() > 1

    async def handed_back() -> bool:
        return await claimed() == 1

    async with running(worker) as run:
        await blocking.wait()
        await eventually(claimed_ahead)
        worker.stop()
        await eventually(handed_back)
        go_on.set()
        await left(run)
    assert await states(app) == {State.READY: 300, State.SUCCEEDED: 2_001}
    assert "was handed back: the worker leaves" in caplog.text
    assert {record.attempt for record in await app.afind(state=State.READY, limit=300)} == {0}


async def test_work_goes_on_where_the_worker_before_left_it(app: Offload, eventually: Eventually) -> None:
    runs: list[int] = []

    @app.task
    async def work(number: int) -> None:
        runs.append(number)
        await asyncio.sleep(0)

    await app.aenqueue_many([work.job(number) for number in range(1_000)])
    for most in (100, 400, 1_000):
        worker = Worker(app, concurrency=5)
        async with running(worker) as run:
            await eventually(lambda most=most: len(runs) >= most)
            worker.stop()
            assert await left(run) == "stopped"
    assert sorted(runs) == list(range(1_000))
    assert await states(app) == {State.SUCCEEDED: 1_000}


async def test_after_max_jobs_the_worker_asks_for_a_fresh_process_and_drops_nothing(app: Offload) -> None:
    runs: list[int] = []

    @app.task
    async def work(number: int) -> None:
        runs.append(number)

    await app.aenqueue_many([work.job(number) for number in range(200)])
    async with running(Worker(app, max_jobs=50)) as run:
        assert await left(run) == "recycle"
    assert len(runs) >= 50
    await Worker(app).drain()
    assert sorted(runs) == list(range(200))


async def test_above_max_memory_the_worker_asks_for_a_fresh_process_and_lets_jobs_end(
    app: Offload, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    @app.task
    async def work(long: bool) -> str:
        if long:
            await go_on.wait()
        return "done"

    async with running(Worker(app, max_memory=1_000_000, grace=0)) as run:
        long, short = await work.aenqueue(True), await work.aenqueue(False)
        assert await short.aresult(10) == "done"
        await eventually(lambda: "due to be recycled: it uses" in caplog.text)
        assert (await long.arecord()).state is State.RUNNING
        go_on.set()
        assert await left(run) == "recycle"
    assert await long.aresult(0) == "done"


async def test_a_worker_that_is_cancelled_from_outside_hands_its_jobs_back(app: Offload, eventually: Eventually) -> None:
    started = asyncio.Event()

    @app.task
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with running(Worker(app)) as run:
        handle = await work.aenqueue()
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left(run)
    assert ((await handle.arecord()).state, (await handle.arecord()).attempt) == (State.READY, 0)


async def test_a_worker_inside_another_program_works_until_the_block_ends(app: Offload) -> None:
    @app.task
    async def work() -> str:
        return "done"

    async with Worker(app):
        assert await (await work.aenqueue()).aresult(10) == "done"
        assert len(await app.aworkers()) == 1
    assert await app.aworkers() == []
    later = await work.aenqueue()
    assert (await later.arecord()).state is State.READY


async def test_burst_ends_when_nothing_is_left(app: Offload) -> None:
    @app.task
    async def work(more: int) -> None:
        if more:
            await work.aenqueue(more - 1)

    await work.aenqueue(3)
    later = await work.using(delay=600).aenqueue(0)
    async with running(Worker(app, burst=True)) as run:
        assert await left(run) == "idle"
    assert await states(app) == {State.SUCCEEDED: 4, State.SCHEDULED: 1}
    assert (await later.arecord()).state is State.SCHEDULED
