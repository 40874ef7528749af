"""What a person does to jobs: cancel, retry, delete."""

from __future__ import annotations

from msgspec.structs import replace

from offload.brokers.memory.endings import finish, give_up, take_back
from offload.brokers.memory.families import arrive, free_to_wait
from offload.brokers.memory.line import Entry
from offload.brokers.memory.moves import leave, withdraw
from offload.brokers.memory.shelf import Shelf, holds_turn
from offload.job import State

REVIVABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


def cancel(shelf: Shelf, id: str) -> bool:
    """Cancel a job, or ask its worker to. False when there is nothing to cancel."""
    entry = shelf.entries.get(id)
    if entry is None or entry.state.terminal:
        return False
    if entry.state is State.RUNNING:
        entry.cancel_asked = True
    else:
        finish(shelf, entry, State.CANCELLED, "cancelled")
    return True


def revive(shelf: Shelf, id: str, payload: bytes | None) -> bool:
    """Start a job's life anew. False when it is not dead, cancelled or expired, a parent has failed or never comes, or its key is taken."""
    entry = shelf.entries.get(id)
    if entry is None or entry.state not in REVIVABLE:
        return False
    if not free_to_wait(shelf, entry) or not take_back(shelf, entry):
        return False
    was = entry.state
    entry.job = replace(entry.job, payload=entry.job.payload if payload is None else payload, run_at=None, expires_at=None)
    entry.attempt, entry.crashes, entry.cancel_asked, entry.due = 0, 0, False, None
    entry.result = entry.finished_at = entry.progress = None
    kept = holds_turn(entry)
    if not kept:  # who kept its turn keeps its place as well
        entry.seat = shelf.next_number()
    entry.felled = False
    _begin(shelf, entry)
    if kept and entry.pending:  # the parent for whom it waits may itself wait for that turn
        leave(shelf, entry, ("turn",))
    shelf.counts.revived(entry.job, was, by_hand=True)
    shelf.owe(entry.job)
    return True


def _begin(shelf: Shelf, entry: Entry) -> None:
    """Have a revived job take its place, or wait; a callback that has never run waits for its batch again."""
    batch = None if entry.job.callback is None or entry.claim > 0 else shelf.counts.all.get(("batch", entry.job.batch or ""))
    if batch is None:
        arrive(shelf, entry)
    else:
        entry.state, entry.pending, entry.reason = State.WAITING, True, None
        shelf.counts.touch(batch)


def delete(shelf: Shelf, id: str) -> bool:
    """Remove a job that does not run."""
    entry = shelf.entries.get(id)
    if entry is None or entry.state is State.RUNNING:
        return False
    withdraw(shelf, entry)
    if not entry.state.terminal:
        shelf.counts.ended(entry.job, State.CANCELLED)
        shelf.owe(entry.job, f"parent {id} was deleted")
    shelf.remove(entry)
    give_up(shelf, entry)
    leave(shelf, entry)
    return True
