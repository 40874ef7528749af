"""Brings jobs to their end: the record, the keys, and all that is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from offload.broker import Work
from offload.brokers.postgres.books import related
from offload.brokers.postgres.gating import Past
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.rows import seconds, stored
from offload.brokers.postgres.work import Transaction, text
from offload.gates import KINDS, holds_on
from offload.job import KEEP_UNSUCCESSFUL, Job, State

NEVER = 2**62
"""A moment that does not come."""
COVERED = ("started", "finished")
"""The keys that an end gives up, by their `until`."""


class Ending(NamedTuple):
    """How a job ends. It was taken out of its line before, its keys are locked."""

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
        return self.state is not State.SUCCEEDED or kept_if_succeeded(self.job)

    def forget_at(self, now: int) -> int:
        """When its record is forgotten, in microseconds since 1970."""
        if self.state is State.SUCCEEDED:
            return forget_succeeded_at(self.job, now)
        return NEVER if self.holds_on or self.job.workflow is not None else now + seconds(KEEP_UNSUCCESSFUL)


def kept_if_succeeded(job: Job) -> bool:
    """Whether the success of a job leaves a record."""
    return job.keep > 0 or job.workflow is not None


def forget_succeeded_at(job: Job, now: int) -> int:
    """When that is forgotten: of a workflow's jobs, with their workflow."""
    return now + seconds(job.keep) if job.workflow is None else NEVER


def finish(tx: Transaction, keys: Keys, endings: Sequence[Ending], moves: Moves) -> Work[None]:
    """End jobs, in order; the moves of successors are added to `moves`, changes to `keys`."""
    yield from record_ends(tx, endings)
    for ending in endings:
        yield from let_go(keys, ending, moves)


def let_go(keys: Keys, ending: Ending, moves: Moves) -> Work[None]:
    """Free what a job holds that has come to its end; the moves of those who waited for that are added to `moves`."""
    if ending.lane is not None:
        moves.withdraw(ending.n, ending.job)
    yield from keys.give_up(ending.n, ending.job, COVERED, moves)
    moves.leave(ending.n, ending.job, ("slot", "token") if ending.holds_on else KINDS)


def record_ends(tx: Transaction, endings: Sequence[Ending]) -> Work[None]:
    """Write down ends, whose keys are given up by the caller."""
    kept = [
        (n, state, *past, result, reason, tx.now, ending.forget_at(tx.now))
        for ending in endings
        if ending.kept
        for n, _, past, state, reason, result, _ in [ending]
    ]
    if kept:
        yield from tx.post("add_done", ends=text(kept))
    yield from forget(tx, [ending.n for ending in endings if not ending.kept])
    yield from drop_expiring(tx, [(ending.n, ending.job) for ending in endings if ending.past.claim == 0])
    for ending in endings:
        if related(ending.job):
            tx.books.ended(ending.n, ending.job, ending.state)
    if endings:
        tx.ended = True


def forget(tx: Transaction, ns: Sequence[int]) -> Work[None]:
    """Drop all that is known of jobs whose record, if any, is gone already."""
    if ns:
        yield from tx.post("forget", ns=text(ns))


def drop_expiring(tx: Transaction, jobs: Sequence[tuple[int, Job]]) -> Work[None]:
    """Jobs that have started, or ended, expire no more."""
    pairs = [(stored(job.expires_at), n) for n, job in jobs if job.expires_at is not None]
    if pairs:
        yield from tx.post("drop_expiring", pairs=text(pairs))
