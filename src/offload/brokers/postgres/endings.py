"""Brings jobs to their end: the record, the keys, and all that is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from offload.broker import Work
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.moves import Moves, Past
from offload.brokers.postgres.rows import seconds, stored
from offload.brokers.postgres.work import Transaction, text
from offload.job import KEEP_UNSUCCESSFUL, Job, State

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

    @property
    def keep(self) -> float:
        """Seconds that its record is kept."""
        return self.job.keep if self.state is State.SUCCEEDED else KEEP_UNSUCCESSFUL


def finish(tx: Transaction, keys: Keys, endings: Sequence[Ending], moves: Moves) -> Work[None]:
    """End jobs, in order; the moves of successors are added to `moves`, changes to `keys`."""
    yield from record_ends(tx, endings)
    for ending in endings:
        yield from keys.give_up(ending.n, ending.job, COVERED, moves)


def record_ends(tx: Transaction, endings: Sequence[Ending]) -> Work[None]:
    """Write down ends, whose keys are given up by the caller."""
    kept = [
        (n, state, *past, result, reason, tx.now, tx.now + seconds(ending.keep))
        for ending in endings
        if ending.keep > 0
        for n, _, past, state, reason, result in [ending]
    ]
    if kept:
        yield from tx.do("add_done", ends=text(kept))
    yield from forget(tx, [ending.n for ending in endings if ending.keep <= 0])
    yield from drop_expiring(tx, [(ending.n, ending.job) for ending in endings if ending.past.claim == 0])
    if endings:
        tx.ended = True


def forget(tx: Transaction, ns: Sequence[int]) -> Work[None]:
    """Drop all that is known of jobs whose record, if any, is gone already."""
    if ns:
        yield from tx.do("forget", ns=text(ns))


def drop_expiring(tx: Transaction, jobs: Sequence[tuple[int, Job]]) -> Work[None]:
    """Jobs that have started, or ended, expire no more."""
    pairs = [(stored(job.expires_at), n) for n, job in jobs if job.expires_at is not None]
    if pairs:
        yield from tx.do("drop_expiring", pairs=text(pairs))
