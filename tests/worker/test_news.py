"""What a worker tells: events to observers, log lines to people."""

from __future__ import annotations

import asyncio
import logging
from typing import get_args

import pytest
from tests.conftest import Eventually
from tests.worker.program import ONCE
from tests.worker.running import ended, left, running

from offload import Cancel, Discard, Event, Offload, Retry, RetryLater, Snooze, State, Worker
from offload.events import EventName
from offload.job import Job, WorkerInfo
from offload.testing.clock import TestClock

pytestmark = pytest.mark.anyio


def observed(app: Offload, *names: EventName) -> list[Event]:
    """What observers of these events, or of all, are told from now on."""
    events: list[Event] = []
    for name in names or get_args(EventName):
        app.on(name)(events.append)
    return events


def told(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.name, event.attempt) for event in events]


async def test_a_retry_that_was_asked_for_is_logged_with_its_unit(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(name="later")
    async def later() -> None:
        raise RetryLater(3)

    handle = await later.aenqueue()
    await Worker(app).drain()
    assert f"later {handle.id} failed, attempt 1; again in 3 s: asked to be run again in 3 s" in caplog.text


async def test_the_life_of_a_job_is_told(app: Offload) -> None:
    events = observed(app)

    @app.task(name="shop.work", queue="mail", retry=Retry(max_retries=1, initial=0))
    async def work(way: str) -> str:
        match way:
            case "well":
                return "well"
            case "badly":
                raise ValueError("wrong")
            case "cancel":
                raise Cancel("changed my mind")
            case _:
                raise Discard("no such user")

    for way in ("well", "badly", "cancel", "discard"):
        events.clear()
        handle = await work.aenqueue(way)
        await Worker(app).drain()
        assert {(event.id, event.task, event.queue) for event in events} == {(handle.id, "shop.work", "mail")}
        match way:
            case "well":
                assert told(events) == [("enqueued", 0), ("started", 1), ("succeeded", 1)]
                assert events[-1].seconds is not None
            case "badly":
                assert told(events) == [("enqueued", 0), ("started", 1), ("retrying", 1), ("started", 2), ("dead", 2)]
                assert (events[2].delay, events[2].reason) == (0, "ValueError: wrong")
                assert events[4].reason == "retries used up after 2 attempts"
            case "cancel":
                assert told(events) == [("enqueued", 0), ("started", 1), ("cancelled", 1)]
                assert events[-1].reason == "changed my mind"
            case _:
                assert told(events) == [("enqueued", 0), ("started", 1), ("dead", 1)]
                assert events[-1].reason == "no such user"


async def test_a_failure_is_told_with_what_was_raised(app: Offload) -> None:
    told: list[tuple[str, str]] = []

    def note(event: Event) -> None:
        told.append((event.name, repr(event.error)))

    app.on("retrying")(note)
    app.on("dead")(note)

    @app.task(retry=Retry(max_retries=1, initial=0))
    async def fails() -> None:
        raise ValueError("wrong")

    @app.task(retry=False)
    def fails_in_thread() -> None:
        raise KeyError("gone")

    await fails.aenqueue()
    await fails_in_thread.aenqueue()
    await Worker(app).drain()
    assert sorted(told) == [("dead", "KeyError('gone')"), ("dead", "ValueError('wrong')"), ("retrying", "ValueError('wrong')")]


async def test_a_release_is_told(app: Offload) -> None:
    events = observed(app, "released")
    started = asyncio.Event()

    @app.task
    async def work(snooze: bool) -> None:
        if snooze:
            raise Snooze(60)
        started.set()
        await asyncio.Event().wait()

    worker = Worker(app, grace=0)
    async with running(worker) as run:
        handle = await work.aenqueue(False)
        await started.wait()
        worker.stop()
        await left(run)
    await handle.acancel()
    await work.aenqueue(True)
    await Worker(app).drain()
    assert [(event.name, event.delay) for event in events] == [("released", 0), ("released", 60)]


async def test_an_expiry_is_told(timed: Offload, clock: TestClock) -> None:
    events = observed(timed, "expired", "started")

    @timed.task(expires_in=60)
    async def work() -> None: ...

    handle = await work.aenqueue()
    clock.advance(61)
    await Worker(timed).drain()
    assert [(event.name, event.id) for event in events] == [("expired", handle.id)]


async def test_a_rescue_is_told(app: Offload, eventually: Eventually) -> None:
    quick = Offload(app.url, heartbeat=0.05, session_timeout=0.3)
    quick.producer.clients = app.producer.clients
    events = observed(quick, "rescued", "succeeded")

    @quick.task(name="work")
    async def work() -> str:
        return "done"

    dead = (await app.client()).session(WorkerInfo(name="dead", host="h", pid=1, tasks={"work": "async"}))
    session = await dead.__aenter__()
    handle = await work.aenqueue()
    assert len(await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})) == 1
    async with Worker(quick):
        assert await handle.aresult(20) == "done"
    assert [(event.name, event.id, event.attempt) for event in events] == [("rescued", handle.id, 0), ("succeeded", handle.id, 1)]
    assert (await handle.arecord()).crashes == 1
    await dead.__aexit__(None, None, None)


async def test_a_failing_observer_changes_nothing(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    after: list[str] = []

    @app.task(retry=ONCE)
    async def work(well: bool) -> str:
        if not well:
            raise ValueError("wrong")
        return "done"

    for name in ("enqueued", "started", "succeeded", "retrying", "dead"):

        @app.on(name)
        async def fails(event: Event) -> None:
            raise RuntimeError("observer")

        @app.on(name)
        def also(event: Event) -> None:
            after.append(event.name)

    async with Worker(app):
        assert await (await work.aenqueue(True)).aresult(10) == "done"
        assert (await ended(await work.aenqueue(False))).state is State.DEAD
    assert [record.levelno for record in caplog.records if "an observer of" in record.message] == [logging.ERROR] * 8
    assert after == ["enqueued", "started", "succeeded", "enqueued", "started", "retrying", "started", "dead"]


async def test_an_observer_may_be_async(app: Offload) -> None:
    seen: list[str] = []

    @app.on("succeeded")
    async def look(event: Event) -> None:
        seen.append((await app.handle(event.id).arecord()).state)

    @app.task
    async def work() -> None: ...

    await work.aenqueue()
    await Worker(app).drain()
    assert seen == ["SUCCEEDED"]


# -- log lines -----------------------------------------------------------------------------------------------------------------


async def test_each_end_is_one_line_with_the_arguments_asked_for_and_fields(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "offload.worker")

    @app.task(name="shop.login", queue="mail", log=("user", "token"), mask=("token",), retry=Retry(max_retries=1, initial=0))
    async def login(user: str, token: str, way: str) -> None:
        match way:
            case "badly":
                raise ValueError("wrong")
            case "cancel":
                raise Cancel("no")
            case "snooze":
                raise Snooze(120)
            case _:
                return

    expected = {
        "well": [(logging.DEBUG, "started"), (logging.INFO, "succeeded in")],
        "badly": [
            (logging.DEBUG, "started"),
            (logging.WARNING, "failed, attempt 1; again in 0 s: ValueError: wrong"),
            (logging.DEBUG, "started"),
            (logging.ERROR, "is dead: retries used up after 2 attempts (ValueError: wrong)"),
        ],
        "cancel": [(logging.DEBUG, "started"), (logging.INFO, "was cancelled: no")],
        "snooze": [(logging.DEBUG, "started"), (logging.INFO, "was handed back for 120 s: it raised Snooze")],
    }
    for way, lines in expected.items():
        caplog.clear()
        handle = await login.aenqueue("ada", "s3cret", way)
        await Worker(app).drain()
        found = [record for record in caplog.records if record.name == "offload.worker"]
        title = f"shop.login {handle.id} user='ada' "
        assert [(record.levelno, record.message.startswith(title + text)) for record, (_, text) in zip(found, lines, strict=True)] == [
            (level, True) for level, _ in lines
        ], [record.message for record in found]
        assert {(r.job_id, r.task, r.queue) for r in found} == {(handle.id, "shop.login", "mail")}  # pyright: ignore[reportAttributeAccessIssue] - extra fields
        assert [r.attempt for r in found][-1] == (2 if way == "badly" else 1)  # pyright: ignore[reportAttributeAccessIssue] - an extra field
        assert "s3cret" not in caplog.text


async def test_a_payload_that_cannot_be_read_is_logged_without_arguments(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(name="work", log=("user",))
    async def work(user: str) -> None: ...

    for number, payload in enumerate((b"7", b"[]", b"{", b'"user"', b"null")):
        await (await app.client()).enqueue([Job(id=f"j{number}", task="work", payload=payload, enqueued_at=app.clock.now())])
    assert await Worker(app).drain() == 5
    assert {(await app.handle(f"j{number}").arecord()).reason for number in range(5)} == {"payload"}
    assert len([record for record in caplog.records if "is dead: payload" in record.message]) == 5


async def test_rescued_and_expired_jobs_are_logged(timed: Offload, clock: TestClock, caplog: pytest.LogCaptureFixture) -> None:
    @timed.task(name="work", expires_in=60)
    async def work() -> None: ...

    handle = await work.aenqueue()
    clock.advance(61)
    await Worker(timed).drain()
    [record] = [record for record in caplog.records if "expired" in record.message]
    assert record.message.startswith(f"work {handle.id} expired")
    assert (record.job_id, record.task) == (handle.id, "work")  # pyright: ignore[reportAttributeAccessIssue] - extra fields
