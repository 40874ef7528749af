"""Brings jobs to their end: the record, the keys, and all that is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from offload.brokers.sqlite.gating import Past
from offload.brokers.sqlite.keys import give_up
from offload.brokers.sqlite.moves import Moves
from offload.brokers.sqlite.rows import seconds, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.gates import KINDS, holds_on
from offload.job import KEEP_UNSUCCESSFUL, Job, State

NEVER = 2**62
"""A moment that does not come."""
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
    lane: str | None = None
    """The lane in which it waited."""

    @property
    def holds_on(self) -> bool:
        """Whether it keeps its turn until somebody retries or deletes it."""
        return self.state is State.DEAD and holds_on(self.job)

    @property
    def kept(self) -> bool:
        """Whether it leaves a record."""
        return self.state is not State.SUCCEEDED or self.job.keep > 0 or self.job.workflow is not None

    def forget_at(self, now: int) -> int:
        """When its record is forgotten, in microseconds since 1970; those of a workflow go together, see `tallies`."""
        if self.holds_on or self.job.workflow is not None:
            return NEVER
        return now + seconds(self.job.keep if self.state is State.SUCCEEDED else KEEP_UNSUCCESSFUL)


def finish(tx: Transaction, now: int, endings: Sequence[Ending], moves: Moves) -> None:
    """End jobs, in order; the moves of successors are added to `moves`."""
    record_ends(tx, now, endings)
    for ending in endings:
        let_go(tx, now, ending, moves)


def let_go(tx: Transaction, now: int, ending: Ending, moves: Moves) -> None:
    """Free what a job holds that has come to its end; the moves of those who waited for that are added to `moves`."""
    if ending.lane is not None:
        moves.withdraw(ending.n, ending.job)
    give_up(tx, now, ending.n, ending.job, COVERED, moves)
    moves.leave(ending.n, ending.job, ("slot", "token") if ending.holds_on else KINDS)


def record_ends(tx: Transaction, now: int, endings: Sequence[Ending]) -> None:
    """Write down ends, whose keys are given up by the caller."""
    for ending in endings:
        if ending.job.workflow is not None or ending.job.batch is not None:
            tx.books.ended(ending.job, ending.state, ending.result)
    kept = [ending for ending in endings if ending.kept]
    if kept:
        tx.add(
            "add_done",
            [(n, state.value, *past, result, reason, now, e.forget_at(now)) for e in kept for n, _, past, state, reason, result, _ in [e]],
        )
    forget(tx, [ending.n for ending in endings if not ending.kept])
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
