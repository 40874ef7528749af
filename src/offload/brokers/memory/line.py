"""The jobs of a memory store and the lines they stand in. Plain data structures: no locks, no clock, no policy."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from offload.job import Failure, Job, Lease, Progress, State
from offload.records import Record

if TYPE_CHECKING:
    from offload.brokers.memory.families import Link

UNSTARTED = frozenset({State.READY, State.SCHEDULED, State.WAITING})


@dataclass(slots=True, eq=False)
class Entry:
    """One job and where it stands."""

    n: int
    """The order in which it was stored."""
    job: Job
    state: State = State.READY
    pos: int = 0
    round: int = 0
    """The round in which it takes its turn among the keys of its queue; 0 without such a key."""
    claim: int = 0
    attempt: int = 0
    crashes: int = 0
    due: datetime | None = None
    seat: int = 0
    """Its place in lanes before gates."""
    lane: str | None = None
    """The lane in which it waits."""
    behind: str | None = None
    """The id of the job for whose key it waits."""
    links: list[Link] = field(default_factory=list["Link"])
    """To its parents, in their order."""
    pending: bool = False
    """Whether it waits for its parents, or, as a callback, for its batch."""
    felled: bool = False
    """Whether the end of a parent took it down."""
    aside: bool = False
    ready_at: datetime | None = None
    session: str | None = None
    worker: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_asked: bool = False
    reason: str | None = None
    errors: list[Failure] = field(default_factory=list[Failure])
    result: bytes | None = None
    progress: Progress | None = None
    steps: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def rank(self) -> tuple[int, int, int]:
        """Where it stands among the ready jobs of its queue: lower goes first."""
        return (-self.job.priority, self.round, self.pos)

    def lease(self) -> Lease:
        """The right to run it, as of its latest claim."""
        inputs = tuple(link.input for link in self.links) if any(link.wanted for link in self.links) else ()
        return Lease(self.job, self.claim, self.attempt, self.crashes, dict(self.steps), inputs=inputs)

    def record(self, reason: str | None) -> Record:
        """What a person sees of it."""
        fields: dict[str, Any] = {name: getattr(self.job, name) for name in self.job.__struct_fields__}
        fields["run_at"] = self.due
        return Record(
            **fields,
            state=self.state,
            attempt=self.attempt,
            crashes=self.crashes,
            errors=tuple(self.errors),
            result=None if self.result is None else msgspec.json.decode(self.result),
            progress=self.progress,
            steps={name: msgspec.json.decode(value) for name, value in self.steps.items()},
            reason=reason,
            worker=self.worker,
            cancel_asked=self.cancel_asked and self.state is State.RUNNING,
            started_at=self.started_at,
            finished_at=self.finished_at,
        )


class ReadyLine:
    """Entries in order of rank. One that left by another way is dropped when it comes to the front."""

    def __init__(self, aside: bool) -> None:
        self._heaps: dict[tuple[int, bool], list[tuple[tuple[int, int, int], Entry]]] = {}
        """By priority, negated, and whether they take turns by key."""
        self._aside = aside

    def push(self, entry: Entry) -> None:
        """Put an entry in its place."""
        heapq.heappush(self._heaps.setdefault((entry.rank[0], entry.round > 0), []), (entry.rank, entry))

    def first(self) -> Entry | None:
        """The entry at the front, which stays."""
        return next((entry for part in sorted(self._heaps) if (entry := self._first_of(part)) is not None), None)

    def round(self, priority: int) -> int | None:
        """The round that is being served at a priority, given negated; None where nobody takes turns."""
        entry = self._first_of((priority, True))
        return None if entry is None else entry.round

    def _first_of(self, part: tuple[int, bool]) -> Entry | None:
        heap = self._heaps.get(part, [])
        while heap:
            rank, entry = heap[0]
            if entry.state is State.READY and entry.aside is self._aside and entry.rank == rank:
                return entry
            heapq.heappop(heap)
        self._heaps.pop(part, None)
        return None

    def pop(self) -> Entry:
        """Take the entry at the front, just seen by `first`."""
        return heapq.heappop(self._heaps[min(self._heaps)])[1]


def foremost(lines: Sequence[ReadyLine]) -> Iterator[tuple[ReadyLine, Entry]]:
    """Take the entries of several lines in order of rank, each out of its line."""
    while True:
        fronts = [(entry.rank, line) for line in lines if (entry := line.first()) is not None]
        if not fronts:
            return
        line = min(fronts, key=lambda front: front[0])[1]
        yield line, line.pop()


class TimeLine:
    """Entries by a moment of theirs. One whose moment is another by now, or None, is dropped when it comes to the front."""

    def __init__(self, moment_of: Callable[[Entry], datetime | None]) -> None:
        self._heap: list[tuple[datetime, int, Entry]] = []
        self._moment_of = moment_of

    def push(self, entry: Entry) -> None:
        """Put an entry in its place, if it has a moment."""
        moment = self._moment_of(entry)
        if moment is not None:
            heapq.heappush(self._heap, (moment, entry.n, entry))

    def first(self) -> datetime | None:
        """The earliest moment."""
        while self._heap:
            moment, _, entry = self._heap[0]
            if self._moment_of(entry) == moment:
                return moment
            heapq.heappop(self._heap)
        return None

    def take(self, now: datetime) -> Entry | None:
        """Take the first entry, if its moment has come."""
        moment = self.first()
        return heapq.heappop(self._heap)[2] if moment is not None and moment <= now else None
