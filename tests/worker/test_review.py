"""What must hold when something around the worker goes wrong: brokers that fail at odd moments, signals, long jobs, broken schedules."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker.running import ended, left, running

from offload import Offload, Retry, State, Unique, Worker, current
from offload.brokers.memory.session import MemorySession
from offload.errors import BadPayload, BrokerError
from offload.job import Draft, Schedule, WorkerInfo
from offload.worker import fetcher, keeper, maintainer

pytestmark = pytest.mark.anyio

NEVER = Retry(max_retries=0)


@pytest.fixture
def url() -> str:
    """These tests make the memory broker fail; what they hold the worker to is the same for all."""
    return "memory://"


@pytest.fixture
def drowsy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper stops beating after a fetcher's absence of tenths of a second."""
    monkeypatch.setattr(keeper, "ASLEEP", 0.2)
    monkeypatch.setattr(keeper, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(fetcher, "LONGEST_SLEEP", 0.05)


async def beats(app: Offload) -> int:
    """The beat number of the only session."""
    (session,) = await (await app.store()).sessions()
    return session.beat


async def beats_go_on(app: Offload, eventually: Eventually) -> None:
    """Far beyond the time after which a fetcher that does not come round would have silenced the keeper."""
    before = await beats(app)

    async def ten_more() -> bool:
        return await beats(app) >= before + 10

    await eventually(ten_more, within=3)


async def test_the_heart_beats_on_while_a_leaving_worker_waits_for_a_long_job(app: Offload, drowsy: None, eventually: Eventually) -> None:
    go = asyncio.Event()

    @app.task
    async def long() -> None:
        await go.wait()

    worker = Worker(app)
    async with running(worker) as task:
        handle = await long.aenqueue()
        await eventually(lambda: _in_state(handle, State.RUNNING))
        worker.stop()
        await beats_go_on(app, eventually)
        go.set()
        assert await left(task) == "stopped"
    assert (await handle.arecord()).state is State.SUCCEEDED


async def test_the_heart_beats_on_while_a_burst_waits_for_its_last_job(app: Offload, drowsy: None, eventually: Eventually) -> None:
    go = asyncio.Event()

    @app.task
    async def long() -> None:
        await go.wait()

    handle = await long.aenqueue()
    async with running(Worker(app, burst=True)) as task:
        await eventually(lambda: _in_state(handle, State.RUNNING))
        await beats_go_on(app, eventually)
        go.set()
        assert await left(task) == "idle"


async def test_the_heart_beats_on_while_drain_waits_for_a_long_job(app: Offload, drowsy: None, eventually: Eventually) -> None:
    go = asyncio.Event()

    @app.task
    async def long() -> None:
        await go.wait()

    handle = await long.aenqueue()
    draining = asyncio.create_task(Worker(app).drain())
    await eventually(lambda: _in_state(handle, State.RUNNING))
    await beats_go_on(app, eventually)
    go.set()
    assert await draining == 1


async def _in_state(handle: Any, state: State) -> bool:
    return (await handle.arecord()).state is state


async def test_a_burst_told_to_stop_leaves_within_its_grace(app: Offload, eventually: Eventually) -> None:
    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    handle = await endless.aenqueue()
    worker = Worker(app, burst=True, grace=0.05)
    async with running(worker) as task:
        await eventually(lambda: _in_state(handle, State.RUNNING))
        worker.stop()
        assert await left(task, within=5) == "stopped"
    record = await handle.arecord()
    assert (record.state, record.attempt) == (State.READY, 0)


async def test_a_burst_goes_on_fetching_while_a_long_job_runs(app: Offload) -> None:
    others = asyncio.Event()

    @app.task
    async def long() -> None:
        await others.wait()

    ran = 0

    @app.task
    def short() -> None:
        nonlocal ran
        ran += 1
        if ran == 40:
            loop.call_soon_threadsafe(others.set)

    loop = asyncio.get_running_loop()
    await long.aenqueue()
    await app.aenqueue_many([short.job() for _ in range(40)])
    async with running(Worker(app, burst=True, threads=2)) as task:
        assert await left(task, within=10) == "idle"
    assert ran == 40


class Flaky:
    """Makes one method of the memory broker's sessions fail for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception) -> None:
        self.failures = 0
        self.failing = False
        real = getattr(MemorySession, method)

        async def flaky(session: MemorySession, *args: Any) -> Any:
            if self.failing:
                self.failures += 1
                raise error
            return await real(session, *args)

        monkeypatch.setattr(MemorySession, method, flaky)


@pytest.mark.parametrize("method", ["fetch", "settle", "beat", "wait", "maintain", "due"])
async def test_a_worker_outlives_an_outage_of_the_broker(
    app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually, method: str
) -> None:
    @app.task
    async def quick() -> int:
        return 1

    flaky = Flaky(monkeypatch, method, BrokerError("away"))
    async with running(Worker(app)) as task:
        assert await (await quick.aenqueue()).aresult(10) == 1
        flaky.failing = True
        handle = await quick.aenqueue()
        await eventually(lambda: flaky.failures >= 2)
        assert not task.done()
        flaky.failing = False
        assert await handle.aresult(15) == 1


async def test_a_burst_does_not_take_an_outage_for_the_end(app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    @app.task
    async def quick() -> int:
        return 1

    handle = await quick.aenqueue()
    fetch, maintain = (Flaky(monkeypatch, method, BrokerError("away")) for method in ("fetch", "maintain"))
    fetch.failing = maintain.failing = True
    async with running(Worker(app, burst=True)) as task:
        await eventually(lambda: fetch.failures >= 2)
        fetch.failing = maintain.failing = False
        assert await left(task) == "idle"
    assert (await handle.arecord()).state is State.SUCCEEDED


@pytest.mark.parametrize("method", ["settle", "maintain"])
async def test_a_part_that_fails_unforeseen_ends_the_worker_loudly(app: Offload, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Rather than a worker that runs on without settling or upkeep, and seems well."""

    @app.task
    async def quick() -> int:
        return 1

    flaky = Flaky(monkeypatch, method, ArithmeticError("a fault in the broker"))
    flaky.failing = True
    handle = await quick.aenqueue()
    with pytest.raises(ArithmeticError, match="a fault in the broker"):
        async with asyncio.timeout(10):
            await Worker(app).run()
    flaky.failing = False
    await Worker(app).drain()
    assert (await handle.arecord()).state is State.SUCCEEDED


async def test_an_embedded_worker_opens_its_next_session_when_the_broker_is_back(
    app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    @app.task
    async def quick() -> int:
        return 1

    broker: Any = await app.client()
    real, tries = type(broker).session, 0

    def refused(self: Any, info: WorkerInfo) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BrokerError("away")
        return real(self, info)

    async with Worker(app):
        (session,) = broker.live.values()
        monkeypatch.setattr(type(broker), "session", refused)
        broker._bury(session.id)  # as another worker would after a long silence
        assert await (await quick.aenqueue()).aresult(15) == 1
    assert tries == 3


async def test_an_embedded_worker_that_cannot_start_says_why(app: Offload, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Any, info: WorkerInfo) -> Any:
        raise BrokerError("away")

    monkeypatch.setattr(type(await app.client()), "session", refused)
    with pytest.raises(BrokerError, match="away"):
        async with Worker(app):
            pass


async def test_a_worker_told_to_stop_while_the_broker_is_away_leaves(app: Offload, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = asyncio.Event()

    def refused(self: Any, info: WorkerInfo) -> Any:
        tried.set()
        raise BrokerError("away")

    monkeypatch.setattr(type(await app.client()), "session", refused)
    worker = Worker(app)
    async with running(worker) as task:
        await tried.wait()
        worker.stop()
        assert await left(task, within=2) == "stopped"


async def test_told_twice_a_worker_leaves_although_the_broker_is_away(
    app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    @app.task
    async def quick() -> None: ...

    settle = Flaky(monkeypatch, "settle", BrokerError("away"))
    settle.failing = True
    worker = Worker(app)
    async with running(worker) as task:
        await quick.aenqueue()
        await eventually(lambda: settle.failures >= 2)
        worker.stop()
        worker.stop()
        assert await left(task, within=5) == "stopped"


async def test_a_schedule_that_cannot_be_ticked_here_is_not_tried_without_pause(
    app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0
    real = maintainer.Maintainer.once

    async def counted(self: maintainer.Maintainer) -> float:
        nonlocal rounds
        rounds += 1
        return await real(self)

    monkeypatch.setattr(maintainer.Maintainer, "once", counted)
    there = Schedule(name="there", draft=Draft(task="x"), cron="* * * * *", timezone="Mars/Phobos")
    await (await app.store()).schedule(there, datetime(2020, 1, 1, tzinfo=UTC))
    async with Worker(app):
        loop = asyncio.get_running_loop()
        start, before = loop.time(), rounds
        await eventually(lambda: rounds >= before + 4)
        assert loop.time() - start > 0.5
    assert caplog.text.count("schedule there cannot be ticked by this worker") == 1


async def test_a_tick_whose_unique_key_is_taken_is_left_out_and_upkeep_goes_on(app: Offload, eventually: Eventually) -> None:
    @app.task(unique=Unique("one", on_conflict="raise"))
    async def single() -> None: ...

    @app.task
    async def later() -> int:
        return 1

    await single.using(delay=3600).aenqueue()
    rule = Schedule(name="often", draft=single.job(), every=3600)
    store = await app.store()
    await store.schedule(rule, datetime(2020, 1, 1, tzinfo=UTC))
    async with Worker(app):
        assert await (await later.using(delay=0.05).aenqueue()).aresult(10) == 1

        async def moved_on() -> bool:
            (planned,) = await store.schedules()
            return planned.next_at is not None and planned.next_at > datetime.now(UTC) and planned.fired == 0

        await eventually(moved_on)


async def test_progress_that_a_failed_beat_carried_goes_up_with_the_next(
    app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    go = asyncio.Event()

    @app.task
    async def tells() -> None:
        await go.wait()
        current.progress(0.5, "half")
        await asyncio.Event().wait()

    beat = Flaky(monkeypatch, "beat", BrokerError("away"))
    worker = Worker(app)
    async with running(worker):
        handle = await tells.aenqueue()
        await eventually(lambda: _in_state(handle, State.RUNNING))
        beat.failing = True
        go.set()
        await eventually(lambda: beat.failures >= 3)
        beat.failing = False

        async def shown() -> bool:
            progress = (await handle.arecord()).progress
            return progress is not None and progress.message == "half"

        await eventually(shown)


async def test_a_flood_in_one_lane_does_not_hold_up_what_was_claimed_for_another(app: Offload) -> None:
    turns = 0

    @app.task(keep=0)
    async def flood() -> None:
        nonlocal turns
        turns += 1
        await asyncio.sleep(0)
        if not stop.is_set():
            await flood.using(priority=1).aenqueue()

    @app.task
    def other() -> None: ...

    stop = threading.Event()
    async with Worker(app, concurrency=4):
        await app.aenqueue_many([flood.using(priority=1).job() for _ in range(400)])
        try:
            record = await ended(await other.using(priority=1).aenqueue(), 10)
        finally:
            stop.set()
    assert record.state is State.SUCCEEDED


async def test_a_bad_payload_raised_by_the_task_itself_is_a_failure_also_under_middlewares(app: Offload) -> None:
    @app.middleware
    async def through(job: Any, call_next: Any) -> Any:
        return await call_next()

    @app.task(retry=NEVER)
    async def clumsy() -> None:
        raise BadPayload("of another job, which this task wanted to enqueue")

    handle = await clumsy.aenqueue()
    await Worker(app).drain()
    record = await handle.arecord()
    assert record.reason != "payload"
    assert record.errors[0].type.endswith("BadPayload")


async def test_a_worker_that_is_cancelled_stops_what_it_runs_before_others_may_run_it(app: Offload, eventually: Eventually) -> None:
    seen: list[tuple[str, State]] = []
    begun = asyncio.Event()

    @app.task
    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(("stopped", (await current_handle().arecord()).state))

    def current_handle() -> Any:
        return app.handle(current.job.id)

    handle = await endless.aenqueue()
    task = asyncio.create_task(Worker(app).run())
    await eventually(begun.is_set)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
    assert seen == [("stopped", State.RUNNING)]
    assert (await handle.arecord()).state is State.READY


async def test_a_full_lane_is_not_searched_past_again_and_again(
    app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Each search looks at a thousand jobs that cannot be taken; short jobs in few threads would keep it at that all the time."""
    monkeypatch.setattr(fetcher, "BARREN", 2.0)
    fetches, started = 0, asyncio.Event()
    go = threading.Event()
    real = MemorySession.fetch

    async def counted(session: MemorySession, *args: Any) -> Any:
        nonlocal fetches
        fetches += 1
        return await real(session, *args)

    monkeypatch.setattr(MemorySession, "fetch", counted)
    loop = asyncio.get_running_loop()

    @app.task
    def slow() -> None:
        loop.call_soon_threadsafe(started.set)
        go.wait()

    @app.task
    async def quick() -> int:
        return 1

    async with Worker(app, threads=1):
        await slow.aenqueue()
        await started.wait()
        await slow.aenqueue()
        await eventually(lambda: fetches >= 2)
        before, start = fetches, loop.time()
        for _ in range(100):
            await slow.aenqueue()
            await asyncio.sleep(0)
        assert fetches - before <= 2
        assert await (await quick.aenqueue()).aresult(10) == 1
        assert loop.time() - start < 5
        go.set()
        await eventually(lambda: _all_succeeded(app))


async def _all_succeeded(app: Offload) -> bool:
    return set((await app.acounts())["default"]) == {State.SUCCEEDED}


def test_threads_of_the_event_loop_that_never_end_do_not_hold_up_leaving() -> None:
    program = """
import asyncio, os, signal, time
from offload import Offload, Worker
from offload.worker.process import leave, work
app = Offload("memory://")
at_work = 0

@app.task
async def blocks():
    global at_work
    at_work += 1
    if at_work == 40:
        os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.to_thread(time.sleep, 1000)

def make():
    app.enqueuing = asyncio.get_running_loop().create_task(app.aenqueue_many([blocks.job() for _ in range(40)]))
    return Worker(app, grace=0.1)

leave(work(make))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 0


async def test_a_fault_in_a_beat_costs_no_session(app: Offload, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    go, attempts = asyncio.Event(), 0

    @app.task
    async def steady() -> int:
        nonlocal attempts
        attempts += 1
        await go.wait()
        return attempts

    beat = Flaky(monkeypatch, "beat", ArithmeticError("a fault"))
    async with running(Worker(app)):
        handle = await steady.aenqueue()
        await eventually(lambda: _in_state(handle, State.RUNNING))
        beat.failing = True
        await eventually(lambda: beat.failures >= 3)
        beat.failing = False
        before = await beats(app)

        async def beats_again() -> bool:
            return await beats(app) > before

        await eventually(beats_again)
        go.set()
        assert await handle.aresult(10) == 1


async def test_progress_may_tell_of_a_file_whose_name_is_no_text(tmp_path: Path, eventually: Eventually) -> None:
    app = Offload(f"sqlite:///{tmp_path}/offload.db?synchronous=normal", heartbeat=0.05, session_timeout=5)

    @app.task
    async def names() -> None:
        current.progress(0.5, "\udc80.txt")
        await asyncio.Event().wait()

    async with app, running(Worker(app)):
        handle = await names.aenqueue()

        async def told() -> bool:
            return (await handle.arecord()).progress is not None

        await eventually(told)
        record = await handle.arecord()
    assert record.progress is not None
    assert (record.progress.message, record.attempt) == ("\\udc80.txt", 1)
