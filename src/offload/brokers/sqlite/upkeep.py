"""Upkeep: rescues what dead sessions held, promotes what is due, expires, forgets; a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import msgspec

from offload.brokers.sqlite.cancelling import end
from offload.brokers.sqlite.endings import COVERED, Ending, forget, record_ends
from offload.brokers.sqlite.keys import give_up
from offload.brokers.sqlite.moves import Moves
from offload.brokers.sqlite.planning import prune
from offload.brokers.sqlite.rows import SECOND, JobColumns, jobs_by_number, text
from offload.brokers.sqlite.settling import Held, end_attempts
from offload.brokers.sqlite.transaction import Transaction
from offload.job import Job, Lease, Release, State, Touched, Upkeep

WINDOW = 1_000
"""The most jobs that one round promotes, expires or forgets."""
LONGEST_WAIT = 60.0

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


_due = msgspec.json.Decoder(list[DueRow]).decode


def maintain(tx: Transaction, now: int, dead: Sequence[tuple[str, int]]) -> Upkeep:
    """One round. `dead` are sessions with the beat numbers at which they stopped."""
    touched = [each for session, beat in dead if tx.do("drop_dead_session", id=session, beat=beat) for each in _rescue(tx, now, session)]
    promoted = _promote(tx, now)
    expired = _expire(tx, now)
    forgotten = _forget(tx, now)
    prune(tx, now)
    wait = 0.0 if WINDOW in (promoted, len(expired), forgotten) else next_wait(tx, now)
    return Upkeep(wait, (*touched, *expired))


def idle(tx: Transaction, now: int) -> bool:
    """Whether a round would find nothing to do but, perhaps, to rescue."""
    due, expires, forgets, _, pruned = tx.row("moments")
    looked = pruned is not None and 0 <= now - pruned < 60 * SECOND
    return looked and all(moment is None or moment > now for moment in (due, expires, forgets))


def next_wait(tx: Transaction, now: int) -> float:
    """Seconds until the next promotion, expiry or tick."""
    due, expires, _, tick, _ = tx.row("moments")
    moments = [moment for moment in (due, expires, tick) if moment is not None]
    wait = (min(moments) - now) / SECOND if moments else LONGEST_WAIT
    return min(max(wait, 0.0), LONGEST_WAIT)


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
    return len(leases)


def _rescue(tx: Transaction, now: int, session: str) -> list[Touched]:
    leases = leases_of(tx, session)
    if not leases:
        return []
    tx.do("drop_running", ns=text([row.n for row, _ in leases]))
    touched: list[Touched] = []
    endings: list[Ending] = []
    moves = Moves(now)
    for row, stored in leases:
        job: Job = stored.job()
        past = row.past(given_back=1, crashes=1)
        if row.cancel:
            endings.append(Ending(row.n, job, past, State.CANCELLED, "cancelled"))
            give_up(tx, now, row.n, job, COVERED, moves)
        else:
            moves.back(row.n, job, past, row.pos, row.ready_at)
        event = "cancelled" if row.cancel else "rescued"
        touched.append(Touched(event, job.id, job.task, job.queue, f"worker {row.worker} died"))
    record_ends(tx, now, endings)
    moves.write(tx)
    return touched


def _promote(tx: Transaction, now: int) -> int:
    rows = _due(tx.value("due_jobs", now=now, limit=WINDOW))
    if rows:
        first = tx.numbers(len(rows))
        tx.do("drop_due", due=rows[-1].due, n=rows[-1].n)
        tx.do("note_promoted", first=first, ns=text([row.n for row in rows]))
        tx.add(
            "add_ready",
            [
                (r.queue, r.rank, pos, r.n, r.claim, r.attempt, r.crashes, now, r.started_at, r.worker)
                for pos, r in enumerate(rows, start=first)
            ],
        )
        tx.work = True
    return len(rows)


def _expire(tx: Transaction, now: int) -> list[Touched]:
    ids = _ids(tx.value("expired", now=now, limit=WINDOW))
    return [Touched("expired", row.id, row.task, row.queue) for row in end(tx, now, ids, State.EXPIRED, "not started in time")]


def _forget(tx: Transaction, now: int) -> int:
    numbers = tx.value("forgettable", now=now, limit=WINDOW)
    ns = _numbers(numbers)
    if ns:
        tx.do("drop_done", ns=numbers)
        forget(tx, ns)
    return len(ns)
