"""Puts jobs into the lines where they stand, and takes them out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from offload.brokers.sqlite.rows import JobColumns, text
from offload.brokers.sqlite.transaction import Transaction
from offload.job import Job, State


class Past(NamedTuple):
    """What a job takes along from line to line."""

    claim: int = 0
    attempt: int = 0
    crashes: int = 0
    started_at: int | None = None
    worker: str | None = None


def past_of(row: JobColumns) -> Past:
    """What a stored job has behind it."""
    return Past(row.claim, row.attempt, row.crashes, row.started_at, row.worker)


class Moves:
    """Gathers where jobs go, in order, and writes it set by set."""

    def __init__(self, now: int) -> None:
        self._now = now
        self._ends: list[tuple[int, str, int, int | None, Past]] = []
        self._places: list[tuple[Any, ...]] = []
        self._times: list[tuple[int, int, Past]] = []

    def place(self, n: int, job: Job, past: Past, due: int | None) -> None:
        """To the time `due` where that is to come, else to the end of the ready line."""
        if due is not None and due > self._now:
            self._times.append((due, n, past))
        else:
            self._ends.append((n, job.queue, -job.priority, due, past))

    def back(self, n: int, job: Job, past: Past, pos: int, ready_at: int) -> None:
        """To the place in the ready line that it had."""
        self._places.append((job.queue, -job.priority, pos, n, *past[:3], ready_at, past.started_at, past.worker))

    def write(self, tx: Transaction) -> None:
        """Do it all."""
        if self._ends:
            first = tx.numbers(len(self._ends))
            tx.do("note_places", first=first, moves=text([(n, due) for n, _, _, due, _ in self._ends]))
            self._places.extend(
                (queue, rank, pos, n, *past[:3], self._now, past.started_at, past.worker)
                for pos, (n, queue, rank, _, past) in enumerate(self._ends, start=first)
            )
        if self._places:
            tx.add("add_ready", self._places)
            tx.work = True
        if self._times:
            tx.do("note_dues", moves=text([(n, due) for due, n, _ in self._times]))
            tx.add("add_scheduled", [(due, n, *past) for due, n, past in self._times])
            tx.work = True


def take_out(tx: Transaction, rows: Sequence[JobColumns]) -> None:
    """Take jobs that do not run out of where they stand; their rows in `jobs` stay."""
    ready: dict[str, list[tuple[int, int]]] = {}
    aside: dict[str, list[tuple[str, int, int]]] = {}
    scheduled: list[tuple[int | None, int]] = []
    others: list[int] = []
    for row in rows:
        match row.state:
            case State.READY if row.aside:
                aside.setdefault(row.queue, []).append((row.task, row.rank, row.pos))
            case State.READY:
                ready.setdefault(row.queue, []).append((row.rank, row.pos))
            case State.SCHEDULED:
                scheduled.append((row.due, row.n))
            case _:
                others.append(row.n)
    for queue, places in ready.items():
        tx.do("drop_places", queue=queue, places=text(places))
    for queue, lines in aside.items():
        tx.do("drop_places_aside", queue=queue, places=text(lines))
    if scheduled:
        tx.do("drop_scheduled", pairs=text(scheduled))
    if others:
        tx.do("drop_waiting", ns=text(others))
        tx.do("drop_done", ns=text(others))
