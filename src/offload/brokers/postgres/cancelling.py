"""Ends jobs that have not started, and asks for the end of those that run.

Nothing keeps a job where it was read: another transaction may move it before this one takes it. So all that is done to jobs is done
to those found where they were, and the others are looked for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple, TypeAlias

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking
from offload.brokers.postgres.endings import Ending, finish
from offload.brokers.postgres.families import kin_of
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.moves import Moves, take_out
from offload.brokers.postgres.rows import JobColumns, jobs_by_id, jobs_by_number
from offload.brokers.postgres.work import Transaction, text
from offload.gates import wants_of
from offload.job import Job, State, keys_of

UNSTARTED = frozenset({State.READY, State.SCHEDULED, State.WAITING})

_numbers = msgspec.json.Decoder(list[int]).decode


class Turn(NamedTuple):
    """What became of the jobs of one turn: those that something was done to, and those that moved meanwhile."""

    done: Sequence[JobColumns]
    moved: Sequence[JobColumns]


Act: TypeAlias = Callable[[Sequence[JobColumns]], Work[Turn]]


def in_turn(tx: Transaction, ids: Iterable[str], act: Act, *, patient: bool = True, most: float = inf) -> Work[list[JobColumns]]:
    """Have `act` take the jobs of these ids in order, together as far as none could touch another by a key they share.

    Returns the jobs that it did something to, as they were. Where `patient`, keys that others have locked are waited for. It ends after
    the `most` turns that did anything, where a transaction must not become as long as a key has jobs.
    """
    done: list[JobColumns] = []
    rows = list((yield from jobs_by_id(tx, ids)).values())
    gates = locking.gates_of(row.job() for row in rows)
    if patient and (gates or _apart(rows) < len(rows)):  # keys of a later turn must not be waited for with those of an earlier one in hand
        yield from Keys(tx).lock(row.job() for row in rows)
    yield from locking.lock(tx, gates)
    left = deque(rows)
    turns, fresh = 0, not gates  # for which it may have waited
    while left and turns < most:
        first = [left.popleft() for _ in range(_apart(left))]
        turn = yield from act(first if fresh else (yield from _anew(tx, first)))
        turns, fresh = turns + bool(turn.done), False
        done += turn.done
        left.extendleft(reversed(turn.moved))
    return done


def _anew(tx: Transaction, rows: Sequence[JobColumns]) -> Work[list[JobColumns]]:
    """Jobs as they stand now: a turn before, or another transaction, may have moved them. Their keys never change."""
    found = yield from jobs_by_number(tx, [row.n for row in rows])
    return [found[row.n] for row in rows if row.n in found]


def _apart(rows: Sequence[JobColumns]) -> int:
    """How many of the first jobs share no key."""
    seen: set[str] = set()
    for count, row in enumerate(rows):
        wanted = _shared(row.job())
        if wanted & seen:
            return count
        seen |= wanted
    return len(rows)


def _shared(job: Job) -> set[str]:
    """The keys and gates by which a job may touch others."""
    return {*(f"unique {unique.key}" for unique in keys_of(job)), *(want.gate for want in wants_of(job))}


def end(tx: Transaction, ids: Iterable[str], state: State, reason: str) -> Work[list[JobColumns]]:
    """End jobs that have not started; those that run are asked to stop. Returns those that were not terminal, as they were."""
    return (yield from in_turn(tx, ids, lambda rows: _end(tx, rows, state, reason)))


def _end(tx: Transaction, rows: Sequence[JobColumns], state: State, reason: str) -> Work[Turn]:
    running = [row for row in rows if row.state is State.RUNNING]
    asked = set(_numbers((yield from tx.value("ask_to_cancel", ns=text([row.n for row in running]))))) if running else set[int]()
    ended = yield from end_unstarted(tx, [row for row in rows if row.state in UNSTARTED], state, reason)
    return Turn([*ended.done, *(row for row in running if row.n in asked)], [*ended.moved, *(row for row in running if row.n not in asked)])


def end_unstarted(tx: Transaction, rows: Sequence[JobColumns], state: State, reason: str, *, patient: bool = True) -> Work[Turn]:
    """End jobs that do not run, if they stand where they were read and were not claimed and released in between.

    Unless `patient`, those are left alone whose keys another transaction has locked.
    """
    keys = Keys(tx)
    if patient:
        yield from keys.lock(row.job() for row in rows)
    else:
        rows = yield from _not_busy(keys, rows)
    if not rows:
        return Turn([], [])
    yield from kin_of(tx, [row for row in rows if row.what == "parents"])  # before their places, as do those who tell them of parents
    taken = yield from take_out(tx, rows)
    moves = Moves(tx.now)
    moves.seated({row.n: row.seat for row in rows})
    done: list[JobColumns] = []
    moved: list[JobColumns] = []
    for row in rows:
        past = taken.get(row.n)
        if past is not None and past.claim == row.claim:
            done.append(row)
            continue
        moved.append(row)
        if past is not None and row.lane is None:
            moves.back(row.n, row.job(), past, row.pos, tx.now)
    yield from finish(tx, keys, [Ending(row.n, row.job(), taken[row.n], state, reason, lane=row.lane) for row in done], moves)
    yield from keys.write()
    yield from moves.write(tx)
    return Turn(done, moved)


def _not_busy(keys: Keys, rows: Sequence[JobColumns]) -> Work[list[JobColumns]]:
    """Those jobs whose keys could be locked at once."""
    jobs = [row.job() for row in rows]
    busy = yield from keys.try_lock(jobs)
    busy |= yield from keys.try_lock_behind(jobs)
    return [row for row, job in zip(rows, jobs, strict=True) if not any(unique.key in busy for unique in keys_of(job))]


def cancel(tx: Transaction, ids: Iterable[str]) -> Work[set[str]]:
    """Cancel jobs; see `Store.cancel`."""
    return {row.id for row in (yield from end(tx, ids, State.CANCELLED, "cancelled"))}
