"""How an attempt is ended when its time is over: in a coroutine, a thread, a child process, or while the event loop is blocked."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker.program import (
    NEVER,
    ONCE,
    Marks,
    hang_async,
    hang_in_a_child,
    hang_process,
    hang_thread,
    look_process,
    stubborn_process,
)
from tests.worker.running import ended, left, running

from offload import Offload, Retry, State, Worker, current

pytestmark = pytest.mark.anyio


async def test_a_coroutine_gets_cancelled_error_and_may_clean_up(app: Offload) -> None:
    seen: list[str] = []

    @app.task(timeout=0.05, retry=NEVER)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    async with Worker(app):
        handle = await slow.aenqueue()
        record = await ended(handle)
    assert record.state is State.DEAD
    assert [(failure.type, failure.message) for failure in record.errors] == [("TimeoutError", "timed out after 0.05 s")]
    assert "asyncio.Event().wait()" in record.errors[0].traceback
    assert seen == ["cleaned up"]


async def test_a_time_limit_counts_as_a_failure_and_is_retried(app: Offload) -> None:
    @app.task(timeout=0.05, retry=ONCE)
    async def slow_at_first() -> int:
        if current.attempt == 1:
            await asyncio.Event().wait()
        return current.attempt

    async with Worker(app):
        handle = await slow_at_first.aenqueue()
        assert await handle.aresult(10) == 2
        assert [failure.type for failure in (await handle.arecord()).errors] == ["TimeoutError"]


async def test_a_policy_sees_the_timeout_as_a_timeout_error(app: Offload) -> None:
    @app.task(timeout=0.05, retry=Retry(never=(TimeoutError,)))
    async def slow() -> None:
        await asyncio.Event().wait()

    async with Worker(app):
        assert (await ended(await slow.aenqueue())).reason == "TimeoutError is never retried"


async def test_using_changes_the_time_limit_of_one_job(app: Offload) -> None:
    @app.task(retry=NEVER)
    async def slow() -> None:
        await asyncio.Event().wait()

    async with Worker(app):
        record = await ended(await slow.using(timeout=0.02).aenqueue())
    assert record.errors[0].message == "timed out after 0.02 s"


async def test_a_coroutine_that_swallows_the_cancellation_is_cancelled_again(app: Offload, impatient: None) -> None:
    swallowed = 0

    @app.task(timeout=0.05, retry=NEVER)
    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    async with Worker(app):
        record = await ended(await stubborn.aenqueue())
    assert (record.state, swallowed) == (State.DEAD, 3)
    assert record.errors[0].type == "TimeoutError"


async def test_a_value_returned_after_the_time_limit_comes_too_late(app: Offload) -> None:
    @app.task(timeout=0.05, retry=NEVER)
    async def late() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"
        return "never"

    async with Worker(app):
        record = await ended(await late.aenqueue())
    assert (record.state, record.result) == (State.DEAD, None)
    assert record.errors[0].type == "TimeoutError"


async def test_a_thread_gets_an_exception_where_it_stands(program: Offload, marks: Marks) -> None:
    async with Worker(program):
        record = await ended(await hang_thread.using(timeout=0.5).aenqueue(marks.folder))
    assert record.state is State.DEAD
    assert (record.errors[0].type, record.errors[0].message) == ("TimeoutError", "timed out after 0.5 s")
    assert "hang_thread" in record.errors[0].traceback


async def test_a_thread_whose_task_was_stopped_runs_the_next_one(app: Offload) -> None:
    @app.task(retry=NEVER)
    def work(forever: bool) -> int:
        while forever:
            time.sleep(0.005)
        return threading.get_ident()

    async with Worker(app, threads=1):
        first = await work.aenqueue(False)
        thread = await first.aresult(10)
        assert (await ended(await work.using(timeout=0.3).aenqueue(True))).state is State.DEAD
        assert await (await work.aenqueue(False)).aresult(10) == thread


async def test_a_thread_that_swallows_the_exception_gets_another(app: Offload, impatient: None) -> None:
    swallowed = 0

    @app.task(timeout=0.5, retry=NEVER)
    def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                while True:
                    time.sleep(0.005)
            except BaseException:  # noqa: BLE001 - the fault that is tested
                swallowed += 1
        while True:
            time.sleep(0.005)

    async with Worker(app):
        assert (await ended(await stubborn.aenqueue())).state is State.DEAD
    assert swallowed == 2


@pytest.fixture
def stuck() -> Iterator[threading.Lock]:
    """A lock that is taken: to wait for it is C code, which no exception reaches."""
    lock = threading.Lock()
    lock.acquire()
    yield lock
    if lock.locked():
        lock.release()


async def test_a_thread_stuck_in_c_gives_its_slot_back_and_makes_the_worker_recycle(
    app: Offload, impatient: None, stuck: threading.Lock, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(retry=NEVER, log=("what",))
    def block(what: str) -> str:
        if what == "for ever":
            stuck.acquire()
        return what

    async with running(Worker(app, threads=1, concurrency=1, grace=0.1)) as run:
        handle = await block.using(timeout=0.5).aenqueue("for ever")
        other = await block.aenqueue("short")
        assert await other.aresult(10) == "short"
        assert (await handle.arecord()).state is State.RUNNING
        assert await left(run) == "recycle"
    [line] = [record for record in caplog.records if "its thread does not end" in record.message]
    assert line.levelno == logging.ERROR
    assert "what='for ever'" in line.message
    assert "test_time_limits.py" in line.message
    assert "stuck.acquire()" in line.message
    assert any("due to be recycled: a thread will not end" in record.message for record in caplog.records)
    record = await handle.arecord()
    assert (record.state, record.errors[0].type) == (State.DEAD, "TimeoutError")


async def test_inside_another_program_a_stuck_thread_does_not_end_the_worker(
    app: Offload, impatient: None, stuck: threading.Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offload.worker.LOOK_AT_LIMITS_EVERY", 0.02)

    @app.task(retry=NEVER)
    def block(forever: bool) -> str:
        if forever:
            stuck.acquire()
        return "done"

    async with Worker(app, threads=1, concurrency=1):
        handle = await block.using(timeout=0.5).aenqueue(True)
        for _ in range(20):
            assert await (await block.aenqueue(False)).aresult(10) == "done"
        assert (await handle.arecord()).state is State.RUNNING
        stuck.release()
        assert (await ended(handle)).state is State.DEAD
        assert await (await block.aenqueue(False)).aresult(10) == "done"


async def test_a_stuck_thread_that_ends_after_all_settles_why_it_was_stopped(
    app: Offload, impatient: None, stuck: threading.Lock, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    @app.task
    async def keeps_the_worker() -> None:
        await go_on.wait()

    @app.task(retry=NEVER)
    def block() -> str:
        stuck.acquire()
        return "too late"

    async with running(Worker(app)) as run:
        other = await keeps_the_worker.aenqueue()
        handle = await block.using(timeout=0.5).aenqueue()
        await eventually(lambda: "due to be recycled" in caplog.text)
        stuck.release()
        record = await ended(handle)
        assert (record.state, record.result, record.errors[0].type) == (State.DEAD, None, "TimeoutError")
        assert not run.done()
        go_on.set()
        assert await left(run) == "recycle"
    assert (await other.arecord()).state is State.SUCCEEDED


@pytest.mark.process
async def test_a_child_process_gets_sigterm_and_serves_on_or_is_replaced(program: Offload, marks: Marks) -> None:
    async with Worker(program, processes=1):
        await (await look_process.aenqueue()).aresult(20)
        for task in (hang_process, hang_in_a_child):
            record = await ended(await task.using(timeout=0.1).aenqueue(marks.folder))
            assert (record.state, record.errors[0].type) == (State.DEAD, "TimeoutError")
        assert (await (await look_process.aenqueue()).aresult(20))["attempt"] == 1


@pytest.mark.process
async def test_a_child_process_that_ignores_sigterm_gets_sigkill(program: Offload, marks: Marks, impatient: None) -> None:
    async with Worker(program, processes=1):
        before = (await (await look_process.aenqueue()).aresult(20))["pid"]
        record = await ended(await stubborn_process.using(timeout=0.3).aenqueue(marks.folder))
        assert (record.state, record.errors[0].type) == (State.DEAD, "TimeoutError")
        assert marks() == ["started"]
        assert (await (await look_process.aenqueue()).aresult(20))["pid"] != before


async def test_a_coroutine_of_the_program_is_ended_too(program: Offload, marks: Marks) -> None:
    async with Worker(program):
        assert (await ended(await hang_async.using(timeout=0.1).aenqueue(marks.folder))).state is State.DEAD


async def test_a_blocked_loop_is_logged_with_task_and_line(app: Offload, eventually: Eventually, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(name="shop.blocks", log=("who",))
    async def blocks(who: str) -> None:
        until = time.monotonic() + 10
        while not blocked() and time.monotonic() < until:
            time.sleep(0.02)  # noqa: ASYNC251 - the fault that is tested

    def blocked() -> list[str]:
        return [record.message for record in caplog.records if "the event loop is blocked" in record.message]

    async with Worker(app):
        handle = await blocks.aenqueue("ada")
        await handle.aresult(20)
    [line] = blocked()
    assert f"shop.blocks {handle.id} who='ada'" in line
    assert "test_time_limits.py" in line
    assert "in blocks: time.sleep(0.02)" in line or "in blocks: while not blocked()" in line


async def test_a_time_limit_holds_in_a_middleware_too(app: Offload) -> None:
    @app.middleware
    async def hangs(job: Any, call_next: Callable[[], Awaitable[Any]]) -> Any:
        if current.attempt == 1:
            await asyncio.Event().wait()
        return await call_next()

    @app.task(timeout=0.4, retry=ONCE)
    def quick() -> int:
        return current.attempt

    async with Worker(app):
        handle = await quick.aenqueue()
        assert await handle.aresult(10) == 2
        assert [failure.type for failure in (await handle.arecord()).errors] == ["TimeoutError"]
