"""Up to where a session has emptied the ready lines, so that its claims need not wade through dead rows.

A row that a claim deletes stays in the index as long as an old snapshot is held anywhere; claims that start at the beginning of a line
slow down with every job. A mark says: all that was visible up to here is taken. What may appear below it is what was committed late
(places are taken before the commit): every 250 ms, and after a claim that found too little, one looks at the whole line. And what goes
back to an old place, by a release or a rescue: that is counted by the sequence `returned`, and makes all marks void.

Where keys take turns, a newcomer goes before nearly all who stand there: behind whoever stood first when it came. Claims under way may have
taken more by then. So the marks of such a part of a line stay behind what was taken, from one look below them to the one after the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import monotonic

from offload.brokers.postgres.rows import ROUND_BITS, placed

SWEEP_EVERY = 0.25
"""Seconds after which a claim looks below its marks again."""
REST = 10.0
"""How many times as long as looking below the marks took it rests before it does so again."""
LONGEST_REST = 1.0
"""Seconds: what took long may have waited for a lock or a connection, and what lies below the marks must not wait for ever."""
MOST_PARTS = 32
LOWEST, HIGHEST = -(1 << 62), 1 << 62

Segment = tuple[str, int, int, int]
"""Of a queue, the places after (rank, pos) and before the rank `below`."""
Place = tuple[str, int, int]
"""Queue, rank and pos."""
Spot = tuple[int, int]
"""Rank and pos."""


def part_of(rank: int) -> int:
    """The lowest rank of that part of a line which has one mark: a priority, and apart from it those of it that take turns.

    What joins a part stands behind all that was taken there, also where rounds begin anew: see turns.py.
    """
    return placed(rank >> ROUND_BITS, int(takes_turns(rank)))


def takes_turns(rank: int) -> bool:
    """Whether those of a rank take turns with others."""
    return rank != placed(rank >> ROUND_BITS)


class Marks:
    """One session's marks, by queue and part of its line."""

    def __init__(self) -> None:
        self.returned = -1
        """The value of the sequence `returned` for which the marks hold."""
        self._marks: dict[str, dict[int, Spot]] = {}
        self._turns: dict[str, dict[int, tuple[Spot, Spot]]] = {}
        """Of parts where keys take turns: up to where all was taken at the last look below the marks, and by now."""
        self._swept: dict[str, float] = {}
        self._rest = 0.0

    def void(self, returned: int) -> None:
        """Something went back to an old place."""
        self.returned = returned
        self._marks.clear()
        self._turns.clear()

    def due(self, queues: Iterable[str]) -> bool:
        """Whether it is time to look below the marks of any of these queues."""
        now = monotonic()
        return any(now - self._swept.get(queue, 0.0) >= max(SWEEP_EVERY, self._rest) for queue in queues if queue in self._marks)

    def segments(self, queue: str, *, marked: bool) -> list[Segment]:
        """What of a queue is to be looked at, in order."""
        segments: list[Segment] = []
        rank, pos = LOWEST, -1
        for part, mark in sorted(self._marks.get(queue, {}).items()) if marked else ():
            segments.append((queue, rank, pos, part))
            rank, pos = mark
        segments.append((queue, rank, pos, HIGHEST))
        return segments

    def swept(self, queues: Iterable[str], took: float) -> None:
        """Queues were looked at below their marks."""
        now = monotonic()
        self._rest = min(REST * took, LONGEST_REST)
        for queue in queues:
            self._swept[queue] = now
            for part, (before, by_now) in self._turns.get(queue, {}).items():
                self._marks[queue][part] = before
                self._turns[queue][part] = (by_now, by_now)

    def short(self, queues: Iterable[str]) -> None:
        """A marked claim found too little: look below the marks as soon as that is not too costly."""
        soon = monotonic() - SWEEP_EVERY
        for queue in queues:
            self._swept[queue] = min(self._swept.get(queue, 0.0), soon)

    def note(self, taken: Sequence[Place], passed: Sequence[Place] = ()) -> None:
        """Jobs were taken out of their lines, in order; those passed over hold the marks back."""
        for queue, rank, pos in taken:
            marks, turns = self._marks.setdefault(queue, {}), self._turns.setdefault(queue, {})
            part = part_of(rank)
            if takes_turns(rank):
                before, by_now = turns.get(part, ((part, -1), (part, -1)))
                turns[part] = (before, max(by_now, (rank, pos)))
            else:
                marks[part] = max(marks.get(part, (part, -1)), (rank, pos))
        for queue, rank, pos in passed:
            marks, turns = self._marks.get(queue, {}), self._turns.get(queue, {})
            part, most = part_of(rank), (rank, pos - 1)
            if part in marks:
                marks[part] = min(marks[part], most)
            if part in turns:
                before, by_now = turns[part]
                turns[part] = (min(before, most), min(by_now, most))
        for queue in {queue for queue, _, _ in taken}:
            if len(self._marks[queue].keys() | self._turns[queue].keys()) > MOST_PARTS:
                del self._marks[queue], self._turns[queue]
