"""Ends jobs by a person's word."""

from __future__ import annotations

from offload.brokers.sqlite.endings import Ending, finish
from offload.brokers.sqlite.moves import Moves, past_of, take_out
from offload.brokers.sqlite.rows import JobColumns, job_by_id
from offload.brokers.sqlite.transaction import Transaction
from offload.job import State


def cancel_one(tx: Transaction, now: int, id: str) -> bool:
    """Cancel a job, or ask its worker to. False when there is nothing to cancel."""
    return end_one(tx, now, id, State.CANCELLED, "cancelled") is not None


def end_one(tx: Transaction, now: int, id: str, state: State, reason: str) -> JobColumns | None:
    """End a job that has not started; one that runs is asked to stop. Returns it as it was, None where it had ended before."""
    row = job_by_id(tx, id)
    if row is None or row.state.terminal:
        return None
    if row.state is State.RUNNING:
        tx.do("ask_to_cancel", n=row.n)
        return row
    take_out(tx, row)
    moves = Moves(now)
    finish(tx, now, [Ending(row.n, row.job(), past_of(row), state, reason)], moves)
    moves.write(tx)
    return row
