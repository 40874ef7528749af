"""A store in this process's memory. What it does is what every store does; what it holds dies with the process."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import ClassVar, Self
from urllib.parse import urlsplit
from uuid import uuid4

from offload.broker import Feature, Store
from offload.brokers.memory import control, enqueueing, moves, reading, settling, tallies, upkeep
from offload.brokers.memory.bell import Bell, heard
from offload.brokers.memory.calendar import Calendar
from offload.brokers.memory.session import MemorySession
from offload.brokers.memory.shelf import Shelf
from offload.clock import Clock
from offload.errors import BadDeclaration
from offload.gates import page_of
from offload.job import Job, LimitChange, Schedule, State, TallyKind, Touched, Upkeep, WorkerInfo
from offload.records import Facts, Filter, LimitRecord, Record, ScheduleRecord, SessionRecord, Standing, Tally

LONGEST_WAIT = 60.0


class MemoryBroker(Store):
    """Safe from any thread and loop of the process: every verb runs whole under one lock."""

    features: ClassVar[frozenset[Feature]] = frozenset(Feature)
    durable: ClassVar[bool] = False

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.shelf = Shelf(clock)
        self.calendar = Calendar()
        self.live: dict[str, MemorySession] = {}
        self.work = Bell()
        self.ended = Bell()

    @classmethod
    def connect(cls, url: str, clock: Clock) -> Self:
        """An empty store. `memory://` takes no name, path or option."""
        if url.rstrip("/") != "memory:":
            raise BadDeclaration(
                f"{url!r}: memory:// takes nothing after it; use sqlite:///{urlsplit(url).netloc or 'file.db'} to keep jobs in a file"
            )
        return cls(clock)

    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        """Store jobs; see `Broker.enqueue`."""
        with self.lock:
            ids = enqueueing.store(self.shelf, jobs)
        self.work.ring()
        return ids

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncGenerator[MemorySession]:
        """Open a session; see `Broker.session`."""
        with self.work.listening() as rung:
            session = MemorySession(self, uuid4().hex, worker, rung)
            with self.lock:
                self.live[session.id] = session
                for schedule, next_at in worker.schedules:
                    self.calendar.put(schedule, next_at, declared=True)
                moves.declare(self.shelf, worker.limits)
            try:
                yield session
            finally:
                with self.lock:
                    if self.live.pop(session.id, None) is not None:
                        settling.release(self.shelf, session.id)
                self.work.ring()

    def maintain(self, dead: Sequence[tuple[str, int]]) -> Upkeep:
        """One bounded round of upkeep. The lock is held."""
        touched = [t for id, beat in dead if id in self.live and self.live[id].beats == beat for t in self._bury(id)]
        upkeep.wake(self.shelf)
        promoted = upkeep.promote(self.shelf)
        expired = upkeep.expire(self.shelf)
        tallies.abandon(self.shelf)
        forgotten = upkeep.forget(self.shelf)
        if touched or promoted or expired:  # only then: who is woken calls again
            self.work.ring()
        now = self.clock.now()
        if self.calendar.set_back(now):
            self.shelf.gating.look_again(self.shelf.moment())
        self.calendar.prune(now, {s.name for session in self.live.values() for s, _ in session.info.schedules})
        if upkeep.WINDOW in (promoted, len(expired), forgotten):
            return Upkeep(0.0, (*touched, *expired))
        moments = [m for m in (upkeep.next_moment(self.shelf), self.calendar.next_moment()) if m is not None]
        wait = min(((m - now).total_seconds() for m in moments), default=LONGEST_WAIT)
        return Upkeep(min(max(wait, 0.0), LONGEST_WAIT), (*touched, *expired))

    def _bury(self, id: str) -> list[Touched]:
        del self.live[id]
        return settling.rescue(self.shelf, id)

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        """Records by id."""
        with self.lock:
            return {id: reading.record(self.shelf, entry) for id in ids if (entry := self.shelf.entries.get(id)) is not None}

    async def find(self, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
        """Records that match; see `Store.find`."""
        with self.lock:
            return reading.find(self.shelf, filter, limit, after)

    async def counts(self) -> dict[str, dict[State, int]]:
        """Numbers by queue and state."""
        with self.lock:
            return reading.counts(self.shelf)

    def _each(self, ids: Sequence[str], act: Callable[[Shelf, str], bool]) -> set[str]:
        with self.lock:
            done = {id for id in dict.fromkeys(ids) if act(self.shelf, id)}
            tallies.settle_up(self.shelf)
        self.work.ring()
        self.ended.ring()
        return done

    async def cancel(self, ids: Sequence[str]) -> set[str]:
        """Cancel jobs; see `Store.cancel`."""
        return self._each(ids, control.cancel)

    async def retry(self, ids: Sequence[str], payload: bytes | None = None) -> set[str]:
        """Revive jobs; see `Store.retry`."""
        return self._each(ids, lambda shelf, id: control.revive(shelf, id, payload))

    async def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete jobs; see `Store.delete`."""
        return self._each(ids, control.delete)

    async def pause(self, queue: str) -> None:
        """Pause a queue."""
        with self.lock:
            self.shelf.paused.add(queue)

    async def resume(self, queue: str) -> None:
        """Resume a queue."""
        with self.lock:
            self.shelf.paused.discard(queue)
        self.work.ring()

    async def paused(self) -> set[str]:
        """The paused queues."""
        with self.lock:
            return set(self.shelf.paused)

    async def finished(self, ids: Sequence[str], timeout: float) -> dict[str, Record]:
        """Wait for jobs to end; see `Store.finished`."""
        deadline = monotonic() + timeout  # real time also under a test's clock: it is the caller who waits
        with self.ended.listening() as rung:
            while True:
                records = await self.get(ids)
                left = deadline - monotonic()
                if left <= 0 or all(record.state.terminal for record in records.values()):
                    return {id: record for id, record in records.items() if record.state.terminal}
                await heard(rung, min(left, 1.0))

    async def standing(self, id: str) -> Standing | None:
        """The facts about one job."""
        with self.lock:
            return reading.standing(self.shelf, id, self._sessions())

    async def schedules(self) -> list[ScheduleRecord]:
        """All schedules, by name."""
        with self.lock:
            return self.calendar.records()

    async def schedule(self, schedule: Schedule, next_at: datetime | None) -> None:
        """Store a dynamic schedule."""
        with self.lock:
            self.calendar.put(schedule, next_at, declared=False)
        self.work.ring()

    async def unschedule(self, name: str) -> bool:
        """Remove a schedule."""
        with self.lock:
            return self.calendar.planned.pop(name, None) is not None

    async def pause_schedule(self, name: str, paused: bool, next_at: datetime | None = None) -> bool:
        """Pause or resume a schedule."""
        with self.lock:
            planned = self.calendar.planned.get(name)
            if planned is None:
                return False
            planned.paused = paused
            if not paused:
                planned.next_at = next_at
        self.work.ring()
        return True

    async def fire(self, name: str, job: Job) -> str | None:
        """Enqueue an extra job of a schedule."""
        with self.lock:
            planned = self.calendar.planned.get(name)
            id = None if planned is None else self.calendar.enqueue(planned, job, self.shelf)
        self.work.ring()
        return id

    async def limits(self, limit: int = 1_000, after: str | None = None, key: str | None = None) -> list[LimitRecord]:
        """What keys allow, and who holds them."""
        with self.lock:
            return reading.limits(self.shelf, page_of(self.shelf.gating.known(self.shelf.moment()), limit, after, key))

    async def set_limit(self, key: str, change: LimitChange) -> None:
        """Change what a key allows."""
        with self.lock:
            moves.set_limit(self.shelf, key, change)
        self.work.ring()

    async def open_batch(self, id: str, name: str, callbacks: Sequence[Job]) -> None:
        """Begin a batch."""
        with self.lock:
            enqueueing.open_batch(self.shelf, id, name, callbacks)

    async def seal_batch(self, id: str) -> bool:
        """Let no more jobs come from outside."""
        return self._each([id], tallies.seal) == {id}

    async def stop(self, kind: TallyKind, id: str) -> bool:
        """Cancel all jobs of a workflow or batch."""
        return self._each([id], lambda shelf, id: tallies.stop(shelf, kind, id)) == {id}

    async def tallies(self, kind: TallyKind, ids: Sequence[str] | None = None, limit: int = 100, after: str | None = None) -> list[Tally]:
        """Workflows or batches; see `Store.tallies`."""
        with self.lock:
            return tallies.tallies(self.shelf, kind, ids, limit, after)

    async def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first."""
        with self.lock:
            return self._sessions()

    def _sessions(self) -> list[SessionRecord]:
        return [
            SessionRecord(
                id=session.id,
                info=session.info,
                beat=session.beats,
                beat_at=session.beat_at,
                started_at=session.started_at,
                running=len(self.shelf.running(session.id)),
            )
            for session in self.live.values()
        ]

    async def inspect(self) -> Facts:
        """What `doctor` judges by."""
        with self.lock:
            return reading.facts(self.shelf, self._sessions(), self.calendar.records())

    async def migrate(self) -> tuple[int, int]:
        """There is no schema to bring up to date."""
        return (1, 1)
