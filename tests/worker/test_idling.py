"""When a worker asks for jobs, and when it may sleep: never while jobs are ready for which it has room."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from tests.conftest import Eventually
from tests.worker.conftest import EVERYWHERE

from offload import Offload, State, Worker
from offload.broker import Session
from offload.brokers.memory import MemoryBroker
from offload.brokers.memory.session import MemorySession
from offload.clock import SystemClock
from offload.job import Isolation, Lease, Upkeep, WorkerInfo
from offload.worker import fetcher, maintainer

pytestmark = pytest.mark.anyio
engines = EVERYWHERE
SOON = 3.0
"""Seconds that are well below those after which a worker asks although nothing woke it."""


class QuietSession(MemorySession):
    """One that tells no news, and whose answers can be held up: `answers` is clear while they are."""

    answers: asyncio.Event
    calls: list[tuple[int, int]]
    """Of each fetch, the room for threads that it asked for and how many jobs it took."""
    held_up = 0
    asleep = False

    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        leases = await super().fetch(queues, limit, room)
        self.calls.append((room["thread"], len(leases)))
        self.held_up += 1
        await self.answers.wait()
        self.held_up -= 1
        return leases

    async def wait(self, timeout: float) -> None:
        self.asleep = True
        try:
            await asyncio.sleep(timeout)
        finally:
            self.asleep = False


class QuietBroker(MemoryBroker):
    """A store in memory with one such session."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.answers = asyncio.Event()
        self.answers.set()
        self.calls: list[tuple[int, int]] = []
        self.opened_session: QuietSession | None = None

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncIterator[Session]:
        async with super().session(worker) as session:
            quiet = self.opened_session = QuietSession(self, session.id, worker, asyncio.Event())
            quiet.answers, quiet.calls = self.answers, self.calls
            yield quiet

    @property
    def quiet(self) -> QuietSession:
        assert self.opened_session is not None
        return self.opened_session


class Blocking:
    """Jobs in threads, each of which ends when it is told to."""

    def __init__(self, app: Offload) -> None:
        self.running: set[int] = set()
        self._ends: dict[int, threading.Event] = defaultdict(threading.Event)

        @app.task
        def block(number: int) -> None:
            self.running.add(number)
            self._ends[number].wait(20)
            self.running.discard(number)

        self.task = block

    def end(self, *numbers: int) -> None:
        for number in numbers:
            self._ends[number].set()


@pytest.fixture
def broker() -> QuietBroker:
    return QuietBroker()


@pytest.fixture
def quiet(broker: QuietBroker) -> Offload:
    app = Offload("memory://", heartbeat=0.05, session_timeout=30)
    app.producer.clients.broker = broker
    return app


async def test_threads_that_come_free_while_a_fetch_is_under_way_are_filled_at_once(
    quiet: Offload, broker: QuietBroker, eventually: Eventually
) -> None:
    jobs = Blocking(quiet)
    await quiet.aenqueue_many([jobs.task.job(number) for number in range(8)])
    async with Worker(quiet, threads=4):
        try:
            await eventually(lambda: jobs.running == {0, 1, 2, 3} and broker.quiet.asleep)
            broker.answers.clear()
            jobs.end(0)
            await eventually(lambda: broker.calls[-1] == (1, 1) and broker.quiet.held_up)
            jobs.end(1, 2, 3)
            await eventually(lambda: succeeded(quiet, 4))
            broker.answers.set()
            await eventually(lambda: jobs.running == {4, 5, 6, 7}, SOON)
        finally:
            jobs.end(*range(8))


async def test_a_worker_without_room_for_what_is_ready_asks_once_and_sleeps(
    quiet: Offload, broker: QuietBroker, eventually: Eventually
) -> None:
    jobs = Blocking(quiet)
    await quiet.aenqueue_many([jobs.task.job(number) for number in range(8)])
    async with Worker(quiet, threads=4):
        try:
            await eventually(lambda: jobs.running == {0, 1, 2, 3} and broker.quiet.asleep)
            assert broker.calls == [(4, 4), (0, 0)], "once more, for what may stand behind jobs that find no room"
        finally:
            jobs.end(*range(8))
        await eventually(lambda: succeeded(quiet, 8))


async def test_a_worker_that_took_all_there_was_sleeps_without_asking_again(
    quiet: Offload, broker: QuietBroker, eventually: Eventually
) -> None:
    jobs = Blocking(quiet)
    await quiet.aenqueue_many([jobs.task.job(number) for number in range(3)])
    async with Worker(quiet, threads=4):
        try:
            await eventually(lambda: jobs.running == {0, 1, 2} and broker.quiet.asleep)
            assert broker.calls == [(4, 3)]
        finally:
            jobs.end(*range(3))


async def test_a_job_behind_others_without_room_is_found_though_nothing_tells_of_it(
    quiet: Offload, broker: QuietBroker, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "BARREN", 0.5)
    jobs = Blocking(quiet)

    @quiet.task
    async def quick() -> None: ...

    await quiet.aenqueue_many([jobs.task.job(number) for number in range(8)])
    async with Worker(quiet, concurrency=4, threads=2):
        try:
            await eventually(lambda: (0, 0) in broker.calls)  # a search past the full lane that found nothing
            await quick.aenqueue()
            jobs.end(0)
            await eventually(lambda: succeeded(quiet, 2), SOON)
            assert jobs.running == {1, 2}
        finally:
            jobs.end(*range(8))


async def test_no_thread_idles_while_jobs_for_threads_are_ready(app: Offload, eventually: Eventually) -> None:
    started: list[float] = []

    @app.task
    def slow() -> None:
        started.append(time.monotonic())
        time.sleep(0.15)

    async with Worker(app, threads=4):
        await app.aenqueue_many([slow.job() for _ in range(32)])
        await eventually(lambda: succeeded(app, 32), 30)
    pauses = [later - sooner for sooner, later in pairwise(started)]
    assert max(pauses) < SOON


async def succeeded(app: Offload, number: int) -> bool:
    """Whether so many jobs have succeeded."""
    counts = await app.acounts()
    return sum(states.get(State.SUCCEEDED, 0) for states in counts.values()) == number


async def test_a_worker_that_is_woken_again_and_again_does_upkeep_only_so_often(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    rounds: list[float] = []
    upkeep = MemorySession.maintain

    async def maintain(self: MemorySession) -> Upkeep:
        rounds.append(time.monotonic())
        return await upkeep(self)

    async def wait(self: MemorySession, timeout: float) -> None:
        await asyncio.sleep(0.001)

    monkeypatch.setattr(MemorySession, "maintain", maintain)
    monkeypatch.setattr(MemorySession, "wait", wait)
    async with Worker(Offload("memory://")):
        await eventually(lambda: len(rounds) >= 5)
    assert all(later - earlier > 0.9 * maintainer.BREATH for earlier, later in pairwise(rounds[:5])), rounds
