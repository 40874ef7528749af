"""A session's claims: by one statement where all can be taken as they stand, else with care."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from offload.broker import Work
from offload.brokers.postgres.claiming import WINDOW, Claim, in_turn
from offload.brokers.postgres.connections import Link
from offload.brokers.postgres.families import with_inputs
from offload.brokers.postgres.marks import Marks, Segment
from offload.brokers.postgres.rows import SECOND, ReadyRow
from offload.brokers.postgres.work import Transaction, text
from offload.errors import SessionLost
from offload.job import Isolation, Lease, WorkerInfo

CAREFUL = 10
"""How many claims go with care, without trying the one statement, after it met jobs that need care."""

MOST_TRIES = 3
"""How often the one statement is tried while jobs that go back to old places make its marks void."""

MOST_QUEUES = 32
"""The most queues that the one statement serves."""

_names = msgspec.json.Decoder(list[str]).decode
_lines = msgspec.json.Decoder(list[tuple[str, str]]).decode
_rows = msgspec.json.Decoder(list[ReadyRow]).decode
_places = msgspec.json.Decoder(list[tuple[str, int, int]]).decode


class Answer(NamedTuple):
    """What the one statement answers."""

    alive: bool
    returned: int
    wakes: bool | None
    """Whether somebody may pass gates first, by time alone or because a caller has committed."""
    tried: bool
    plain: bool
    found: str
    left: str


class Fetching:
    """Claims for one session over one connection, one at a time. To `unknown` it adds queue and task of what it sets aside."""

    def __init__(self, link: Link, session: str, info: WorkerInfo, unknown: set[tuple[str, str]]) -> None:
        self._link = link
        self._session = session
        self._info = info
        self._unknown = unknown
        self._tasks = text(info.tasks)
        self._marks = Marks()
        self._careful = 0
        self._alone: str | None = "default"
        """The one queue that has something ready, as far as is known, where all are served; the statement makes sure of it."""
        self._turn = 0
        self._wake_at: int | None = None
        """When somebody may pass gates by time alone, as the last claim with care left it."""
        self.era = 0
        self.in_vain = False
        """Whether the last claim that came for gates whose time had come got nothing: another worker was there before."""
        self.passed = False
        """Whether jobs were passed over, for lack of room, since this was last set to False."""
        self.held_up = False
        """The same for jobs that others held up, which may be claimed any moment without anything to show for it."""

    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        """Claim ready jobs. Raises SessionLost, BrokerError."""
        turn = self._turn
        self._turn += queues is None
        if self._wakes():
            self.be_careful()
        if self._careful == 0:
            leases = await self._at_once(queues, limit, room, turn)
            if leases is not None:
                return leases
        return await self._carefully(queues, limit, room, turn)

    def be_careful(self) -> None:
        """Somebody may pass gates: the one statement would only say so."""
        self._careful = max(self._careful, 1)

    def until_wake(self) -> float:
        """Seconds until somebody may pass gates that the last claim with care has read; without end where that is not known."""
        return inf if self._wake_at is None else max((self._wake_at - self._link.now()) / SECOND, 0.0)

    def _wakes(self) -> bool:
        return self._wake_at is not None and self._wake_at <= self._link.now()

    async def _at_once(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int], turn: int) -> list[Lease] | None:
        """The claim by one statement, where it is known which queues there are; None when it takes more care."""
        if queues is None and (alone := self._alone) is not None:
            leases = await self._plainly([alone], limit, room, alone=True)
            if leases is not None or self._careful:
                return leases
        names = queues if queues is not None else await self._link.step(lambda tx: self._queues(tx, turn))
        return await self._plainly(names, limit, room, alone=False) if len(names) <= MOST_QUEUES else None

    def _queues(self, tx: Transaction, turn: int) -> Work[list[str]]:
        """The queues that have something ready, in the order of this turn."""
        names, lines = yield from tx.row("queues")
        names = in_turn(_names(names), _lines(lines), turn)
        if len(names) == 1:
            self._alone = names[0]
        return names

    async def _plainly(self, queues: Sequence[str], limit: int, room: Mapping[Isolation, int], *, alone: bool) -> list[Lease] | None:
        """All of the first jobs, by one statement; None when it takes more care."""
        for _ in range(MOST_TRIES):
            marked = not self._marks.due(queues)
            segments = [segment for queue in dict.fromkeys(queues) for segment in self._marks.segments(queue, marked=marked)]
            begun = monotonic()
            answer = await self._claimed(queues, segments, limit, room, alone=alone)
            if not answer.alive:
                raise self.lost()
            if answer.returned == self._marks.returned:
                break
            self._marks.void(answer.returned)
        else:
            self._careful = 1
            return None
        if answer.wakes:
            self.be_careful()
            return None
        if not answer.tried and alone:
            self._alone = None
            return None
        if not answer.tried or not answer.plain:
            self._careful = CAREFUL
            return None
        if not marked:
            self._marks.swept(queues, monotonic() - begun)
        rows = _rows(answer.found)
        passed = _places(answer.left)
        self.passed |= bool(passed)
        self._marks.note([(row.queue, row.rank, row.pos) for row in rows], passed)
        if marked and len(rows) + len(passed) < limit:
            self._marks.short(queues)
        if passed and not rows and not await self._barren(segments, limit, room):
            return None
        leases = [Lease(row.job(), 1, 1, 0, {}, row.n) for row in rows]
        if any(lease.job.parents for lease in leases):
            return await self._link.step(lambda tx: with_inputs(tx, leases))
        return leases

    async def _claimed(
        self, queues: Sequence[str], segments: Sequence[Segment], limit: int, room: Mapping[Isolation, int], *, alone: bool
    ) -> Answer:
        values = self._values(segments, limit, room)
        values["alone"] = queues[0] if alone else None
        values["one"] = len(set(queues)) == 1

        def operation(tx: Transaction) -> Work[tuple[bool, int, bool | None, bool, bool, str, str]]:
            return tx.row("claim", now=tx.now, **values)

        return Answer(*await self._link.step(operation))

    async def _barren(self, segments: Sequence[Segment], limit: int, room: Mapping[Isolation, int]) -> bool:
        """Whether there is nothing to take among the first of a queue either that a claim looks at when it found nothing."""
        if limit >= WINDOW:
            return True
        values = self._values(segments, WINDOW, room)
        for name in ("session", "era", "worker", "returned"):
            del values[name]
        return await self._link.step(lambda tx: tx.value("barren", **values))

    def _values(self, segments: Sequence[Segment], limit: int, room: Mapping[Isolation, int]) -> dict[str, Any]:
        return {
            "session": self._session,
            "era": self.era,
            "worker": self._info.name,
            "tasks": self._tasks,
            "segments": text(segments),
            "limit": limit,
            "returned": self._marks.returned,
            "room_async": room.get("async", 0),
            "room_thread": room.get("thread", 0),
            "room_process": room.get("process", 0),
        }

    async def _carefully(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int], turn: int) -> list[Lease]:
        self._careful = max(self._careful - 1, 0)
        claim: Claim | None = None

        def operation(tx: Transaction) -> Work[list[Lease]]:
            nonlocal claim
            claim = Claim(tx, self._session, self._info, room, self._marks, self.era)
            return claim.run(queues, limit, turn)

        leases = await self._link.run(operation)
        assert claim is not None
        claim.committed()
        self._wake_at = claim.gates.wake_at if claim.woke else claim.wake_at
        self.in_vain = not leases and (claim.woke or self.in_vain)
        self.passed |= claim.passed > 0
        self._unknown |= claim.unknown
        self.held_up |= claim.held_up > 0
        if queues is None and claim.names:
            self._alone = claim.names[0] if len(claim.names) == 1 else None
        return leases

    def lost(self) -> SessionLost:
        """The session is gone."""
        return SessionLost(f"session {self._session} of worker {self._info.name} is gone; open a new one")
