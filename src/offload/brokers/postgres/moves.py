"""Puts jobs into the lines where they stand, and takes them out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from offload.broker import Work
from offload.brokers.postgres.rows import JobColumns
from offload.brokers.postgres.work import Transaction, text
from offload.job import Job


class Past(NamedTuple):
    """What a job takes along from line to line."""

    claim: int = 0
    attempt: int = 0
    crashes: int = 0
    started_at: int | None = None
    worker: str | None = None


_taken = msgspec.json.Decoder(list[tuple[int, Past]]).decode


class Moves:
    """Gathers where jobs go, in order, and writes it set by set."""

    def __init__(self, now: int) -> None:
        self._now = now
        self._ends: list[tuple[Any, ...]] = []
        self._places: list[tuple[Any, ...]] = []
        self._times: list[tuple[Any, ...]] = []

    def place(self, n: int, job: Job, past: Past, due: int | None) -> None:
        """To the time `due` where that is to come, else to the end of the ready line."""
        if due is not None and due > self._now:
            self._times.append((due, n, *past))
        else:
            self._ends.append((n, job.queue, -job.priority, due, *past))

    def back(self, n: int, job: Job, past: Past, pos: int, ready_at: int) -> None:
        """To the place in the ready line that it had."""
        self._places.append((job.queue, -job.priority, pos, n, *past[:3], ready_at, past.started_at, past.worker))

    def write(self, tx: Transaction) -> Work[None]:
        """Do it all."""
        if self._ends:
            yield from tx.do("to_the_end", moves=text(self._ends), now=self._now)
            tx.work = True
        if self._places:
            yield from tx.do("to_their_places", moves=text(self._places))
            tx.work = True
        if self._times:
            yield from tx.do("to_their_times", moves=text(self._times))
            tx.work = True


def take_out(tx: Transaction, rows: Sequence[JobColumns]) -> Work[dict[int, Past]]:
    """Take jobs that do not run out of where they stand; their rows in `jobs` stay.

    Returns what those that stood there have behind them, by number. The others have moved since `rows` were read: look again.
    """
    if not rows:
        return {}
    places = [(row.n, row.state, row.queue, row.task, row.rank, row.pos, row.due, row.aside) for row in rows]
    return dict(_taken((yield from tx.value("take_out", places=text(places)))))
