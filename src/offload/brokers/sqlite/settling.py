"""Records how attempts ended, fenced by session and claim."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, assert_never

import msgspec

from offload.brokers.sqlite.endings import Ending, let_go, record_ends
from offload.brokers.sqlite.gating import Past, member, seats
from offload.brokers.sqlite.moves import NO_PAST, Moves
from offload.brokers.sqlite.rows import seconds, text
from offload.brokers.sqlite.transaction import Doubt, Transaction
from offload.gates import gated, holds_on, wants_of
from offload.job import Cancelled, Dead, Done, Job, Lease, Outcome, RateLimit, Release, Retried, State, keys_of

Settlements = Sequence[tuple[Lease, Outcome]]


class Held(NamedTuple):
    """A row of `running`."""

    n: int
    claim: int
    attempt: int
    crashes: int
    pos: int
    ready_at: int
    started_at: int
    worker: str
    cancel: int

    def past(self, *, given_back: int = 0, crashes: int = 0) -> Past:
        """What the job takes along, with attempts given back and crashes counted."""
        return Past(self.claim, self.attempt - given_back, self.crashes + crashes, self.started_at, self.worker)


_held = msgspec.json.Decoder(list[Held]).decode


MOST_GROUPS = 4
"""The most sets of plain successes that one settle takes apart before one statement for all is cheaper."""


def settle(tx: Transaction, now: int, session: str, settlements: Settlements, marked: AbstractSet[int]) -> list[Lease]:
    """Record outcomes; returns the leases that were lost.

    `marked` are the jobs that this session gave steps or progress. Plain successes cost two or three statements whatever their
    number; when one of those leases turns out lost, all is undone and done again with care.
    """
    plain: dict[tuple[int, float], list[tuple[int, str | None]]] = {}
    others: list[tuple[Lease, Outcome]] = []
    for lease, outcome in settlements:
        if not tx.careful and type(outcome) is Done and _plain(lease, marked):
            result = outcome.result
            plain.setdefault((lease.claim, lease.job.keep), []).append((lease.ref, None if result is None else result.decode()))
        else:
            others.append((lease, outcome))
    if len(plain) > MOST_GROUPS or (plain and others and len({lease.ref for lease, _ in settlements}) < len(settlements)):
        plain, others = {}, list(settlements)
    for (claim, keep), results in plain.items():
        _succeed(tx, now, session, claim, keep, results)
    return _settle(tx, now, session, others) if others else []


def _plain(lease: Lease, marked: AbstractSet[int]) -> bool:
    """Whether success leaves nothing to be done but to record it, or to forget the job and nothing else."""
    job = lease.job
    if job.unique is not None or job.schedule is not None or gated(job) or type(lease.ref) is not int:
        return False
    return job.keep > 0 or (lease.claim == 1 and lease.ref not in marked)


def _succeed(tx: Transaction, now: int, session: str, claim: int, keep: float, results: Sequence[tuple[int, str | None]]) -> None:
    """End leases of one claim number and one time to keep. Raises Doubt when some are lost."""
    numbers = text([n for n, _ in results])
    if keep > 0:
        told = [each for each in results if each[1] is not None]
        if told:
            tx.do("keep_results", results=text(told), session=session, claim=claim, now=now, forget_at=now + seconds(keep))
        if len(told) < len(results):
            untold = text([n for n, result in results if result is None])
            tx.do("keep_done", ns=untold, session=session, claim=claim, now=now, forget_at=now + seconds(keep))
    if tx.do("settle_plain", ns=numbers, session=session, claim=claim) != len(results):
        raise Doubt
    if keep <= 0:
        tx.do("drop_jobs", ns=numbers)
    tx.ended = True


def _settle(tx: Transaction, now: int, session: str, settlements: Settlements) -> list[Lease]:
    ns = [lease.ref for lease, _ in settlements if type(lease.ref) is int]
    held = {row.n: row for row in _held(tx.value("held", ns=text(ns), session=session))}
    lost: list[Lease] = []
    settled: list[tuple[Held, Lease, Outcome]] = []
    for lease, outcome in settlements:
        row = held.get(lease.ref)
        if row is None or row.claim != lease.claim:
            lost.append(lease)
        else:
            del held[row.n]
            settled.append((row, lease, outcome))
    if settled:
        end_attempts(tx, now, settled)
    return lost


def end_attempts(tx: Transaction, now: int, settled: Sequence[tuple[Held, Lease, Outcome]]) -> None:
    """Carry out the outcomes of leases that are held, in order."""
    tx.do("drop_running", ns=text([row.n for row, _, _ in settled]))
    moves = Moves(tx, now)
    _expect(tx, moves, settled)
    endings: list[Ending] = []
    failures: list[tuple[int, int, str]] = []
    for row, lease, asked in settled:
        n, job = row.n, lease.job
        outcome = Cancelled() if row.cancel and not isinstance(asked, Done) else asked
        if isinstance(outcome, (Retried, Dead)) and outcome.failure is not None:
            failures.append((n, row.claim, text(outcome.failure)))
        match outcome:
            case Retried(delay, _, whole_key):
                if whole_key:
                    moves.shut(job, now + seconds(delay))
                moves.place(n, job, row.past(), now + seconds(delay) if delay > 0 else None)
            case Release(delay) if delay > 0:
                moves.place(n, job, row.past(given_back=1), now + seconds(delay))
            case Release():
                moves.back(n, job, row.past(given_back=1), row.pos, row.ready_at)
            case Done() | Dead() | Cancelled():
                ending = _ending(n, job, row.past(), outcome)
                endings.append(ending)
                let_go(tx, now, ending, moves)
            case _:
                assert_never(outcome)
    if failures:
        tx.add("add_errors", failures)
    if endings:
        record_ends(tx, now, endings)
    moves.write()


def _expect(tx: Transaction, moves: Moves, settled: Sequence[tuple[Held, Lease, Outcome]]) -> None:
    """Read at once what the gates of these jobs will be asked for."""
    keyed = {row.n: lease.job for row, lease, _ in settled if gated(lease.job)}
    if keyed and not (_simple(settled) and moves.gates.expect_heirs([wants_of(job)[0].gate for job in keyed.values()])):
        found = seats(tx, keyed)
        moves.seated(found)
        moves.gates.expect([member(job, n, found[n], NO_PAST) for n, job in keyed.items()])


def _simple(settled: Sequence[tuple[Held, Lease, Outcome]]) -> bool:
    """Whether all that have keys end for good, each with one key of its own, and nobody else can be concerned but the next of that key."""
    gates: set[str] = set()
    for row, lease, outcome in settled:
        job = lease.job
        if keys_of(job):
            return False
        if gated(job):
            wants = wants_of(job)
            ends = isinstance(outcome, Done) or row.cancel or (isinstance(outcome, (Dead, Cancelled)) and not holds_on(job))
            if not ends or len(wants) != 1 or isinstance(wants[0].limit, RateLimit) or wants[0].gate in gates:
                return False
            gates.add(wants[0].gate)
    return True


def _ending(n: int, job: Job, past: Past, outcome: Done | Dead | Cancelled) -> Ending:
    match outcome:
        case Done(result):
            return Ending(n, job, past, State.SUCCEEDED, None, None if result is None else result.decode())
        case Dead(reason):
            return Ending(n, job, past, State.DEAD, reason)
        case Cancelled(reason):
            return Ending(n, job, past, State.CANCELLED, reason)
        case _:
            assert_never(outcome)
