"""One worker's standing with an SQLite store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime

import msgspec

from offload.broker import Session
from offload.brokers.sqlite import gating, planning, settling, upkeep
from offload.brokers.sqlite.claiming import Claim
from offload.brokers.sqlite.database import Link
from offload.brokers.sqlite.moves import Moves
from offload.brokers.sqlite.rows import SECOND, stored, text
from offload.brokers.sqlite.sharing import Shared
from offload.brokers.sqlite.transaction import Transaction
from offload.brokers.sqlite.wake import Ear
from offload.clock import Clock
from offload.errors import SessionLost
from offload.job import Beat, Due, Isolation, Job, Lease, Outcome, Pulse, Release, Upkeep, WorkerInfo
from offload.liveness import Watch

_beats = msgspec.json.Decoder(dict[str, int]).decode
_numbers = msgspec.json.Decoder(list[int]).decode
_asked = msgspec.json.Decoder(list[tuple[str, int]]).decode


SOONEST = 0.005
"""Seconds within which tokens are not looked for again: those that come meanwhile are taken together, and none is late for it."""


class SqliteSession(Session):
    """Leases are fenced by this session's id and the claim."""

    def __init__(self, shared: Shared, clock: Clock, id: str, info: WorkerInfo, ear: Ear) -> None:
        self.id = id
        self._shared = shared
        self._clock = clock
        self._info = info
        self._ear = ear
        self._heard = -1
        self._watch = Watch(info.session_timeout, info.heartbeat)
        self._dead: list[tuple[str, int]] = []
        self._rotation = 0
        self._wake_at: int | None = None
        self._marked: set[int] = set()
        self._pulse: Link | None = None

    def _now(self) -> int:
        return stored(self._clock.now())

    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        """Claim ready jobs; see `Session.fetch`."""
        self._heard = self._ear.count
        turn = self._rotation
        self._rotation += queues is None
        claim = self._shared.write(lambda tx: self._claim(tx, queues, limit, room, turn))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            claim.add_done_callback(self._hand_back)
            raise

    def _claim(self, tx: Transaction, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int], turn: int) -> list[Lease]:
        claim = Claim(tx, self._now(), self.id, self._info, room)
        leases = claim.run(queues, limit, turn)
        self._wake_at = claim.wake_at
        self.unknown |= claim.unknown
        return leases

    def _hand_back(self, claim: asyncio.Future[list[Lease]]) -> None:
        """What a cancelled fetch still claimed goes back at once."""
        if not claim.cancelled() and claim.exception() is None and claim.result():
            releases = [(lease, Release()) for lease in claim.result()]
            self._shared.write(lambda tx: settling.settle(tx, self._now(), self.id, releases, self._marked))

    async def retain(self, held: Sequence[Lease]) -> int:
        """Hand back what is not among `held`; see `Session.retain`. The writer does one thing after another: no fetch can come late."""
        known = {(lease.ref, lease.claim) for lease in held}
        return await self._shared.write(lambda tx: self._retain(tx, known))

    def _retain(self, tx: Transaction, known: AbstractSet[tuple[object, int]]) -> int:
        if not tx.value("knows_session", id=self.id):
            raise SessionLost(f"session {self.id} of worker {self._info.name} is gone; open a new one")
        return upkeep.release_all(tx, self._now(), self.id, known)

    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        """Record outcomes; see `Session.settle`."""
        if not settlements:
            return []
        lost = await self._shared.write(lambda tx: settling.settle(tx, self._now(), self.id, settlements, self._marked))
        if self._marked:
            self._marked.difference_update(lease.ref for lease, _ in settlements)
        return lost

    async def beat(self, pulse: Pulse) -> Beat:
        """Show life; see `Session.beat`. Runs in the keeper's thread, on a connection of its own."""
        if self._pulse is None:
            # The beat needs not survive a power failure, so it waits for no disk.
            self._pulse = self._shared.database.link("normal").impatient()
        progress = [(lease.ref, lease.claim, *done) for lease, done in pulse.progress if type(lease.ref) is int]
        reported = {lease.ref for lease, _ in pulse.progress}
        self._marked |= reported
        found = self._shared.database.write(self._pulse, lambda tx: self._beat(tx, progress))
        if found is None:
            return Beat(alive=False)
        beats, asked, held = found
        self._marked -= reported.difference(held)  # settled while their progress was on its way: nothing was stored
        self._dead = self._watch.observe(beats, self._clock.monotonic())
        return Beat(alive=True, stop=tuple(asked), rescue=bool(self._dead))

    def _beat(
        self, tx: Transaction, progress: Sequence[tuple[object, ...]]
    ) -> tuple[dict[str, int], list[tuple[str, int]], list[int]] | None:
        if tx.do("beat", id=self.id, now=self._now()) == 0:
            return None
        held: list[int] = []
        if progress:
            tx.do("put_progress", session=self.id, progress=text(progress))
            held = _numbers(tx.value("held_of", ns=text([row[0] for row in progress]), session=self.id))
        beats, asked = tx.row("beats", id=self.id)
        return _beats(beats), _asked(asked), held

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        """Store a step's result; see `Session.remember`."""
        self._marked.add(lease.ref)
        return await self._shared.write(
            lambda tx: tx.do("put_step", n=lease.ref, name=step, value=value.decode(), session=self.id, claim=lease.claim) > 0
        )

    async def wait(self, timeout: float) -> None:
        """Return when something was committed since the last fetch."""
        if self._wake_at is not None:
            timeout = min(timeout, max((self._wake_at - self._now()) / SECOND, SOONEST))
        await self._ear.after(self._heard, timeout)

    async def maintain(self) -> Upkeep:
        """One round of upkeep; see `Session.maintain`."""
        dead, self._dead = self._dead, []
        if not dead:
            wait = await self._shared.read(self._idle)
            if wait is not None:
                return Upkeep(wait)
        return await self._shared.write(lambda tx: upkeep.maintain(tx, self._now(), dead))

    def _idle(self, tx: Transaction) -> float | None:
        moments = upkeep.look(tx, self._now())
        return moments.wait if moments.idle else None

    async def due(self) -> list[Due]:
        """The schedules whose tick has come."""
        return await self._shared.read(lambda tx: planning.due(tx, self._now()))

    async def tick(self, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> bool:
        """Fire a tick once; see `Session.tick`."""
        return await self._shared.write(lambda tx: planning.tick(tx, self._now(), due, next_at, jobs))

    async def enter(self) -> None:
        """Be known to the store, with the schedules that the worker declares."""
        await self._shared.write(self._enter)

    def _enter(self, tx: Transaction) -> None:
        tx.do("add_session", id=self.id, info=text(self._info), now=self._now())
        for schedule, next_at in self._info.schedules:
            planning.put(tx, schedule, next_at, declared=True)
        if concerned := gating.declare(tx, self._info.limits):
            moves = Moves(tx, self._now())
            moves.pump(concerned)
            moves.write()

    async def leave(self) -> None:
        """Be gone; what is still held goes back unharmed."""
        try:
            await self._shared.write(self._leave)
        finally:
            if self._pulse is not None:
                self._shared.database.unlink(self._pulse)

    def _leave(self, tx: Transaction) -> None:
        if tx.do("drop_session", id=self.id):
            upkeep.release_all(tx, self._now(), self.id)
