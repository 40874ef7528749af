"""Puts outcomes into the words of one call, sets of plain successes together, and reads which leases it found lost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from typing import TypeAlias, assert_never

import msgspec

from offload.brokers.redis.rows import microseconds, tail
from offload.gates import gated
from offload.job import KEEP_SUCCEEDED, Cancelled, Dead, Done, Failure, Job, Lease, Outcome, Release, Retried

Settlements: TypeAlias = Sequence[tuple[Lease, Outcome]]
Words: TypeAlias = list[bytes | str | int | float]

_encode = msgspec.json.Encoder().encode


def words_of(settlements: Settlements) -> tuple[Words, list[int]]:
    """What the script is told, and which settlement each outcome that it counts belongs to.

    Successes that can touch no other job are gathered by how long they are kept; all else stays in order, successes that follow each other
    together where they are kept alike. Where a lease comes twice, all stays in order.
    """
    plain: dict[float, list[int]] = {}
    others: list[int] = []
    for place, (lease, outcome) in enumerate(settlements):
        job = lease.job
        if type(outcome) is Done and job.unique is None and job.schedule is None and not outcome.added and not gated(job):
            plain.setdefault(_kept(job), []).append(place)
        else:
            others.append(place)
    if plain and others and len({lease.job.id for lease, _ in settlements}) < len(settlements):
        plain, others = {}, list(range(len(settlements)))
    words: Words = []
    order: list[int] = []
    for keep, places in plain.items():
        words += _successes(settlements, keep, places)
        order += places
    for keep, run in groupby(others, lambda place: _keep_of(*settlements[place])):
        places = list(run)
        if keep is None:
            words += chain.from_iterable(_words(*settlements[place]) for place in places)
        else:
            words += _successes(settlements, keep, places)
        order += places
    return words, order


def _keep_of(lease: Lease, outcome: Outcome) -> float | None:
    """How long a success is kept that adds nothing."""
    return _kept(lease.job) if type(outcome) is Done and not outcome.added else None


def _kept(job: Job) -> float:
    """Those of a workflow are kept as long as that, whatever is said here."""
    return job.keep if job.workflow is None else KEEP_SUCCEEDED


def _successes(settlements: Settlements, keep: float, places: Sequence[int]) -> Words:
    words: Words = ["Done", _delay(keep), len(places)]
    for place in places:
        lease, outcome = settlements[place]
        words += (lease.ref, lease.claim, (outcome.result if type(outcome) is Done else None) or b"")
    return words


def lost_of(settlements: Settlements, order: Sequence[int], lost: Sequence[int]) -> list[Lease]:
    """The leases at the places, counted from 1, that the script found lost; in the order of the settlements."""
    return [settlements[place][0] for place in sorted(order[number - 1] for number in lost)]


def _words(lease: Lease, outcome: Outcome) -> Words:
    member, claim = lease.ref, lease.claim
    match outcome:
        case Done(result, added):
            jobs = chain.from_iterable((job.id, tail(job)) for job in added)
            return ["Adding", member, claim, _delay(_kept(lease.job)), result or b"", *jobs]
        case Retried(delay, failure, whole_key):
            return ["HeldBack" if whole_key else "Retried", member, claim, _delay(delay), _failure(failure)]
        case Dead(reason, failure, hold_key):
            if hold_key > 0:
                return ["DeadHolding", member, claim, f"{_delay(hold_key)} {reason}", _failure(failure)]
            return ["Dead", member, claim, reason, _failure(failure)]
        case Cancelled(reason):
            return ["Cancelled", member, claim, reason, b""]
        case Release(delay):
            return ["Release", member, claim, _delay(delay), b""]
        case _:
            assert_never(outcome)


def _delay(delay: float) -> int:
    return microseconds(delay) if delay > 0 else 0


def _failure(failure: Failure | None) -> bytes:
    return b"" if failure is None else _encode(failure)
