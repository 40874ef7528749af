"""One worker's standing with a memory store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from offload.broker import Session
from offload.brokers.memory import claiming, upkeep
from offload.brokers.memory.bell import heard
from offload.brokers.memory.settling import settle
from offload.brokers.memory.tallies import settle_up
from offload.errors import SessionLost
from offload.job import Beat, Due, Isolation, Job, Lease, Outcome, Pulse, Release, State, Upkeep, WorkerInfo
from offload.liveness import Watch

if TYPE_CHECKING:
    from offload.brokers.memory.broker import MemoryBroker
    from offload.brokers.memory.line import Entry


class MemorySession(Session):
    """Leases are fenced by this session's id and the claim."""

    def __init__(self, broker: MemoryBroker, id: str, info: WorkerInfo, rung: asyncio.Event) -> None:
        self.id = id
        self._rung = rung
        self.info = info
        self.beats = 0
        self.started_at = self.beat_at = broker.clock.now()
        self._broker = broker
        self._watch = Watch(info.session_timeout, info.heartbeat)
        self._dead: list[tuple[str, int]] = []
        self._rotation = 0

    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        """Claim ready jobs; see `Session.fetch`."""
        with self._broker.lock:
            if self.id not in self._broker.live:
                raise SessionLost(f"session {self.id} of worker {self.info.name} is gone; open a new one")
            self._rung.clear()  # before looking, so that a ring from here on is heard by `wait`
            shelf = self._broker.shelf
            upkeep.wake(shelf)
            left = dict(room)
            taken: list[Entry] = []
            for queue in self._rotated() if queues is None else queues:
                if queue not in shelf.paused and len(taken) < limit:
                    taken += claiming.claim(shelf, queue, limit - len(taken), left, self.id, self.info, self.unknown)
            settle_up(shelf)
            return [entry.lease() for entry in taken]

    def _rotated(self) -> list[str]:
        queues = claiming.queues(self._broker.shelf)
        turn = self._rotation % len(queues) if queues else 0
        self._rotation += 1
        return queues[turn:] + queues[:turn]

    async def retain(self, held: Sequence[Lease]) -> int:
        """Hand back what is not among `held`; see `Session.retain`."""
        known = {(lease.job.id, lease.claim) for lease in held}
        with self._broker.lock:
            if self.id not in self._broker.live:
                raise SessionLost(f"session {self.id} of worker {self.info.name} is gone; open a new one")
            orphans = [entry for entry in self._broker.shelf.running(self.id) if (entry.job.id, entry.claim) not in known]
            for entry in orphans:
                settle(self._broker.shelf, entry, Release())
            settle_up(self._broker.shelf)
        self._broker.work.ring()
        self._broker.ended.ring()
        return len(orphans)

    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        """Record outcomes; see `Session.settle`."""
        lost: list[Lease] = []
        with self._broker.lock:
            for lease, outcome in settlements:
                entry = self._held(lease)
                if entry is None:
                    lost.append(lease)
                else:
                    settle(self._broker.shelf, entry, outcome)
            settle_up(self._broker.shelf)
        self._broker.work.ring()
        self._broker.ended.ring()
        return lost

    def _held(self, lease: Lease) -> Entry | None:
        entry = self._broker.shelf.entries.get(lease.job.id)
        if entry is None or entry.state is not State.RUNNING or entry.session != self.id or entry.claim != lease.claim:
            return None
        return entry

    async def beat(self, pulse: Pulse) -> Beat:
        """Show life; see `Session.beat`. Called from the keeper's thread."""
        with self._broker.lock:
            if self.id not in self._broker.live:
                return Beat(alive=False)
            self.beats += 1
            self.beat_at = self._broker.clock.now()
            for lease, progress in pulse.progress:
                if (entry := self._held(lease)) is not None:
                    entry.progress = progress
            others = {id: other.beats for id, other in self._broker.live.items() if id != self.id}
            self._dead = self._watch.observe(others, self._broker.clock.monotonic())
            asked = tuple((e.job.id, e.claim) for e in self._broker.shelf.running(self.id) if e.cancel_asked)
            return Beat(alive=True, stop=asked, rescue=bool(self._dead))

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        """Store a step's result; see `Session.remember`."""
        with self._broker.lock:
            entry = self._held(lease)
            if entry is not None:
                entry.steps[step] = value
            return entry is not None

    async def wait(self, timeout: float) -> None:
        """Wait until something changed since the last fetch."""
        with self._broker.lock:
            token_in = upkeep.next_wake(self._broker.shelf)
        await heard(self._rung, timeout if token_in is None else min(timeout, token_in))

    async def maintain(self) -> Upkeep:
        """One round of upkeep; see `Session.maintain`."""
        with self._broker.lock:
            dead, self._dead = self._dead, []
            upkeep = self._broker.maintain(dead)
        if upkeep.touched:
            self._broker.ended.ring()
        return upkeep

    async def due(self) -> list[Due]:
        """The schedules whose tick has come."""
        with self._broker.lock:
            return self._broker.calendar.due(self._broker.clock.now())

    async def tick(self, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> bool:
        """Fire a tick once; see `Session.tick`."""
        with self._broker.lock:
            fired = self._broker.calendar.tick(due, next_at, jobs, self._broker.shelf)
        self._broker.work.ring()
        return fired
