"""Records how attempts ended, fenced by session and claim."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, assert_never

import msgspec

from offload.brokers.sqlite.endings import Ending, let_go, record_ends
from offload.brokers.sqlite.enqueueing import add
from offload.brokers.sqlite.gating import Past, member, seats
from offload.brokers.sqlite.moves import NO_PAST, Moves
from offload.brokers.sqlite.rows import seconds, text
from offload.brokers.sqlite.succeeding import Leaving, simple, succeeded
from offload.brokers.sqlite.tallies import settle_up
from offload.brokers.sqlite.transaction import Transaction
from offload.errors import OffloadError
from offload.gates import gated, holds, lone_want
from offload.job import Cancelled, Dead, Done, Job, Lease, Outcome, Release, Retried, State

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


def settle(tx: Transaction, now: int, session: str, settlements: Settlements, marked: AbstractSet[int]) -> list[Lease]:
    """Record outcomes; returns the leases that were lost.

    `marked` are the jobs that this session gave steps or progress. Plain successes cost a few statements whatever their number, also
    those of jobs with a key where nobody is concerned but the next of it; when one of those leases turns out lost, all is undone and
    done again with care.
    """
    plain: list[tuple[Lease, Done]] = []
    leaving: list[Leaving] = []
    others: list[tuple[Lease, Outcome]] = []
    for lease, outcome in settlements:
        if tx.careful or type(outcome) is not Done or outcome.added or not simple(lease, marked):
            others.append((lease, outcome))
        elif not holds(lease.job):
            plain.append((lease, outcome))
        elif lease.job.fair_by is None and (want := lone_want(lease.job)) is not None:
            plain.append((lease, outcome))
            leaving.append((lease.ref, want))
        else:
            others.append((lease, outcome))
    together = not others or not (leaving or _twice(settlements))  # those who come into line do so in the order of the settlements
    if not together or not succeeded(tx, now, session, plain, leaving):
        others = list(settlements)
    lost = _settle(tx, now, session, others) if others else []
    settle_up(tx, now)
    return lost


def _twice(settlements: Settlements) -> bool:
    """Whether a lease is settled twice: the first of its outcomes counts."""
    return len({lease.ref for lease, _ in settlements}) < len(settlements)


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
    outcomes = [_outcome(tx, now, row, lease.job, asked) for row, lease, asked in settled]
    tx.do("drop_running", ns=text([row.n for row, _, _ in settled]))
    moves = Moves(tx, now)
    _expect(tx, moves, settled)
    endings: list[Ending] = []
    failures: list[tuple[int, int, str]] = []
    for (row, lease, _), outcome in zip(settled, outcomes, strict=True):
        n, job = row.n, lease.job
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
                if isinstance(outcome, Dead) and outcome.hold_key > 0:
                    moves.shut(job, now + seconds(outcome.hold_key))
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


def _outcome(tx: Transaction, now: int, row: Held, job: Job, asked: Outcome) -> Outcome:
    """What becomes of an attempt; the jobs that it adds are stored, or it is dead, for they were refused."""
    if not isinstance(asked, Done):
        return Cancelled() if row.cancel else asked
    if asked.added:
        try:
            add(tx, now, asked.added, job)
        except OffloadError as error:
            if tx.joined:
                raise
            return Dead(f"the jobs that it added were refused: {error}")
    return asked


def _expect(tx: Transaction, moves: Moves, settled: Sequence[tuple[Held, Lease, Outcome]]) -> None:
    """Read at once what the gates of these jobs will be asked for."""
    keyed = {row.n: lease.job for row, lease, _ in settled if gated(lease.job)}
    if keyed:
        found = seats(tx, keyed)
        moves.seated(found)
        moves.gates.expect([member(job, n, found[n], NO_PAST) for n, job in keyed.items()])


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
