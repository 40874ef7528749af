"""Jobs can be cancelled in every state, and a running one is stopped whatever it runs in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker import program as tasks
from tests.worker.program import ONCE, Marks
from tests.worker.running import ended

from offload import JobCancelled, Offload, State, Unique, Worker, current
from offload.broker import Session
from offload.job import Cancelled, Isolation, Lease, Outcome, Progress, WorkerInfo
from offload.worker.attempt import LocalAttempt
from offload.worker.children import Children
from offload.worker.executor import Executor
from offload.worker.news import News

pytestmark = pytest.mark.anyio


in_a_child = pytest.mark.process


async def test_what_has_not_started_is_cancelled_at_once(app: Offload) -> None:
    @app.task(unique=Unique("only one", on_conflict="keep_last"))
    async def work() -> None: ...

    ready = await work.aenqueue()
    waiting = await work.aenqueue()
    scheduled = await work.using(delay=60, unique="another").aenqueue()
    states = [(await handle.arecord()).state for handle in (ready, waiting, scheduled)]
    assert states == [State.READY, State.WAITING, State.SCHEDULED]
    for handle in (scheduled, waiting, ready):
        assert await handle.acancel()
        assert (await handle.arecord()).state is State.CANCELLED
    assert await Worker(app).drain() == 0


@pytest.mark.parametrize(
    "task",
    [
        tasks.hang_async,
        tasks.hang_thread,
        pytest.param(tasks.hang_process, marks=in_a_child),
        pytest.param(tasks.hang_in_a_child, marks=in_a_child),
    ],
    ids=["coroutine", "thread", "process", "coroutine in a process"],
)
async def test_a_running_job_is_stopped_and_never_retried(
    program: Offload, task: Any, marks: Marks, impatient: None, eventually: Eventually
) -> None:
    async with Worker(program):
        handle = await task.aenqueue(marks.folder)
        await eventually(marks)
        assert await handle.acancel()
        record = await ended(handle)
        assert (record.state, record.reason, record.attempt) == (State.CANCELLED, "cancelled", 1)
        with pytest.raises(JobCancelled):
            await handle.aresult()
        assert not await handle.acancel()
    assert marks() == ["started"]


@pytest.mark.parametrize("end", ["return", "raise"])
@pytest.mark.parametrize("task", [tasks.watch_thread, pytest.param(tasks.watch_process, marks=in_a_child)], ids=["thread", "process"])
async def test_a_task_that_looks_sees_that_it_was_cancelled_and_may_end_by_itself(
    program: Offload, task: Any, end: str, marks: Marks, eventually: Eventually
) -> None:
    async with Worker(program):
        handle = await task.aenqueue(marks.folder, end)
        await eventually(marks)
        await handle.acancel()
        record = await ended(handle)
    assert (record.state, record.result) == (State.CANCELLED, None)
    assert marks() == ["started", "saw it"]


async def test_a_coroutine_that_swallows_the_cancellation_and_returns_is_cancelled(app: Offload, eventually: Eventually) -> None:
    started = asyncio.Event()

    @app.task
    async def stubborn() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    async with Worker(app):
        handle = await stubborn.aenqueue()
        await started.wait()
        await handle.acancel()
        record = await ended(handle)
    assert (record.state, record.result) == (State.CANCELLED, None)


async def test_what_succeeded_before_it_was_told_stays_succeeded(url: str, eventually: Eventually) -> None:
    app = Offload(url, heartbeat=5)

    @app.task
    async def quick() -> str:
        assert await app.acancel(current.job.id) == {current.job.id}
        return "done"

    async def has_beaten() -> bool:  # its first beat, which comes at once, would tell it; the next is far off
        [session] = await app.aworkers()
        return session.beat > 0

    async with Worker(app):
        await eventually(has_beaten)
        handle = await quick.aenqueue()
        assert await handle.aresult(10) == "done"
        assert (await handle.arecord()).state is State.SUCCEEDED
    await app.aclose()


async def test_what_failed_before_it_was_told_is_cancelled_and_not_retried(url: str) -> None:
    app = Offload(url, heartbeat=5)

    @app.task(retry=ONCE)
    async def fails() -> str:
        await app.acancel(current.job.id)
        raise ValueError("no")

    async with Worker(app):
        record = await ended(await fails.aenqueue())
    assert (record.state, record.attempt) == (State.CANCELLED, 1)
    await app.aclose()


async def test_a_succeeded_job_cannot_be_cancelled(app: Offload) -> None:
    @app.task
    async def quick() -> str:
        return "done"

    handle = await quick.aenqueue()
    await Worker(app).drain()
    assert not await handle.acancel()
    assert (await handle.arecord()).state is State.SUCCEEDED


async def test_only_the_jobs_that_were_asked_for_are_stopped(app: Offload, eventually: Eventually) -> None:
    running: set[int] = set()
    go_on = asyncio.Event()

    @app.task
    async def work(number: int) -> int:
        running.add(number)
        await go_on.wait()
        return number

    async with Worker(app):
        handles = [await work.aenqueue(number) for number in range(5)]
        await eventually(lambda: len(running) == 5)
        assert await app.acancel([handles[1].id, handles[3].id]) == {handles[1].id, handles[3].id}
        for number in (1, 3):
            assert (await ended(handles[number])).state is State.CANCELLED
        go_on.set()
        assert [await handles[number].aresult(10) for number in (0, 2, 4)] == [0, 2, 4]


async def test_a_cancelled_job_gives_its_slot_to_the_next(app: Offload, eventually: Eventually) -> None:
    @app.task
    async def work(forever: bool) -> None:
        if forever:
            await asyncio.Event().wait()

    async with Worker(app, concurrency=1):
        first = await work.aenqueue(True)
        await eventually(lambda: is_running(first))
        second = await work.aenqueue(False)
        await first.acancel()
        assert (await ended(second)).state is State.SUCCEEDED


async def is_running(handle: Any) -> bool:
    return (await handle.arecord()).state is State.RUNNING


@pytest.mark.parametrize(
    "task", [tasks.end_async, tasks.end_thread, pytest.param(tasks.end_process, marks=in_a_child)], ids=["async", "thread", "process"]
)
async def test_a_task_cancels_itself(program: Offload, task: Any) -> None:
    async with Worker(program):
        record = await ended(await task.aenqueue("Cancel"))
    assert (record.state, record.reason, record.attempt) == (State.CANCELLED, "changed my mind", 1)


async def test_a_job_cancelled_while_a_thread_waits_for_its_step_is_stopped(app: Offload, impatient: None, eventually: Eventually) -> None:
    started = asyncio.Event()

    @app.task
    def work() -> None:
        current.progress(0.5)
        current.step("one", lambda: 1)
        loop.call_soon_threadsafe(started.set)
        while True:
            current.step("two", lambda: None)
            del attempt_of().steps["two"]

    loop = asyncio.get_running_loop()
    async with Worker(app):
        handle = await work.aenqueue()
        await started.wait()
        await handle.acancel()
        assert (await ended(handle)).state is State.CANCELLED
        assert await Worker(app).drain() == 0


def attempt_of() -> Any:
    from offload.current import attempt_var

    return attempt_var.get()


class Ends:
    """Takes the outcomes of an executor, as the settler does."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outcomes: list[Outcome] = []

    def put(self, attempt: LocalAttempt, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def report(self, lease: Lease, progress: Progress, /) -> None: ...

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        return await self.session.remember(lease, step, value)


async def test_what_is_stopped_before_its_first_step_still_ends_and_gives_its_slot_back(app: Offload) -> None:
    @app.task(name="coroutine")
    async def coroutine() -> None:
        await asyncio.Event().wait()

    tasks: dict[str, Isolation] = {"coroutine": "async"}
    async with (await app.client()).session(WorkerInfo(name="w", host="h", pid=1, tasks=tasks)) as session:
        await coroutine.aenqueue()
        [lease] = await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})
        executor, ends = Executor(app, 1, 1, Children(0, None), News(app), None), Ends(session)
        executor.start([lease], ends)
        executor.cancel([(lease.job.id, lease.claim)])
        async with asyncio.timeout(10):
            await executor.idle()
        await executor.close()
    assert ends.outcomes == [Cancelled()]
    assert executor.lanes["async"].running == 0
