"""The heartbeat goes on whatever the worker's loop does, and stops when the worker can no longer be trusted to work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.conftest import Eventually

from offload.brokers.memory import MemoryBroker
from offload.brokers.memory.session import MemorySession
from offload.clock import SystemClock
from offload.job import Beat, Job, Lease, Progress, WorkerInfo
from offload.worker import keeper
from offload.worker.keeper import Keeper
from offload.worker.patience import Outage

pytestmark = pytest.mark.anyio


INFO = WorkerInfo(name="worker", host="h", pid=1, tasks={"work": "async"}, session_timeout=15, heartbeat=3)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(SystemClock())


@pytest.fixture
async def session(broker: MemoryBroker) -> AsyncIterator[MemorySession]:
    async with broker.session(INFO) as session:
        yield session


class Kept:
    """A keeper at work, and what it told."""

    def __init__(self, session: MemorySession, heartbeat: float = 0.02) -> None:
        self.told: list[Beat] = []
        self.keeper = Keeper(session, heartbeat, self.told.append, lambda: "shop.blocks 7", Outage())


def block(until: Callable[[], object], within: float = 10.0) -> None:
    """Hold the event loop until a condition holds."""
    deadline = time.monotonic() + within
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_it_beats_at_once_and_then_regularly(session: MemorySession, eventually: Eventually) -> None:
    kept = Kept(session)
    async with kept.keeper:
        await eventually(lambda: session.beats > 5)
    after = session.beats
    await asyncio.sleep(0)
    assert session.beats == after
    assert kept.told == []


async def test_it_beats_while_the_event_loop_is_blocked(session: MemorySession) -> None:
    async with Kept(session).keeper:
        before = session.beats
        block(lambda: session.beats > before + 5)


async def test_it_stops_beating_when_the_loop_does_not_turn_for_long(
    session: MemorySession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    monkeypatch.setattr(keeper, "BLOCKED", 0.3)
    monkeypatch.setattr(keeper, "LOOK_EVERY", 0.02)
    async with Kept(session).keeper:
        block(lambda: "its event loop has not turned for 0.3 s" in caplog.text)
        silent, later = session.beats, time.monotonic() + 0.2
        block(lambda: time.monotonic() > later)
        assert session.beats == silent
        await eventually(lambda: session.beats > silent)
    assert caplog.text.count("stops its heartbeat") == 1


async def test_it_stops_beating_when_the_fetcher_does_not_come_round(
    session: MemorySession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    monkeypatch.setattr(keeper, "ASLEEP", 0.2)
    monkeypatch.setattr(keeper, "LOOK_EVERY", 0.02)
    kept = Kept(session)
    async with kept.keeper:
        kept.keeper.came_round()
        await eventually(lambda: "it has asked for no work for 0.2 s" in caplog.text)
        silent, later = session.beats, time.monotonic() + 0.2
        await eventually(lambda: time.monotonic() > later)
        assert session.beats == silent
        kept.keeper.came_round()
        await eventually(lambda: session.beats > silent)


async def test_a_blocked_loop_is_named_once_each_time(
    session: MemorySession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    monkeypatch.setattr(keeper, "WARN", 0.05)
    monkeypatch.setattr(keeper, "LOOK_EVERY", 0.05)

    def blocked() -> list[str]:
        return [record.message for record in caplog.records if "the event loop is blocked" in record.message]

    async with Kept(session).keeper:
        before = session.beats
        block(lambda: len(blocked()) == 1 and session.beats > before + 10)
        assert len(blocked()) == 1
        beats = session.beats
        await eventually(lambda: session.beats > beats + 10)
        block(lambda: len(blocked()) == 2)
    assert all("by shop.blocks 7;" in line and "in block: " in line for line in blocked())


async def test_the_loss_of_the_session_is_told_once(broker: MemoryBroker, session: MemorySession, eventually: Eventually) -> None:
    kept = Kept(session)
    async with kept.keeper:
        await eventually(lambda: session.beats > 1)
        with broker.lock:
            del broker.live[session.id]
        await eventually(lambda: kept.told)
    assert kept.told == [Beat(alive=False)]


async def test_life_is_shown_by_a_beat_begun_after_the_question(session: MemorySession, eventually: Eventually) -> None:
    kept = Kept(session, heartbeat=600)
    async with kept.keeper:
        await eventually(lambda: session.beats == 1)
        async with asyncio.timeout(10):
            await kept.keeper.lives()
            assert session.beats == 2
            await kept.keeper.lives()
            assert session.beats == 3


async def test_no_life_is_shown_for_a_session_that_is_gone(broker: MemoryBroker, session: MemorySession, eventually: Eventually) -> None:
    kept = Kept(session, heartbeat=600)
    async with kept.keeper:
        await eventually(lambda: session.beats == 1)
        with broker.lock:
            del broker.live[session.id]
        waiting = asyncio.create_task(kept.keeper.lives())
        await eventually(lambda: kept.told)
        assert not waiting.done()
        waiting.cancel()
    assert kept.told == [Beat(alive=False)]


async def test_cancelling_is_told_by_the_next_beat(broker: MemoryBroker, session: MemorySession, eventually: Eventually) -> None:
    await broker.enqueue([Job(id="j", task="work", enqueued_at=broker.clock.now())])
    [lease] = await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})
    kept = Kept(session)
    async with kept.keeper:
        await broker.cancel(["j"])
        await eventually(lambda: kept.told)
    assert kept.told[0].stop == (("j", lease.claim),)


async def test_progress_goes_up_before_the_next_beat_is_due(
    broker: MemoryBroker, session: MemorySession, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(keeper, "PROGRESS_EVERY", 0.01)
    await broker.enqueue([Job(id="j", task="work", enqueued_at=broker.clock.now())])
    [lease] = await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})
    kept = Kept(session, heartbeat=600)
    async with kept.keeper:
        await eventually(lambda: session.beats == 1)
        for n in range(100):
            kept.keeper.report(lease, Progress(n / 100, "so far"))

        async def shown() -> Any:
            return (await broker.get(["j"]))["j"].progress == Progress(0.99, "so far")

        await eventually(shown)
    assert session.beats < 20


async def test_progress_of_a_lost_lease_is_dropped(broker: MemoryBroker, session: MemorySession, eventually: Eventually) -> None:
    await broker.enqueue([Job(id="j", task="work", enqueued_at=broker.clock.now())])
    [lease] = await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})
    kept = Kept(session)
    async with kept.keeper:
        kept.keeper.report(Lease(lease.job, lease.claim + 1, 1), Progress(0.5))
        before = session.beats
        await eventually(lambda: session.beats > before + 3)
    assert (await broker.get(["j"]))["j"].progress is None
