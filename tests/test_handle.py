"""What becomes of a job, asked through its handle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from offload import (
    Handle,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    Offload,
    ResultTimeout,
    State,
    chain,
)
from offload.job import Dead, Done, Failure, Outcome, Retried, WorkerInfo
from offload.testing.clock import START, TestClock

ROOM = {"async": 10, "thread": 10, "process": 10}


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def app(clock: TestClock) -> Offload:
    return Offload("memory://", clock=clock)


async def born(year: int) -> date:
    return date(year, 1, 1)


async def settle(app: Offload, outcome: Callable[[], Outcome] | Outcome) -> None:
    """Run the next job by hand, with this outcome."""
    client = await app.client()
    info = WorkerInfo(name="w", host="h", pid=1, tasks={name: task.isolation for name, task in app.tasks.items()})
    async with client.session(info) as session:
        [lease] = await session.fetch(None, 1, ROOM)  # pyright: ignore[reportArgumentType]
        assert await session.settle([(lease, outcome() if callable(outcome) else outcome)]) == []


def test_the_result_has_the_type_of_the_return_annotation(app: Offload) -> None:
    task = app.task(born)

    async def main() -> None:
        handle = await task.aenqueue(2000)
        await settle(app, Done(task.arguments.encode_result(date(2000, 1, 1))))
        assert await handle.aresult(timeout=5) == date(2000, 1, 1)
        assert await app.handle(handle.id).aresult() == date(2000, 1, 1)
        assert (await handle.arecord()).result == "2000-01-01"

    asyncio.run(main())


def test_the_result_of_a_task_that_is_unknown_here_is_plain_json(app: Offload) -> None:
    other = Offload("memory://")
    other.producer.clients = app.producer.clients
    task = other.task(name="born")(born)
    handle = app.enqueue("born", year=2000)
    asyncio.run(settle(other, Done(task.arguments.encode_result(date(2000, 1, 1)))))
    assert handle.result() == "2000-01-01"


def test_no_result_is_none(app: Offload) -> None:
    handle = app.task(born).enqueue(1)
    asyncio.run(settle(app, Done()))
    assert handle.result() is None


def test_a_waiting_caller_is_woken_by_the_end_of_the_job(app: Offload) -> None:
    handle = app.task(born).enqueue(2000)
    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.append(handle.result(timeout=30)))
    waiting.start()
    asyncio.run(settle(app, Done(b'"2000-01-01"')))
    waiting.join(10)
    assert results == [date(2000, 1, 1)]


def test_a_dead_job_raises_with_its_last_error(app: Offload) -> None:
    handle = app.task(name="born")(born).enqueue(2000)
    asyncio.run(settle(app, Retried(0, Failure(1, START, "OSError", "first", "Traceback 1"))))
    asyncio.run(settle(app, Dead("retries used up after 2 attempts", Failure(2, START, "ValueError", "bad year", "Traceback 2"))))
    with pytest.raises(JobFailed) as raised:
        handle.result()
    assert str(raised.value) == f"job {handle.id} (born) is dead: ValueError: bad year (retries used up after 2 attempts)"
    assert [failure.traceback for failure in raised.value.record.errors] == ["Traceback 1", "Traceback 2"]


def test_a_job_that_is_dead_without_an_error_raises_with_its_reason(app: Offload) -> None:
    handle = app.task(name="born")(born).enqueue(2000)
    asyncio.run(settle(app, Dead("crashed")))
    with pytest.raises(JobFailed, match="is dead: crashed"):
        handle.result()


def test_a_discarded_job_says_its_reason_once(app: Offload) -> None:
    handle = app.task(name="born")(born).enqueue(2000)
    asyncio.run(settle(app, Dead("no such user", Failure(1, START, "Discard", "no such user"))))
    with pytest.raises(JobFailed) as raised:
        handle.result()
    assert str(raised.value) == f"job {handle.id} (born) is dead: Discard: no such user"


def test_a_cancelled_job_raises(app: Offload) -> None:
    handle = app.task(born).enqueue(2000)
    assert handle.cancel()
    assert handle.record().state is State.CANCELLED
    with pytest.raises(JobCancelled, match="was cancelled"):
        handle.result()
    assert not handle.cancel()


def test_who_fell_with_another_tells_which_one_failed_and_why(app: Offload) -> None:
    task, fine = app.task(name="born", retry=False)(born), app.task(name="fine")(born)
    handle = chain(task.job(2000), fine.job(2001), fine.job(2002)).enqueue()
    asyncio.run(settle(app, Dead("no more attempts", Failure(1, START, "ValueError", "bad year", "Traceback 1"))))
    [first] = app.find(state="dead")
    told = f"job {handle.id} (fine) was cancelled, for it comes after job {first.id} (born), which ended DEAD: ValueError: bad year"
    with pytest.raises(JobCancelled) as raised:
        handle.result()
    assert str(raised.value) == told
    assert app.delete([first.id]) == {first.id}
    with pytest.raises(JobCancelled, match=f"comes after job {first.id}, of which there is no record any more"):
        handle.result()


def test_an_expired_job_raises(app: Offload, clock: TestClock) -> None:
    handle = app.task(born).using(expires_in=60).enqueue(2000)
    clock.advance(timedelta(seconds=61))

    async def look() -> None:
        async with (await app.client()).session(WorkerInfo(name="w", host="h", pid=1, tasks={})) as session:
            await session.maintain()

    asyncio.run(look())
    with pytest.raises(JobExpired, match="expired: no worker started it before 2030-01-01 12:01:00"):
        handle.result()


def test_waiting_has_a_limit_and_the_job_goes_on(app: Offload) -> None:
    handle = app.task(born).enqueue(2000)
    for timeout in (0, 0.01):
        with pytest.raises(ResultTimeout, match=r"has not ended .*it goes on"):
            handle.result(timeout=timeout)
    assert handle.record().state is State.READY


def test_who_waits_in_vain_is_told_that_no_worker_is_alive_and_what_to_ask(app: Offload) -> None:
    handle = app.task(born).enqueue(2000)
    with pytest.raises(ResultTimeout, match=r"within 0.01 seconds; it goes on\. No worker is alive; .*`offload worker`") as caught:
        handle.result(timeout=0.01)
    assert "offload why" not in str(caught.value), "no other process sees what is in memory"


def test_who_waits_in_vain_for_one_that_waits_for_its_parent_is_told_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OFFLOAD_APP", "OFFLOAD_URL"):
        monkeypatch.delenv(name, raising=False)
    app = Offload(f"sqlite:///{tmp_path}/q.db")
    task = app.task(born)
    handle = chain(task.job(2000), task.job(2001)).enqueue()
    [parent] = app.find(state="ready")
    with pytest.raises(ResultTimeout) as caught:
        handle.result(timeout=0.01)
    app.close()
    assert str(caught.value) == (
        f"job {handle.id} has not ended within 0.01 seconds; it goes on. It waits for its parent to end: {parent.id}. "
        f"`offload why {parent.id} --url sqlite:///{tmp_path}/q.db` says why that is not done. "
        "No worker is alive; start one with `offload worker`. "
        f"`offload why {handle.id} --url sqlite:///{tmp_path}/q.db` says how it stands later."
    )


@pytest.mark.parametrize(
    ("environment", "option"),
    [
        ({}, " --url 'sqlite:///{folder}/q.db?synchronous=normal'"),
        ({"OFFLOAD_APP": "shop:app"}, ""),
        ({"OFFLOAD_URL": "sqlite:///{folder}/q.db?synchronous=normal"}, ""),
        ({"OFFLOAD_URL": "sqlite:///another.db"}, " --url 'sqlite:///{folder}/q.db?synchronous=normal'"),
    ],
)
def test_the_command_that_tells_more_can_be_typed_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], option: str
) -> None:
    for name in ("OFFLOAD_APP", "OFFLOAD_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    app = Offload(f"sqlite:///{tmp_path}/q.db?synchronous=normal")
    handle = app.task(born).enqueue(2000)
    with pytest.raises(ResultTimeout) as caught:
        handle.result(timeout=0.01)
    app.close()
    assert str(caught.value).endswith(f" `offload why {handle.id}{option.format(folder=tmp_path)}` says how it stands later.")


def test_the_command_that_tells_more_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OFFLOAD_APP", "OFFLOAD_URL"):
        monkeypatch.delenv(name, raising=False)
    handle = Offload("redis://:hush@localhost/0").handle("j1")
    assert handle._option() == " --app MODULE:APP"


def test_a_job_whose_record_was_forgotten_is_not_found(app: Offload) -> None:
    handle = app.task(keep=0)(born).enqueue(2000)
    asyncio.run(settle(app, Done(b'"2000-01-01"')))
    with pytest.raises(JobNotFound, match="with keep=0 none is kept"):
        handle.result(timeout=5)
    with pytest.raises(JobNotFound):
        handle.record()


def test_an_unknown_id_is_not_found(app: Offload) -> None:
    handle = app.handle("nothing")
    for call in (handle.result, handle.record):
        with pytest.raises(JobNotFound, match="no job nothing"):
            call()
    assert not handle.cancel()


def test_handles_of_one_job_are_equal(app: Offload) -> None:
    handle = app.task(born).enqueue(1)
    assert handle == app.handle(handle.id)
    assert len({handle, app.handle(handle.id), app.handle("other")}) == 2
    assert handle != handle.id
    assert repr(handle) == f"Handle({handle.id!r})"
    assert isinstance(handle, Handle)
