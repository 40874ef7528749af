"""One worker's standing with a PostgreSQL store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import inf

import msgspec

from offload.broker import Session, Work
from offload.brokers.postgres import gating, planning, settling, succeeding, upkeep
from offload.brokers.postgres.connections import Link
from offload.brokers.postgres.database import Database
from offload.brokers.postgres.fetching import Fetching
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.rows import SECOND, moment, stored
from offload.brokers.postgres.wake import POLL
from offload.brokers.postgres.work import Transaction, text
from offload.errors import BrokerError, BrokerUnusable
from offload.job import Beat, Due, Isolation, Job, Lease, Outcome, Pulse, Release, Upkeep, WorkerInfo
from offload.liveness import Watch

SOONEST = 0.005
"""Seconds within which tokens are not looked for again: those that come meanwhile are taken together, and none is late for it."""
LONGEST_DOZE = 0.01
"""Seconds to the next token that are too few to be worth asking for notifications, which costs more than to look again then."""
DEFERENCE = 0.01
"""Seconds, at most, that a worker leaves to the one that has looked after gates so far, before it looks itself; no start is late for it."""
LONGEST_NAP = 0.1
"""Seconds after which a worker looks again at gates where it could let nobody pass, as others were at it."""
PROMPT = 1.0
"""Seconds: an answer that took longer says too little about what the server's clock shows now."""

_beats = msgspec.json.Decoder(dict[str, int]).decode
_asked = msgspec.json.Decoder(list[tuple[str, int]]).decode
_numbers = msgspec.json.Decoder(list[int]).decode


class PostgresSession(Session):
    """Leases are fenced by this session's id and the claim."""

    def __init__(self, database: Database, id: str, info: WorkerInfo) -> None:
        self.id = id
        self._database = database
        self._info = info
        self._link = database.link()
        self._claims = database.link()  # a connection of their own: a settle may wait for a lock, and claims must not wait with it
        self._rescues = database.link()  # open only while they last
        self._fetching = Fetching(self._claims, id, info, self.unknown)
        self._heard = 0
        self._places: tuple[int, int] | None = None
        self._wake_at: int | None = None
        self._deference = 0.0
        self._fruitless = 0
        self._vain_wakes = 0
        self._returning: asyncio.Future[list[Lease]] | None = None
        self._watch = Watch(info.session_timeout, info.heartbeat)
        self._dead: list[tuple[str, int]] = []
        self._marked: set[int] = set()
        self._stale: set[int] = set()
        """Jobs that were forgotten just as a beat stored their progress."""
        self._pulse: Link | None = None
        self._children_ask = False
        """Whether, last time, children asked for more than a place in their lines: then they are likely to the next time."""

    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        """Claim ready jobs; see `Session.fetch`."""
        ear = self._database.ear
        self._heard = ear.count("work")
        claim = asyncio.ensure_future(self._fetching.fetch(queues, limit, room))
        try:
            leases = await asyncio.shield(claim)
        except asyncio.CancelledError:
            claim.add_done_callback(self._hand_back)
            raise
        if leases:
            self._fruitless = self._vain_wakes = 0
            self._wake_at, self._deference = None, 0.0
            ear.rouse("work")
        return leases

    def _hand_back(self, claim: asyncio.Future[list[Lease]]) -> None:
        """What a cancelled fetch still claimed goes back at once."""
        if not claim.cancelled() and claim.exception() is None and claim.result():
            releases = [(lease, Release()) for lease in claim.result()]
            self._returning = asyncio.ensure_future(self.settle(releases))

    async def retain(self, held: Sequence[Lease]) -> int:
        """Hand back what is not among `held`; see `Session.retain`."""

        def operation(tx: Transaction) -> Work[tuple[int, int]]:
            era = yield from tx.value("retain", id=self.id)
            if era is None:
                raise self._fetching.lost()
            return era, (yield from settling.release_but(tx, self.id, held))

        self._fetching.era, number = await self._claims.run(operation)
        return number

    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        """Record outcomes; see `Session.settle`."""
        if not settlements:
            return []
        known = self._marked_among(settlements)
        lost = await self._succeed(settlements)
        if lost is None:
            lost = await self._link.run(lambda tx: self._settle(tx, settlements))
        if self._marked:
            self._stale |= self._marked_among(settlements) - known
            self._marked.difference_update(lease.ref for lease, _ in settlements)
        return lost

    async def _succeed(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease] | None:
        """Settle without a transaction where that is likely to do. Returns those that were lost; None, and nothing done, where not."""
        if not succeeding.all_plain(settlements, self._marked):
            return None
        if not succeeding.any_in_workflows(settlements):
            return await self._link.step(lambda tx: succeeding.succeed(tx, self.id, settlements))
        if self._children_ask or self._database.address.pgbouncer:  # the pooler's steps are transactions anyway
            return None
        told = await self._link.step(lambda tx: succeeding.succeed_in_workflows(tx, self.id, settlements, alone=True))
        return [] if told else None

    def _settle(self, tx: Transaction, settlements: Sequence[tuple[Lease, Outcome]]) -> Work[list[Lease]]:
        lost = yield from settling.settle(tx, self.id, settlements, self._marked)
        self._children_ask = tx.books.open
        return lost

    def _marked_among(self, settlements: Sequence[tuple[Lease, Outcome]]) -> set[int]:
        """Those that leave no record and were given steps or progress."""
        return {lease.ref for lease, _ in settlements if lease.job.keep <= 0 and lease.ref in self._marked} if self._marked else set()

    async def beat(self, pulse: Pulse) -> Beat:
        """Show life; see `Session.beat`. Runs in the keeper's thread and loop, on a connection of its own."""
        if self._pulse is None:
            self._pulse = self._database.foreign_link()
        progress = [(lease.ref, lease.claim, *done) for lease, done in pulse.progress if type(lease.ref) is int]
        reported = {lease.ref for lease, _ in pulse.progress}
        self._marked |= reported
        asked_at = self._database.clock.monotonic()
        found = await self._pulse.step(lambda tx: self._beat(tx, progress))
        if found is None:
            return Beat(alive=False)
        beats, asked, held, now = found
        if self._database.clock.monotonic() - asked_at <= PROMPT:
            self._database.clock.read(moment(now))
        self._marked -= reported.difference(held)  # settled while their progress was on its way: nothing was stored
        self._dead = self._watch.observe(beats, self._database.clock.monotonic())
        return Beat(alive=True, stop=tuple(asked), rescue=bool(self._dead))

    def _beat(
        self, tx: Transaction, progress: Sequence[tuple[object, ...]]
    ) -> Work[tuple[dict[str, int], list[tuple[str, int]], list[int], int] | None]:
        row = yield from tx.row("beat", id=self.id, now=tx.now)
        if row is None:
            return None
        beats, asked, now = row
        held = _numbers((yield from tx.value("put_progress", session=self.id, progress=text(progress)))) if progress else []
        return _beats(beats or "{}"), _asked(asked or "[]"), held, now

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        """Store a step's result; see `Session.remember`."""
        self._marked.add(lease.ref)
        return await self._link.step(
            lambda tx: tx.do("put_step", n=lease.ref, name=step, value=value.decode(), session=self.id, claim=lease.claim)
        )

    async def wait(self, timeout: float) -> None:
        """Return when there may be something to claim that the last fetch did not see."""
        self._places = None
        ear, doze = self._database.ear, self._fetching.until_wake()
        if self._fetching.in_vain:
            self._deference = random.uniform(0.5, 1.0) * DEFERENCE
        try:
            if doze <= LONGEST_DOZE and not self._deference and not (self._fetching.passed or self._fetching.held_up):
                await ear.doze("work", self._heard, min(max(doze, SOONEST), timeout))
            else:
                await ear.sleep("work", self._heard, timeout, self._news, self._nap, rest=self._rest())
        finally:
            self._fetching.passed = self._fetching.held_up = False

    def _nap(self) -> float:
        """Seconds until somebody may pass gates by time alone, as far as is known."""
        if self._wake_at is None:
            return inf
        return max((self._wake_at - stored(self._database.clock.now())) / SECOND + self._deference, SOONEST)

    def _rest(self) -> float:
        """Seconds before it looks again for what was there at the last look and could not be claimed: another claim has locked it."""
        claim = min(0.002 * 2 ** min(self._fruitless, 10), POLL) if self._fruitless else 0.0
        return max(claim, min(SOONEST * self._vain_wakes, LONGEST_NAP))

    async def _news(self) -> bool:
        """Whether there is anything to claim, or, after jobs were passed over for lack of room, whether anything changed."""
        queues = None if self._info.queues is None else text(self._info.queues)
        any_ready, *places, wake_at = await self._claims.step(lambda tx: tx.row("news", queues=queues, tasks=text(self._info.tasks)))
        before, self._places = self._places, (places[0], places[1])
        changed = before is not None and before != self._places
        if wake_at is not None and self._wake_at is not None and wake_at > self._wake_at:
            self._deference = random.uniform(0.5, 1.0) * DEFERENCE  # somebody else was there in time: two at once are slower than one
        self._wake_at = wake_at
        news = any_ready and (changed or self._fetching.held_up or not self._fetching.passed)
        self._fruitless += news
        deferred = self._nap() > SOONEST  # to who has looked after the gates so far
        if wake_at is not None and not deferred and wake_at <= stored(self._database.clock.now()):
            self._fetching.be_careful()
            self._vain_wakes += 1
            return True
        return news

    async def maintain(self) -> Upkeep:
        """One round of upkeep; see `Session.maintain`."""
        dead, self._dead = self._dead, []
        if stale := sorted(self._stale):
            await self._link.step(lambda tx: tx.do("drop_progress", ns=text(stale)))
            self._stale.difference_update(stale)
        try:
            return await upkeep.maintain(self._link.run, self._link.step, self._rescues.run, dead)
        finally:
            if dead:
                await self._rescues.close()

    async def due(self) -> list[Due]:
        """The schedules whose tick has come."""
        return await self._link.step(planning.due)

    async def tick(self, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> bool:
        """Fire a tick once; see `Session.tick`."""
        return await self._link.run(lambda tx: planning.tick(tx, due, next_at, jobs))

    async def enter(self) -> None:
        """Be known to the store, with the schedules that the worker declares."""
        await self._link.run(self._enter)

    def _enter(self, tx: Transaction) -> Work[None]:
        yield from tx.post("drop_sleepers")
        yield from tx.post("add_session", id=self.id, info=text(self._info), now=tx.now)
        yield from planning.declare(tx, self._info.schedules)
        moves = Moves(tx.now)
        moves.pump((yield from gating.declare(tx, self._info.limits)))
        yield from moves.write(tx)

    async def leave(self) -> None:
        """Be gone; what is still held goes back unharmed."""
        try:
            try:
                await self._link.run(self._leave)
            except BrokerUnusable:
                raise
            except BrokerError:  # perhaps only a connection that was cut while it was idle
                await self._link.run(self._leave)
        finally:
            await self._database.unlink(self._claims)
            await self._database.unlink(self._rescues)
            await self._database.unlink(self._link)
            if self._pulse is not None:
                self._pulse.abandon()

    def _leave(self, tx: Transaction) -> Work[None]:
        if self._stale:
            yield from tx.post("drop_progress", ns=text(sorted(self._stale)))
        if (yield from tx.do("drop_session", id=self.id)):
            yield from settling.release_but(tx, self.id, [])
