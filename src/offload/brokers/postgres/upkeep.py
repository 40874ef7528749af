"""Upkeep: rescues what dead sessions held, promotes what is due, expires, forgets; a bounded piece at a time.

Every piece is a transaction of its own, so that none holds locks while another works; several workers at it at once do no harm.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from offload.broker import Work
from offload.brokers.postgres.cancelling import UNSTARTED, Turn, end_unstarted, in_turn
from offload.brokers.postgres.endings import COVERED, Ending, forget, record_ends
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.planning import LOOK_EVERY, prune
from offload.brokers.postgres.rows import SECOND, JobColumns, jobs_by_number
from offload.brokers.postgres.settling import held_rows
from offload.brokers.postgres.work import Operation, Transaction
from offload.job import State, Touched, Upkeep

T = TypeVar("T")

WINDOW = 1_000
"""The most jobs that one round promotes, expires or forgets."""
LONGEST_WAIT = 60.0

_numbers = msgspec.json.Decoder(list[int]).decode
_ids = msgspec.json.Decoder(list[str]).decode


class Runner(Protocol):
    """Runs an operation in a transaction of its own."""

    def __call__(self, operation: Operation[T], /) -> Awaitable[T]: ...


class Moments(NamedTuple):
    """When something is next due, expires, may be forgotten, or is to be ticked; when absent schedules were last looked for."""

    due: int | None
    expires: int | None
    forgets: int | None
    tick: int | None
    pruned: int | None
    now: int

    def come(self, moment: int | None) -> bool:
        """Whether a moment has come."""
        return moment is not None and moment <= self.now

    @property
    def prunes(self) -> bool:
        """Whether absent schedules are to be looked for again."""
        return self.pruned is None or not 0 <= self.now - self.pruned < LOOK_EVERY

    @property
    def wait(self) -> float:
        """Seconds until the next promotion, expiry or tick."""
        moments = [moment for moment in (self.due, self.expires, self.tick) if moment is not None]
        wait = (min(moments) - self.now) / SECOND if moments else LONGEST_WAIT
        return min(max(wait, 0.0), LONGEST_WAIT)


async def maintain(run: Runner, step: Runner, dead: Sequence[tuple[str, int]]) -> Upkeep:
    """One round; `step` runs what is one statement. `dead` are sessions with the beat numbers at which they stopped."""
    touched: list[Touched] = []
    for session, beat in dead:
        touched += await run(_rescue_of(session, beat))
    moments = await step(look)
    pieces = [
        await run(promote) if moments.come(moments.due) else 0,
        await run(_forget) if moments.come(moments.forgets) else 0,
    ]
    if moments.come(moments.expires):
        expired = await run(_expire)
        touched += expired
        pieces.append(len(expired))
    if moments.prunes:
        await run(prune)
    if WINDOW in pieces:
        return Upkeep(0.0, tuple(touched))
    if any(pieces):
        moments = await step(look)
    return Upkeep(moments.wait, tuple(touched))


def look(tx: Transaction) -> Work[Moments]:
    """What is next to do; reads only."""
    due, expires, forgets, tick, pruned = yield from tx.row("moments")
    return Moments(due, expires, forgets, tick, pruned, tx.now)


def promote(tx: Transaction) -> Work[int]:
    """What is due becomes ready. Returns the number of jobs."""
    rows = yield from tx.rows("promote", now=tx.now, limit=WINDOW)
    tx.work |= bool(rows)
    return len(rows)


def _expire(tx: Transaction) -> Work[list[Touched]]:
    def act(rows: Sequence[JobColumns]) -> Work[Turn]:
        late = [row for row in rows if row.state in UNSTARTED and row.claim == 0]
        return (yield from end_unstarted(tx, late, State.EXPIRED, "not started in time", patient=False))

    ids = _ids((yield from tx.value("expired", now=tx.now, limit=WINDOW)))
    expired = yield from in_turn(tx, ids, act, patient=False)
    return [Touched("expired", row.id, row.task, row.queue) for row in expired]


def _forget(tx: Transaction) -> Work[int]:
    ns = _numbers((yield from tx.value("take_forgettable", now=tx.now, limit=WINDOW)))
    yield from forget(tx, ns)
    return len(ns)


def _rescue_of(session: str, beat: int) -> Operation[list[Touched]]:
    def operation(tx: Transaction) -> Work[list[Touched]]:
        return (yield from rescue(tx, session, beat))

    return operation


def rescue(tx: Transaction, session: str, beat: int) -> Work[list[Touched]]:
    """End a dead session, if it has not shown life since, and hand on what it ran."""
    if not (yield from tx.do("drop_dead_session", id=session, beat=beat)):
        return []
    ns = _numbers((yield from tx.value("runs_of", session=session)))
    jobs = {n: row.job() for n, row in (yield from jobs_by_number(tx, ns)).items()}
    keys = Keys(tx)
    leases = held_rows((yield from tx.value("end_session_leases", session=session)))
    yield from keys.lock_of_claimed(jobs[held.n] for held in leases if held.cancel)
    touched: list[Touched] = []
    endings: list[Ending] = []
    moves = Moves(tx.now)
    for held in leases:
        job = jobs[held.n]
        past = held.past(given_back=1, crashes=1)
        if held.cancel:
            endings.append(Ending(held.n, job, past, State.CANCELLED, "cancelled"))
            yield from keys.give_up(held.n, job, COVERED, moves)
        else:
            moves.back(held.n, job, past, held.pos, held.ready_at)
        event = "cancelled" if held.cancel else "rescued"
        touched.append(Touched(event, job.id, job.task, job.queue, f"worker {held.worker} died"))
    yield from record_ends(tx, endings)
    yield from keys.write()
    yield from moves.write(tx)
    return touched
