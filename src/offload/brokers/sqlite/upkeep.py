"""Upkeep: rescues what dead sessions held, promotes what is due, expires, forgets; a bounded piece at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import msgspec

from offload.brokers.sqlite import gating, tallies
from offload.brokers.sqlite.cancelling import end
from offload.brokers.sqlite.endings import Ending, forget, let_go, record_ends
from offload.brokers.sqlite.gating import Past
from offload.brokers.sqlite.moves import Moves
from offload.brokers.sqlite.planning import prune
from offload.brokers.sqlite.rows import Extra, JobColumns, extra_of, jobs_by_number, placed, text
from offload.brokers.sqlite.settling import Held, end_attempts
from offload.brokers.sqlite.tallies import settle_up
from offload.brokers.sqlite.transaction import Transaction
from offload.gates import gated
from offload.job import Job, Lease, Release, State, Touched, Upkeep
from offload.upkeep import Moments

WINDOW = 1_000
"""The most jobs that one round promotes, expires or forgets."""

_numbers = msgspec.json.Decoder(list[int]).decode
_ids = msgspec.json.Decoder(list[str]).decode
_held = msgspec.json.Decoder(list[Held]).decode


class DueRow(msgspec.Struct, array_like=True, frozen=True):
    """A scheduled job whose time has come."""

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


def maintain(tx: Transaction, now: int, dead: Sequence[tuple[str, int]]) -> Upkeep:
    """One round. `dead` are sessions with the beat numbers at which they stopped."""
    touched = [each for session, beat in dead if tx.do("drop_dead_session", id=session, beat=beat) for each in _rescue(tx, now, session)]
    wake(tx, now)
    promoted = _promote(tx, now)
    expired = _expire(tx, now)
    abandoned = tallies.abandon(tx, now)
    more = tallies.go_on(tx, now) or abandoned == tallies.MOST_AT_ONCE
    forgotten = _forget(tx, now) + tallies.forget_old(tx, now)
    gating.forget(tx, now)
    moments = look(tx, now)
    if moments.set_back:
        tx.do("look_at_gates_again", now=now)
    if moments.prunes:
        prune(tx, now)
    wait = 0.0 if more or WINDOW in (promoted, len(expired), forgotten) else look(tx, now).wait
    return Upkeep(wait, (*touched, *expired))


def look(tx: Transaction, now: int) -> Moments:
    """What is next to do; reads only."""
    due, expires, forgets, tick, pruned, wakes, fades = tx.row("moments")
    return Moments(due, expires, forgets, tick, pruned, wakes, fades, now)


def leases_of(tx: Transaction, session: str) -> list[tuple[Held, JobColumns]]:
    """What a session runs, in the order it was stored."""
    numbers = tx.value("held_all", session=session)
    held = {row.n: row for row in _held(tx.value("held", ns=numbers, session=session))}
    jobs = jobs_by_number(tx, _numbers(numbers))
    return [(held[n], jobs[n]) for n in jobs]


def release_all(tx: Transaction, now: int, session: str, kept: AbstractSet[tuple[object, int]] = frozenset()) -> int:
    """Hand back, unharmed, what a session still runs but for `kept`, as (n, claim). Returns how many."""
    leases = [(row, job) for row, job in leases_of(tx, session) if (row.n, row.claim) not in kept]
    if leases:
        end_attempts(tx, now, [(row, Lease(job.job(), row.claim, row.attempt), Release()) for row, job in leases])
    settle_up(tx, now)
    return len(leases)


def _rescue(tx: Transaction, now: int, session: str) -> list[Touched]:
    leases = leases_of(tx, session)
    if not leases:
        return []
    tx.do("drop_running", ns=text([row.n for row, _ in leases]))
    touched: list[Touched] = []
    endings: list[Ending] = []
    moves = Moves(tx, now)
    moves.seated({stored.n: stored.seat for _, stored in leases})
    for row, stored in leases:
        job: Job = stored.job()
        past = row.past(given_back=1, crashes=1)
        if row.cancel:
            ending = Ending(row.n, job, past, State.CANCELLED, "cancelled")
            endings.append(ending)
            let_go(tx, now, ending, moves)
        else:
            moves.back(row.n, job, past, row.pos, row.ready_at)
        event = "cancelled" if row.cancel else "rescued"
        touched.append(Touched(event, job.id, job.task, job.queue, f"worker {row.worker} died"))
    record_ends(tx, now, endings)
    moves.write()
    settle_up(tx, now)
    return touched


def _promote(tx: Transaction, now: int) -> int:
    rows = _due(tx.value("due_jobs", now=now, limit=WINDOW))
    if rows and any(row.extra is not None and _keyed(extra_of(row)) for row in rows):
        _promote_by_gates(tx, now, rows)
    elif rows:
        first = tx.numbers(len(rows))
        tx.do("drop_due", due=rows[-1].due, n=rows[-1].n)
        tx.do("note_promoted", first=first, ns=text([row.n for row in rows]))
        tx.add(
            "add_ready",
            [
                (r.queue, placed(r.rank), pos, r.n, r.claim, r.attempt, r.crashes, now, r.started_at, r.worker)
                for pos, r in enumerate(rows, start=first)
            ],
        )
        tx.work = True
    return len(rows)


def _promote_by_gates(tx: Transaction, now: int, rows: Sequence[DueRow]) -> None:
    keys = {row.n: extra_of(row) for row in rows}
    fresh = [row.n for row in rows if row.claim == 0 and gated(keys[row.n])]  # only now they join their lanes
    seats = dict(zip(fresh, itertools.count(tx.numbers(len(fresh)) if fresh else 0), strict=False))
    if seats:
        tx.do("note_seats", seats=text(list(seats.items())))
    tx.do("drop_due", due=rows[-1].due, n=rows[-1].n)
    moves = Moves(tx, now)
    moves.seated({row.n: row.seat for row in rows} | seats)
    for r in rows:
        moves.come_due(r.n, keys[r.n], r.queue, r.rank, r.due, Past(r.claim, r.attempt, r.crashes, r.started_at, r.worker))
    moves.write()


def _keyed(extra: Extra) -> bool:
    return gated(extra) or extra.fair_by is not None


def wake(tx: Transaction, now: int) -> None:
    """Let pass whom time alone lets pass."""
    due = gating.due(tx, now)
    if due:
        moves = Moves(tx, now)
        moves.pump(due)
        moves.write()


def _expire(tx: Transaction, now: int) -> list[Touched]:
    ids = _ids(tx.value("expired", now=now, limit=WINDOW))
    expired = end(tx, now, ids, State.EXPIRED, "not started in time")
    settle_up(tx, now)
    return [Touched("expired", row.id, row.task, row.queue) for row in expired]


def _forget(tx: Transaction, now: int) -> int:
    numbers = tx.value("forgettable", now=now, limit=WINDOW)
    ns = _numbers(numbers)
    if ns:
        tx.do("drop_done", ns=numbers)
        forget(tx, ns)
    return len(ns)
