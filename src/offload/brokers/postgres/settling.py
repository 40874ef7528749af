"""Records how attempts ended, fenced by session and claim."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, assert_never

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking
from offload.brokers.postgres.books import related
from offload.brokers.postgres.endings import Ending, let_go, record_ends
from offload.brokers.postgres.enqueueing import store
from offload.brokers.postgres.families import lock_children
from offload.brokers.postgres.gating import Past
from offload.brokers.postgres.keys import Keys, kept
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.newcomers import hold_for
from offload.brokers.postgres.rows import jobs_by_number, seconds
from offload.brokers.postgres.succeeding import all_plain, distinct, plain, succeed, succeed_in_turn, succeed_in_workflows
from offload.brokers.postgres.work import Doubt, Transaction, text
from offload.errors import BatchClosed, BrokerError, IdConflict, ParentNotFound, UniqueConflict
from offload.gates import gated
from offload.job import Cancelled, Dead, Done, Job, Lease, Outcome, Release, Retried, State

MOST_TRIES = 10
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
    cancel: bool

    def past(self, *, given_back: int = 0, crashes: int = 0) -> Past:
        """What the job takes along, with attempts given back and crashes counted."""
        return Past(self.claim, self.attempt - given_back, self.crashes + crashes, self.started_at, self.worker)


held_rows = msgspec.json.Decoder(list[Held]).decode
_leases = msgspec.json.Decoder(list[tuple[int, int, int]]).decode
_numbers = msgspec.json.Decoder(list[int]).decode


def settle(tx: Transaction, session: str, settlements: Settlements, marked: AbstractSet[int]) -> Work[list[Lease]]:
    """Record outcomes; returns the leases that were lost."""
    if any(related(lease.job) for lease, _ in settlements):
        yield from locking.lock(tx, ())
    elif (yield from succeed_in_turn(tx, session, settlements, marked)):
        return []
    easy: list[tuple[Lease, Outcome]] = []
    others: list[tuple[Lease, Outcome]] = []
    for lease, outcome in settlements:
        (easy if plain(lease, outcome, marked) else others).append((lease, outcome))
    if not distinct(settlements) or any(isinstance(outcome, Done) and outcome.added for _, outcome in others):
        easy, others = [], list(settlements)  # what is added locks where all are counted, so all must have ended before
    if all_plain(settlements, marked) and (yield from succeed_in_workflows(tx, session, settlements)):
        return []
    lost: list[Lease] = []
    if others:
        lost += yield from _settle(tx, session, others)
    if easy:
        lost += yield from succeed(tx, session, easy)
    if others and easy and len(lost) > 1:
        refused = {id(lease) for lease in lost}
        return [lease for lease, _ in settlements if id(lease) in refused]
    return lost


def settle_on(tx: Transaction, session: str, lease: Lease, outcome: Outcome) -> Work[bool]:
    """Settle one lease in a transaction of the caller's, right before its commit. False, and nothing done, when it is lost.

    Raises what refuses the jobs that it adds. A worker that is frozen or cut off before the commit comes holds no lock for long that
    others need to rescue its jobs.
    """
    isolation = yield from tx.value("soon")
    if isolation != "read committed" and (gated(lease.job) or related(lease.job)):
        has = "has order_by or limits" if gated(lease.job) else "belongs to a workflow or batch"
        raise BrokerError(f"job {lease.job.id} {has}: its transaction must be READ COMMITTED, not {isolation.upper()}")
    for _ in range(MOST_TRIES):
        yield from tx.post("savepoint")
        try:
            lost = yield from _settle(tx, session, [(lease, outcome)], joined=True)
            yield from tx.tell()
        except Doubt:
            yield from tx.post("rollback_to_savepoint")
            tx.undone()
        else:
            yield from tx.post("release_savepoint")
            return not lost
    raise BrokerError(f"other transactions took keys of job {lease.job.id} {MOST_TRIES} times; try again")


def _settle(tx: Transaction, session: str, settlements: Settlements, *, joined: bool = False) -> Work[list[Lease]]:
    keys = Keys(tx)
    asked = yield from _asked_to_stop(tx, settlements)
    ending = [lease.job for lease, outcome in settlements if isinstance(outcome, (Done, Dead, Cancelled)) or lease.ref in asked]
    yield from keys.lock_of_claimed(ending)
    back = [lease.job for lease, outcome in settlements if isinstance(outcome, (Retried, Release)) and outcome.delay <= 0]
    yield from locking.lock(tx, [*locking.gates_of(lease.job for lease, _ in settlements), *locking.lines_of(back)])
    leases = sorted((lease.ref, lease.claim) for lease, _ in settlements if type(lease.ref) is int)
    held = {row.n: row for row in held_rows((yield from tx.value("end_leases", leases=text(leases), session=session)))}
    lost: list[Lease] = []
    settled: list[tuple[Held, Lease, Outcome]] = []
    for lease, outcome in settlements:
        row = held.get(lease.ref)
        if row is None or row.claim != lease.claim:
            lost.append(lease)
        else:
            del held[row.n]
            settled.append((row, lease, outcome))
    keys.check_claimed(lease.job for row, lease, _ in settled if row.cancel)  # some may have been asked to stop just now
    if any(isinstance(outcome, Done) and outcome.added for _, _, outcome in settled):
        yield from hold_for(tx, [job for _, _, outcome in settled if isinstance(outcome, Done) for job in outcome.added])
        yield from lock_children(tx, [lease.job for _, lease, _ in settled])
        for place, (row, lease, outcome) in enumerate(settled):
            grown = yield from _grown(tx, lease, outcome, joined=joined)
            if grown is not outcome:  # it did succeed: what it is told now is no cancelling
                settled[place] = (row._replace(cancel=False), lease, grown)
        keys = Keys(tx)  # those that were added may have changed who comes after
        yield from keys.lock_of_claimed(ending)
    if settled:
        yield from end_attempts(tx, keys, settled)
    return lost


def _grown(tx: Transaction, lease: Lease, outcome: Outcome, *, joined: bool) -> Work[Outcome]:
    """Store what a job adds by its success. Where it is refused, that is how the job ends, and nothing of it is stored.

    In a transaction of the caller's, `joined`, the refusal is raised instead, and undoes all of it.
    """
    if not isinstance(outcome, Done) or not outcome.added:
        return outcome
    before = (tx.work, tx.ended, tx.locks.copy(), tx.books.copy())
    yield from tx.post("savepoint")
    try:
        yield from store(tx, outcome.added, adder=lease.job)
    except (IdConflict, UniqueConflict, ParentNotFound, BatchClosed) as error:
        yield from tx.do("rollback_to_savepoint")  # alone: psycopg drops all that was prepared, and must know before it sends more
        tx.work, tx.ended, tx.locks, tx.books = before
        if joined:
            raise
        return Dead(f"the jobs that it added were refused: {error}")
    yield from tx.post("release_savepoint")
    return outcome


def _asked_to_stop(tx: Transaction, settlements: Settlements) -> Work[set[int]]:
    """Those that end though their outcomes say otherwise, as somebody asked for it; only of those with keys to give up."""
    keeping = [lease for lease, outcome in settlements if isinstance(outcome, (Retried, Release)) and kept(lease.job)]
    ns = [lease.ref for lease in keeping if type(lease.ref) is int]
    return set(_numbers((yield from tx.value("asked_to_stop", ns=text(ns))))) if ns else set()


def release_but(tx: Transaction, session: str, known: Sequence[Lease]) -> Work[int]:
    """Hand back, unharmed, what a session holds but for the leases `known`. Returns how many."""
    held = text([(lease.ref, lease.claim) for lease in known if type(lease.ref) is int])
    leases = _leases((yield from tx.value("leases_but", session=session, known=held)))
    if not leases:
        return 0
    jobs = yield from jobs_by_number(tx, [n for n, _, _ in leases])
    releases = [(Lease(jobs[n].job(), claim, attempt, ref=n), Release()) for n, claim, attempt in leases if n in jobs]
    lost = yield from _settle(tx, session, releases)
    return len(releases) - len(lost)


def end_attempts(tx: Transaction, keys: Keys, settled: Sequence[tuple[Held, Lease, Outcome]]) -> Work[None]:
    """Carry out the outcomes of leases that were held, in order; their keys are locked."""
    moves = Moves(tx.now)
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
                    moves.shut(job, tx.now + seconds(delay))
                moves.place(n, job, row.past(), tx.now + seconds(delay) if delay > 0 else None)
            case Release(delay) if delay > 0:
                moves.place(n, job, row.past(given_back=1), tx.now + seconds(delay))
            case Release():
                moves.back(n, job, row.past(given_back=1), row.pos, row.ready_at)
            case Done() | Dead() | Cancelled():
                if isinstance(outcome, Dead) and outcome.hold_key > 0:
                    moves.shut(job, tx.now + seconds(outcome.hold_key))
                ending = _ending(n, job, row.past(), outcome)
                endings.append(ending)
                yield from let_go(keys, ending, moves)
            case _:
                assert_never(outcome)
    if failures:
        yield from tx.post("add_errors", failures=text(failures))
    yield from record_ends(tx, endings)
    yield from keys.write()
    yield from moves.write(tx)


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
