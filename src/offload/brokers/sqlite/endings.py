"""Brings jobs to their end: the record, the keys, and all that is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from offload.brokers.sqlite.keys import give_up
from offload.brokers.sqlite.moves import Moves, Past
from offload.brokers.sqlite.rows import seconds, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.job import KEEP_UNSUCCESSFUL, Job, State

COVERED = ("started", "finished")
"""The keys that an end gives up, by their `until`."""


class Ending(NamedTuple):
    """How a job ends. It was taken out of its line before."""

    n: int
    job: Job
    past: Past
    state: State
    reason: str | None = None
    result: str | None = None

    @property
    def keep(self) -> float:
        """Seconds that its record is kept."""
        return self.job.keep if self.state is State.SUCCEEDED else KEEP_UNSUCCESSFUL


def finish(tx: Transaction, now: int, endings: Sequence[Ending], moves: Moves) -> None:
    """End jobs, in order; the moves of successors are added to `moves`."""
    record_ends(tx, now, endings)
    for ending in endings:
        give_up(tx, now, ending.n, ending.job, COVERED, moves)


def record_ends(tx: Transaction, now: int, endings: Sequence[Ending]) -> None:
    """Write down ends, whose keys are given up by the caller."""
    kept = [ending for ending in endings if ending.keep > 0]
    if kept:
        tx.add(
            "add_done",
            [
                (n, state.value, *past, result, reason, now, now + seconds(e.keep))
                for e in kept
                for n, _, past, state, reason, result in [e]
            ],
        )
    forget(tx, [ending.n for ending in endings if ending.keep <= 0])
    drop_expiring(tx, [(e.n, e.job) for e in endings if e.past.claim == 0])
    tx.ended = True


def forget(tx: Transaction, ns: Sequence[int]) -> None:
    """Drop all that is known of jobs whose record, if any, is gone already."""
    if not ns:
        return
    numbers = text(ns)
    for name in ("drop_jobs", "drop_errors", "drop_steps", "drop_progress"):
        tx.do(name, ns=numbers)


def drop_expiring(tx: Transaction, jobs: Sequence[tuple[int, Job]]) -> None:
    """Jobs that have started, or ended, expire no more."""
    pairs = [(stored(job.expires_at), n) for n, job in jobs if job.expires_at is not None]
    if pairs:
        tx.do("drop_expiring", pairs=text(pairs))
