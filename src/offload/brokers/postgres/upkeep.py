"""Upkeep: rescues what dead sessions held, promotes what is due, expires, forgets; a bounded piece at a time.

Every piece is a transaction of its own, so that none holds locks while another works; several workers at it at once do no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from psycopg.errors import LockNotAvailable

from offload.broker import Work
from offload.brokers.postgres import families, gating, locking, tallies, turns
from offload.brokers.postgres.books import tallies_of
from offload.brokers.postgres.cancelling import UNSTARTED, Turn, end_unstarted, in_turn
from offload.brokers.postgres.endings import Ending, forget, let_go, record_ends
from offload.brokers.postgres.gating import Gates, Own, Past
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.planning import prune
from offload.brokers.postgres.rows import JobColumns, extra_of, jobs_by_number
from offload.brokers.postgres.settling import held_rows
from offload.brokers.postgres.work import Operation, Transaction, text
from offload.errors import BrokerError, BrokerUnusable
from offload.gates import gated, wants_of
from offload.job import State, Touched, Upkeep
from offload.upkeep import Moments

log = logging.getLogger("offload.worker")

T = TypeVar("T")

WINDOW = 1_000
"""The most jobs that one round promotes, expires or forgets."""
MOST_TURNS = 100
"""The most jobs of one key that one round expires: each may let the next one pass, and meanwhile the key is locked."""


class DueRow(msgspec.Struct, array_like=True, frozen=True):
    """A scheduled job that is due."""

    due: int
    n: int
    queue: str
    rank: int
    claim: int
    attempt: int
    crashes: int
    started_at: int | None
    worker: str | None
    extra: str | None
    seat: int


_due = msgspec.json.Decoder(list[DueRow]).decode
_numbers = msgspec.json.Decoder(list[int]).decode
_ids = msgspec.json.Decoder(list[str]).decode


class Runner(Protocol):
    """Runs an operation in a transaction of its own."""

    def __call__(self, operation: Operation[T], /) -> Awaitable[T]: ...


async def maintain(run: Runner, step: Runner, apart: Runner, dead: Sequence[tuple[str, int]]) -> Upkeep:
    """One round; `step` runs what is one statement, `apart` what may wait for locks, so that nobody waits behind it.

    `dead` are sessions with the beat numbers at which they stopped. What could not be rescued is found dead by the next beat again.
    """
    touched: list[Touched] = []
    for session, beat in dead:
        try:
            touched += await apart(_rescue_of(session, beat))
        except BrokerUnusable:
            raise
        except BrokerError as error:
            log.warning("session %s is not rescued yet, which the next beat tries again: %s", session, error)
    moments, tasks = await step(look)
    if moments.come(moments.wakes):
        await run(_wake)
    pieces = [await run(promote) if moments.come(moments.due) else 0]
    if moments.come(moments.expires):
        expired = await run(_expire)
        touched += expired
        pieces.append(len(expired))
    if tasks.any:
        await _go_on(run, tasks)
    if moments.come(moments.forgets) or tasks.forgets:
        pieces.append(await run(_forget))
    if any(pieces) or moments.come(moments.wakes) or moments.come(moments.fades):
        await run(gating.forget)
    if moments.set_back:
        await run(_look_again)
    pruned = moments.prunes and await run(_prune)
    if WINDOW in pieces:
        return Upkeep(0.0, tuple(touched))
    if any(pieces) or pruned or tasks.any:
        moments, tasks = await step(look)
    return Upkeep(0.0 if tasks.owed or tasks.stopping else moments.wait, tuple(touched))


class Tasks(NamedTuple):
    """What is to be done for workflows and batches."""

    owed: bool
    """Whether children are to be told of their parents."""
    stopping: bool
    """Whether any is being stopped."""
    abandons: bool
    """Whether any is to be given up."""
    forgets: bool
    """Whether any may be forgotten."""

    @property
    def any(self) -> bool:
        """Whether a round would find anything to do but to forget."""
        return self.owed or self.stopping or self.abandons


def look(tx: Transaction) -> Work[tuple[Moments, Tasks]]:
    """What is next to do; reads only."""
    due, expires, forget, tick, pruned, wakes, fades, owed, stopping, abandons, forgets = yield from tx.row("moments")
    found = Moments(due, expires, forget, tick, pruned, wakes, fades, tx.now)
    return found, Tasks(owed, stopping, found.come(abandons), found.come(forgets))


async def _go_on(run: Runner, tasks: Tasks) -> None:
    """Do the next piece of what is too much for one operation, and give up what was left incomplete."""
    if tasks.owed:
        await run(families.pay_owed)
    if tasks.stopping:
        await run(tallies.go_on_stopping)
    if tasks.abandons:
        await run(tallies.abandon)


def _look_again(tx: Transaction) -> Work[None]:
    """The clock was set back."""
    yield from locking.lock_all(tx)
    yield from tx.post("look_at_gates_again", now=tx.now)


def _prune(tx: Transaction) -> Work[bool]:
    """Whether it was this worker's turn to look for schedules that are absent, whose ticks are awaited no more then."""
    if not (yield from prune(tx)):
        return False
    yield from turns.forget(tx)
    return True


def wake(tx: Transaction, gates: Gates | None = None) -> Work[Moves]:
    """Let in whose callers have committed, and let pass whom time alone lets pass, but at gates that another transaction has locked."""
    moves = Moves(tx.now, gates)
    due, arrivals = yield from gating.due(tx)
    busy = yield from locking.try_lock(tx, due)
    if arrivals:
        yield from moves.let_in(tx)
    moves.pump(gate for gate in due if gate not in busy)
    yield from moves.write(tx, quietly=True)
    return moves


def _wake(tx: Transaction) -> Work[None]:
    yield from locking.lock(tx, ())
    moves = yield from wake(tx)
    tx.work |= bool(moves.entered)


def promote(tx: Transaction) -> Work[int]:
    """What is due becomes ready, or waits for its gates. Returns the number of jobs."""
    yield from locking.lock(tx, ())
    if (yield from tx.value("any_keyed", now=tx.now, limit=WINDOW)):
        return (yield from _promote_by_key(tx))
    rows = yield from tx.rows("promote", now=tx.now, limit=WINDOW)
    tx.work |= bool(rows)
    return len(rows)


def _promote_by_key(tx: Transaction) -> Work[int]:
    rows = _due((yield from tx.value("due_jobs", now=tx.now, limit=WINDOW)))
    keys = {row.n: extra_of(row) for row in rows}
    fresh = [row.n for row in rows if row.claim == 0 and gated(keys[row.n])]  # only now they join their lanes
    seats: dict[int, int] = {}
    yield from locking.have(tx, (want.gate for extra in keys.values() for want in wants_of(extra)))
    if fresh:
        seats = dict(zip(fresh, _numbers((yield from tx.value("take_numbers", count=len(fresh)))), strict=True))
        yield from tx.post("note_seats", seats=text(seats))
    moves = Moves(tx.now)
    moves.seated({row.n: row.seat for row in rows} | seats)
    for row in rows:
        past = Past(row.claim, row.attempt, row.crashes, row.started_at, row.worker)
        moves.come_due(row.n, keys[row.n], Own(row.queue, row.rank, past, keys[row.n].fair_by), row.due)
    yield from moves.write(tx)
    return len(rows)


def _expire(tx: Transaction) -> Work[list[Touched]]:
    def act(rows: Sequence[JobColumns]) -> Work[Turn]:
        late = [row for row in rows if row.state in UNSTARTED and row.claim == 0]
        held = yield from families.try_children(tx, [row.job() for row in late])
        late = [row for row in late if row.workflow is None or row.id not in held]
        busy = yield from tallies.try_lock(tx, [row.job() for row in late])
        if busy:  # who adds jobs there may take long
            late = [row for row in late if busy.isdisjoint(tallies_of(row.job()))]
        return (yield from end_unstarted(tx, late, State.EXPIRED, "not started in time", patient=False))

    ids = _ids((yield from tx.value("expired", now=tx.now, limit=WINDOW)))
    expired = yield from in_turn(tx, ids, act, patient=False, most=MOST_TURNS)
    return [Touched("expired", row.id, row.task, row.queue) for row in expired]


def _forget(tx: Transaction) -> Work[int]:
    ns = _numbers((yield from tx.value("take_forgettable", now=tx.now, limit=WINDOW)))
    yield from forget(tx, ns)
    keys = yield from tx.value("drop_stale_keys", now=tx.now, limit=WINDOW)
    return max(len(ns), keys, (yield from tallies.forget_finished(tx)))


def _rescue_of(session: str, beat: int) -> Operation[list[Touched]]:
    def operation(tx: Transaction) -> Work[list[Touched]]:
        yield from tx.post("not_for_long")
        try:
            return (yield from rescue(tx, session, beat))
        except LockNotAvailable as error:
            raise BrokerError("another transaction holds what its jobs hold") from error

    return operation


def rescue(tx: Transaction, session: str, beat: int) -> Work[list[Touched]]:
    """End a dead session, if it has not shown life since, and hand on what it ran.

    But for leases that are locked, as a transaction does that is about to end a job and comes to no commit: then the session is over
    for its worker, and stays dead for others until that lock is free.
    """
    if not (yield from tx.do("lock_dead_session", id=session, beat=beat)):
        return []
    ns = _numbers((yield from tx.value("runs_of", session=session)))
    rows = yield from jobs_by_number(tx, ns)
    jobs = {n: row.job() for n, row in rows.items()}
    keys = Keys(tx)
    yield from keys.lock_of_claimed(jobs[n] for n, row in rows.items() if row.cancel_asked)
    yield from locking.lock(tx, [*locking.gates_of(jobs.values()), *locking.lines_of(jobs.values())])
    leases = held_rows((yield from tx.value("end_session_leases", session=session)))
    yield from tx.post("drop_session" if len(leases) == len(ns) else "shut_session", id=session)
    keys.check_claimed(jobs[held.n] for held in leases if held.cancel)  # some may have been asked to stop just now
    touched: list[Touched] = []
    endings: list[Ending] = []
    moves = Moves(tx.now)
    moves.seated({n: row.seat for n, row in rows.items()})
    for held in leases:
        job = jobs[held.n]
        past = held.past(given_back=1, crashes=1)
        if held.cancel:
            ending = Ending(held.n, job, past, State.CANCELLED, "cancelled")
            endings.append(ending)
            yield from let_go(keys, ending, moves)
        else:
            moves.back(held.n, job, past, held.pos, held.ready_at)
        event = "cancelled" if held.cancel else "rescued"
        touched.append(Touched(event, job.id, job.task, job.queue, f"worker {held.worker} died"))
    yield from record_ends(tx, endings)
    yield from keys.write()
    yield from moves.write(tx)
    return touched
