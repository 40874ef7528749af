"""Ends jobs that have not started, and asks for the end of those that run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from offload.brokers.sqlite.endings import Ending, finish
from offload.brokers.sqlite.moves import Moves, past_of, take_out
from offload.brokers.sqlite.rows import JobColumns, jobs_by_id, text
from offload.brokers.sqlite.transaction import Transaction
from offload.gates import gated
from offload.job import State, keys_of


def in_turn(tx: Transaction, ids: Iterable[str], act: Callable[[Sequence[JobColumns]], Sequence[JobColumns]]) -> Sequence[JobColumns]:
    """Have `act` take the jobs of these ids, all at once where none has a key by which it could touch another; else one by one.

    Returns what `act` returns: the jobs that it did something to, as they were.
    """
    rows = jobs_by_id(tx, ids)
    if len(rows) < 2 or not any(keys_of(job) or gated(job) for job in (row.job() for row in rows.values())):
        return act(list(rows.values()))
    return [done for id in rows for done in act(list(jobs_by_id(tx, [id]).values()))]


def end(tx: Transaction, now: int, ids: Iterable[str], state: State, reason: str) -> Sequence[JobColumns]:
    """End jobs that have not started; those that run are asked to stop. Returns those that were not terminal, as they were."""
    return in_turn(tx, ids, lambda rows: _end(tx, now, rows, state, reason))


def _end(tx: Transaction, now: int, rows: Sequence[JobColumns], state: State, reason: str) -> Sequence[JobColumns]:
    going_on = [row for row in rows if not row.state.terminal]
    running = [row.n for row in going_on if row.state is State.RUNNING]
    if running:
        tx.do("ask_to_cancel", ns=text(running))
    waiting = [row for row in going_on if row.state is not State.RUNNING]
    if waiting:
        take_out(tx, waiting)
        moves = Moves(tx, now)
        moves.seated({row.n: row.seat for row in waiting})
        finish(tx, now, [Ending(row.n, row.job(), past_of(row), state, reason, lane=row.lane) for row in waiting], moves)
        moves.write()
    return going_on


def cancel(tx: Transaction, now: int, ids: Iterable[str]) -> set[str]:
    """Cancel jobs; see `Store.cancel`."""
    return {row.id for row in end(tx, now, ids, State.CANCELLED, "cancelled")}
