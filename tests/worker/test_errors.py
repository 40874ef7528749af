"""Whatever a task does to end, in a coroutine, a thread or a child process: its worker records it and goes on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.worker import program as tasks
from tests.worker.program import NEVER
from tests.worker.running import ended

from offload import JobFailed, Offload, State, Worker
from offload.job import Job

pytestmark = pytest.mark.anyio

every_isolation = pytest.mark.parametrize(
    "task",
    [tasks.end_async, tasks.end_thread, pytest.param(tasks.end_process, marks=pytest.mark.process)],
    ids=["async", "thread", "process"],
)

FAULTS = {
    "ValueError": ("ValueError", "wrong"),
    "Unprintable": ("tests.worker.program.Unprintable", "<an error whose text cannot be made: __str__ raised RuntimeError>"),
    "sys.exit": ("SystemExit", "3"),
    "KeyboardInterrupt": ("KeyboardInterrupt", ""),
    "MemoryError": ("MemoryError", "no more"),
    "StopIteration": ("StopIteration", ""),
    "CancelledError": ("asyncio.exceptions.CancelledError", ""),
}


@every_isolation
async def test_every_kind_of_error_is_a_failed_attempt_and_the_worker_goes_on(program: Offload, task: Any) -> None:
    async with Worker(program, processes=1):
        for way, (kind, message) in FAULTS.items():
            handle = await task.aenqueue(way)
            record = await ended(handle)
            assert (record.state, record.reason, record.attempt) == (State.DEAD, "retries used up after 2 attempts", 2), way
            found = [(failure.attempt, failure.type, failure.message) for failure in record.errors]
            if way == "StopIteration" and task is not tasks.end_thread:  # a coroutine cannot raise it: Python makes it a RuntimeError
                assert {kind for _, kind, _ in found} <= {"RuntimeError", "StopIteration"}
            else:
                assert found == [(1, kind, message), (2, kind, message)]
            assert all("end_somehow" in failure.traceback for failure in record.errors)
        assert await (await task.aenqueue("well")).aresult(10) == "well"


@every_isolation
async def test_the_error_reaches_the_one_who_waits_for_the_result(program: Offload, task: Any) -> None:
    async with Worker(program, processes=1):
        with pytest.raises(JobFailed, match=r"is dead: ValueError: wrong \(retries used up after 2 attempts\)"):
            await (await task.aenqueue("ValueError")).aresult(20)


@every_isolation
async def test_a_task_decides_its_own_outcome(program: Offload, task: Any) -> None:
    async with Worker(program, processes=1):
        discarded = await ended(await task.aenqueue("Discard"))
        assert (discarded.state, discarded.reason, discarded.attempt) == (State.DEAD, "no such user", 1)
        later = await ended(await task.aenqueue("RetryLater"))
        assert (later.state, later.attempt, [failure.type for failure in later.errors]) == (State.DEAD, 2, ["RetryLater", "RetryLater"])


async def test_a_snoozed_job_gets_its_attempt_back_each_time(app: Offload) -> None:
    from offload import Snooze, current

    seen: list[int] = []

    @app.task(retry=NEVER)
    async def snoozes() -> int:
        seen.append(current.attempt)
        if len(seen) < 4:
            raise Snooze(0)
        return len(seen)

    handle = await snoozes.aenqueue()
    assert await Worker(app).drain() == 4
    assert await handle.aresult(1) == 4
    assert seen == [1, 1, 1, 1]
    assert (await handle.arecord()).errors == ()


async def test_errors_with_names_of_files_that_are_no_text_are_recorded(app: Offload) -> None:
    @app.task(retry=NEVER)
    async def reads() -> None:
        raise FileNotFoundError(2, "no such file", "caf\udce9.txt")

    handle = await reads.aenqueue()
    await Worker(app).drain()
    [failure] = (await handle.arecord()).errors
    assert "caf" in failure.message


async def test_delays_that_cannot_be_are_errors_of_the_task(app: Offload) -> None:
    from offload import RetryLater, Snooze

    @app.task(retry=NEVER)
    def wrong(snooze: bool) -> None:
        raise (Snooze if snooze else RetryLater)("soon")  # pyright: ignore[reportArgumentType] - the mistake

    handles = [await wrong.aenqueue(snooze) for snooze in (True, False)]
    await Worker(app).drain()
    for handle in handles:
        record = await handle.arecord()
        assert (record.state, record.errors[0].type) == (State.DEAD, "offload.errors.BadDeclaration")


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_result_that_json_cannot_carry_is_dead_by_its_result(app: Offload, kind: str) -> None:
    async def odd_async() -> Any:
        return object()

    def odd() -> Any:
        return object()

    task: Any = app.task(odd_async if kind == "async" else odd)
    handle = await task.aenqueue()
    await Worker(app).drain()
    record = await handle.arecord()
    assert (record.state, record.reason, record.attempt) == (State.DEAD, "result", 1)
    assert record.errors[0].type == "offload.errors.BadPayload"
    assert "the result cannot be carried as JSON" in record.errors[0].message


async def test_a_result_that_is_too_large_is_dead_by_its_result(app: Offload) -> None:
    @app.task
    async def large() -> str:
        return "x" * 300_000

    handle = await large.aenqueue()
    await Worker(app).drain()
    record = await handle.arecord()
    assert (record.state, record.reason) == (State.DEAD, "result")
    assert "store the data elsewhere and pass its key" in record.errors[0].message


@pytest.mark.process
@pytest.mark.parametrize("size", [0, 300_000])
async def test_results_of_child_processes_are_judged_the_same(program: Offload, size: int) -> None:
    async with Worker(program, processes=1):
        record = await ended(await tasks.result_process.aenqueue(size))
        assert (record.state, record.reason) == (State.DEAD, "result")
        large = await tasks.result_process.aenqueue(200_000)
        assert len(await large.aresult(10)) == 200_000


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize("payload", [b'{"old_name":1}', b"{}", b"[1]", b"not json", b'{"user_id":"seven"}'])
async def test_a_payload_that_does_not_fit_is_dead_by_its_payload(app: Offload, kind: str, payload: bytes) -> None:
    async def greet_async(user_id: int) -> int:
        return user_id

    def greet(user_id: int) -> int:
        return user_id

    task: Any = app.task(name="greet", log=("user_id",))(greet_async if kind == "async" else greet)
    await (await app.client()).enqueue([Job(id="j", task="greet", payload=payload, enqueued_at=app.clock.now())])
    async with Worker(app):
        record = await ended(app.handle("j"))
        assert (record.state, record.reason, record.attempt) == (State.DEAD, "payload", 1)
        assert "greet(user_id: int) -> int cannot be called so: " in record.errors[0].message
        assert await app.aretry("j", payload={"user_id": 7}) == {"j"}
        assert await app.handle("j").aresult(10) == 7
        assert await (await task.aenqueue(8)).aresult(10) == 8


@pytest.mark.process
async def test_a_payload_that_does_not_fit_a_child_process_is_dead_too(program: Offload) -> None:
    await (await program.client()).enqueue([Job(id="j", task="process.end", payload=b'{"where":1}', enqueued_at=program.clock.now())])
    async with Worker(program, processes=1):
        assert ((await ended(program.handle("j"))).state, (await ended(program.handle("j"))).reason) == (State.DEAD, "payload")
        await program.aretry("j", payload={"way": "well"})
        assert await program.handle("j").aresult(10) == "well"
