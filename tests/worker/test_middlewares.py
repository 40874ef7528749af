"""Middlewares wrap every attempt, whatever it runs in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker import program as tasks
from tests.worker.program import NEVER, ONCE, Marks
from tests.worker.running import ended, left, running

from offload import Discard, Job, Offload, State, Worker, current

pytestmark = pytest.mark.anyio

CallNext = Callable[[], Awaitable[Any]]

every_isolation = pytest.mark.parametrize(
    "task",
    [tasks.end_async, tasks.end_thread, pytest.param(tasks.end_process, marks=pytest.mark.process)],
    ids=["async", "thread", "process"],
)


@pytest.fixture
def wrapped(program: Offload) -> Iterator[Offload]:
    """The program, whose middlewares go with the test."""
    yield program
    program.middlewares.clear()


@every_isolation
async def test_the_first_declared_is_outermost(wrapped: Offload, task: Any) -> None:
    calls: list[str] = []

    def middleware(name: str) -> None:
        @wrapped.middleware
        async def wrap(job: Job, call_next: CallNext) -> Any:
            calls.append(f"{name} before {job.task}")
            result = await call_next()
            calls.append(f"{name} after {result}")
            return result

    middleware("outer")
    middleware("inner")
    async with Worker(wrapped, processes=1):
        assert await (await task.aenqueue("well")).aresult(20) == "well"
    assert calls == [f"outer before {task.name}", f"inner before {task.name}", "inner after well", "outer after well"]


@every_isolation
async def test_a_middleware_may_change_the_result(wrapped: Offload, task: Any) -> None:
    @wrapped.middleware
    async def shout(job: Job, call_next: CallNext) -> Any:
        return (await call_next()).upper()

    async with Worker(wrapped, processes=1):
        assert await (await task.aenqueue("well")).aresult(20) == "WELL"


@every_isolation
async def test_a_middleware_sees_failures_and_lets_them_pass(wrapped: Offload, task: Any) -> None:
    seen: list[int] = []

    @wrapped.middleware
    async def watch(job: Job, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except Exception:
            seen.append(current.attempt)
            raise

    async with Worker(wrapped, processes=1):
        record = await ended(await task.aenqueue("ValueError"))
    assert [(failure.type, failure.message) for failure in record.errors] == [("ValueError", "wrong")] * 2
    assert seen == [1, 2]


async def forgive(job: Job, call_next: CallNext) -> Any:
    try:
        return await call_next()
    except Exception:  # noqa: BLE001 - what the tests are about
        return "forgiven"


@every_isolation
async def test_a_middleware_may_turn_a_failure_into_a_result(wrapped: Offload, task: Any) -> None:
    wrapped.middleware(forgive)
    async with Worker(wrapped, processes=1):
        assert await (await task.aenqueue("ValueError")).aresult(20) == "forgiven"


@every_isolation
async def test_a_middleware_that_forgives_failures_does_not_swallow_directives(wrapped: Offload, task: Any) -> None:
    wrapped.middleware(forgive)
    async with Worker(wrapped, processes=1):
        assert (await ended(await task.aenqueue("Discard"))).reason == "no such user"
        assert (await ended(await task.aenqueue("Cancel"))).state is State.CANCELLED


@every_isolation
async def test_a_middleware_sees_what_the_task_raised(wrapped: Offload, task: Any) -> None:
    seen: list[str] = []

    @wrapped.middleware
    async def watch(job: Job, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except Exception as error:
            seen.append(str(error).removeprefix("ValueError: "))
            raise

    async with Worker(wrapped, processes=1):
        await ended(await task.aenqueue("ValueError"))
    assert seen == ["wrong"] * 2


@every_isolation
async def test_what_a_middleware_raises_is_the_failure(wrapped: Offload, task: Any) -> None:
    @wrapped.middleware
    async def refuse(job: Job, call_next: CallNext) -> Any:
        await call_next()
        raise PermissionError("not today")

    async with Worker(wrapped, processes=1):
        record = await ended(await task.aenqueue("well"))
    assert [failure.type for failure in record.errors] == ["PermissionError"] * 2


@every_isolation
async def test_directives_of_the_task_and_of_a_middleware_hold(wrapped: Offload, task: Any) -> None:
    @wrapped.middleware
    async def closed(job: Job, call_next: CallNext) -> Any:
        if b"well" in job.payload:
            raise Discard("closed")
        return await call_next()

    async with Worker(wrapped, processes=1):
        assert (await ended(await task.aenqueue("well"))).reason == "closed"
        assert (await ended(await task.aenqueue("Discard"))).reason == "no such user"
        assert (await ended(await task.aenqueue("Cancel"))).state is State.CANCELLED


async def test_a_middleware_need_not_run_the_task(app: Offload) -> None:
    calls: list[int] = []

    @app.task
    async def work() -> str:
        calls.append(1)
        return "worked"

    @app.middleware
    async def cache(job: Job, call_next: CallNext) -> Any:
        return "cached"

    handle = await work.aenqueue()
    assert await Worker(app).drain() == 1
    assert (await handle.aresult(1), calls) == ("cached", [])


async def test_a_result_a_middleware_made_that_cannot_be_encoded_is_dead(app: Offload) -> None:
    @app.task
    async def work() -> str:
        return "worked"

    @app.middleware
    async def spoil(job: Job, call_next: CallNext) -> Any:
        return object()

    handle = await work.aenqueue()
    await Worker(app).drain()
    assert ((await handle.arecord()).state, (await handle.arecord()).reason) == (State.DEAD, "result")


async def test_a_payload_that_does_not_fit_is_dead_behind_middlewares_too(app: Offload) -> None:
    @app.middleware
    async def plain(job: Job, call_next: CallNext) -> Any:
        return await call_next()

    for name, function in (("async", nothing_async), ("thread", nothing)):
        app.task(name=name)(function)
        await (await app.client()).enqueue([Job(id=name, task=name, payload=b'{"x":1}', enqueued_at=app.clock.now())])
    await Worker(app).drain()
    for name in ("async", "thread"):
        assert ((await app.handle(name).arecord()).state, (await app.handle(name).arecord()).reason) == (State.DEAD, "payload")


async def nothing_async() -> None: ...


def nothing() -> None: ...


@pytest.mark.parametrize(
    "task",
    [tasks.hang_async, tasks.hang_thread, pytest.param(tasks.hang_process, marks=pytest.mark.process)],
    ids=["async", "thread", "process"],
)
async def test_stopping_works_through_middlewares(
    wrapped: Offload, task: Any, marks: Marks, impatient: None, eventually: Eventually
) -> None:
    @wrapped.middleware
    async def plain(job: Job, call_next: CallNext) -> Any:
        return await call_next()

    worker = Worker(wrapped, grace=0)
    async with running(worker) as run:
        late = await ended(await task.using(timeout=0.5).aenqueue(marks.folder))
        assert (late.state, late.errors[0].type) == (State.DEAD, "TimeoutError")
        handle = await task.aenqueue(marks.folder)
        await eventually(lambda: len(marks()) == 2)
        await handle.acancel()
        assert (await ended(handle)).state is State.CANCELLED
        handle = await task.aenqueue(marks.folder)
        await eventually(lambda: len(marks()) == 3)
        worker.stop()
        await left(run)
    assert ((await handle.arecord()).state, (await handle.arecord()).attempt) == (State.READY, 0)


@pytest.mark.parametrize("stop", ["timeout", "cancel"])
async def test_what_was_stopped_in_a_middleware_does_not_start_its_task(app: Offload, stop: str, eventually: Eventually) -> None:
    started, calls = asyncio.Event(), []

    @app.middleware
    async def swallows(job: Job, call_next: CallNext) -> Any:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await call_next()

    @app.task(retry=NEVER)
    def work() -> None:
        calls.append(1)

    async with Worker(app):
        handle = await (work.using(timeout=0.05) if stop == "timeout" else work).aenqueue()
        await started.wait()
        if stop == "cancel":
            await handle.acancel()
        assert (await ended(handle)).state is (State.DEAD if stop == "timeout" else State.CANCELLED)
    assert calls == []


async def test_retries_pass_through_the_middlewares_again(app: Offload) -> None:
    attempts: list[int] = []

    @app.middleware
    async def count(job: Job, call_next: CallNext) -> Any:
        attempts.append(current.attempt)
        return await call_next()

    @app.task(retry=ONCE)
    def fails() -> None:
        raise ValueError("no")

    await fails.aenqueue()
    assert await Worker(app).drain() == 2
    assert attempts == [1, 2]
