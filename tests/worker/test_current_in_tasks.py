"""What a task sees of its own attempt in a coroutine, a thread and a child process."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker import program as tasks
from tests.worker.program import Marks

from offload import Job, NotInTask, Offload, Progress, Retry, Worker, current

pytestmark = pytest.mark.anyio

child = pytest.mark.process


def isolations(*in_turn: Any) -> pytest.MarkDecorator:
    names = ["async", "thread", "process"]
    return pytest.mark.parametrize(
        "task", [pytest.param(task, id=name, marks=[child] if name == "process" else []) for name, task in zip(names, in_turn, strict=True)]
    )


@isolations(tasks.look_async, tasks.look_thread, tasks.look_process)
async def test_a_task_sees_its_job_its_attempt_and_what_the_lifespan_opened(program: Offload, task: Any) -> None:
    async with Worker(program, processes=1):
        handle = await task.aenqueue()
        seen = await handle.aresult(20)
    assert (seen["id"], seen["attempt"], seen["cancelled"]) == (handle.id, 1, False)
    assert seen["state"]["pid"] == seen["pid"]
    assert (seen["pid"] == os.getpid()) == (task is not tasks.look_process)


@child
async def test_a_coroutine_in_a_child_process_sees_the_same(program: Offload) -> None:
    async with Worker(program, processes=1):
        handle = await tasks.look_in_a_child.aenqueue()
        seen = await handle.aresult(20)
    assert (seen["id"], seen["attempt"]) == (handle.id, 1)
    assert seen["state"]["pid"] == seen["pid"] != os.getpid()


@isolations(tasks.report_async, tasks.report_thread, tasks.report_process)
async def test_progress_is_readable_while_the_job_runs(program: Offload, task: Any, marks: Marks, eventually: Eventually) -> None:
    async with Worker(program, processes=1):
        handle = await task.aenqueue(marks.folder)

        async def progress() -> Any:
            return (await handle.arecord()).progress

        assert await eventually(progress) == Progress(0.4, "resizing")
        (Path(marks.folder) / "seen").touch()
        await handle.aresult(10)


@isolations(tasks.steps_async, tasks.steps_thread, tasks.steps_process)
async def test_a_step_is_remembered_by_the_next_attempt(program: Offload, task: Any, marks: Marks) -> None:
    async with Worker(program, processes=1):
        handle = await task.aenqueue(marks.folder)
        assert await handle.aresult(20) == [1, 2, 2]
        record = await handle.arecord()
    assert marks().count("first") == 1
    assert record.steps == {"first": 1, "second": 2}
    assert [failure.message for failure in record.errors] == ["between the steps"]


@pytest.mark.parametrize("again", [False, True], ids=["one attempt", "two attempts"])
async def test_only_within_one_attempt_is_a_step_of_the_same_name_warned_of(
    app: Offload, caplog: pytest.LogCaptureFixture, again: bool
) -> None:
    sent: list[int] = []

    def send(number: int) -> int:
        sent.append(number)
        return number

    @app.task(retry=Retry(initial=0))
    def letters() -> None:
        current.step("send", send, current.attempt)
        if not again:
            current.step("send", send, 7)
        elif current.attempt == 1:
            raise OSError("down")

    async with Worker(app):
        await (await letters.aenqueue()).aresult(20)
    assert sent == [1]
    said = [record for record in caplog.records if "took the step 'send' more than once" in record.getMessage()]
    assert len(said) == (0 if again else 1)


async def test_a_middleware_that_calls_again_begins_with_no_names(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    tries: list[int] = []

    @app.middleware
    async def twice(job: Job, call_next: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call_next()
        except OSError:
            return await call_next()

    @app.task
    async def flaky() -> int:
        tries.append(await current.astep("one", lambda: 1))
        if len(tries) == 1:
            raise OSError("down")
        return len(tries)

    async with Worker(app):
        assert await (await flaky.aenqueue()).aresult(20) == 2
    assert "more than once" not in caplog.text


@isolations(tasks.note_async, tasks.note_thread, tasks.note_process)
async def test_context_variables_do_not_leak_into_the_next_attempt(program: Offload, task: Any) -> None:
    async with Worker(program, threads=1, processes=1):
        for _ in range(3):
            assert await (await task.aenqueue()).aresult(20) == "nothing"


@isolations(tasks.enqueue_async, tasks.enqueue_thread, tasks.enqueue_process)
async def test_a_task_enqueues_jobs(program: Offload, task: Any, url: str) -> None:
    if task is tasks.enqueue_process and url == "memory://":
        pytest.skip("a store in memory is not seen from other processes")
    async with Worker(program, processes=1):
        other = await (await task.aenqueue()).aresult(20)
        assert (await program.handle(other).aresult(20))["id"] == other


async def test_the_enqueuing_code_and_the_worker_are_outside_of_every_attempt(program: Offload) -> None:
    async with Worker(program):
        await (await tasks.look_async.aenqueue()).aresult(20)
        with pytest.raises(NotInTask):
            _ = current.job


async def test_wrong_progress_is_an_error_of_the_task_and_the_worker_goes_on(app: Offload) -> None:
    @app.task(retry=False)
    async def wrong(fraction: float, message: str) -> str:
        current.progress(fraction, message)
        return "reported"

    async with Worker(app):
        handle = await wrong.aenqueue(1.5, "")
        with pytest.raises(Exception, match="a fraction from 0 to 1"):
            await handle.aresult(10)
        assert await (await wrong.aenqueue(0.5, "caf\\udce9")).aresult(10) == "reported"


async def test_odd_progress_messages_do_not_stop_the_heartbeat(app: Offload, eventually: Eventually) -> None:
    reported: list[bool] = []

    @app.task(retry=False)
    async def reports() -> str:
        if not reported:
            reported.append(True)
            current.progress(0.5, "caf\udce9")
        else:
            current.progress(0.7, "plain")
        await eventually(shown)
        return "reported"

    async def shown() -> bool:
        return (await current_handle().arecord()).progress is not None

    def current_handle() -> Any:
        return app.handle(current.job.id)

    async with Worker(app):
        for _ in range(2):
            handle = await reports.aenqueue()
            assert await handle.aresult(20) == "reported"
            assert (await handle.arecord()).attempt == 1
