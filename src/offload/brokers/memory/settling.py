"""Records how attempts ended, and takes back those that nobody goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import assert_never

from offload.brokers.memory.endings import finish
from offload.brokers.memory.enqueueing import add
from offload.brokers.memory.line import Entry
from offload.brokers.memory.moves import make_ready, place, shut
from offload.brokers.memory.shelf import Shelf
from offload.brokers.memory.tallies import settle_up
from offload.errors import OffloadError
from offload.job import Cancelled, Dead, Done, Failure, Job, Outcome, Release, Retried, State, Touched


def settle(shelf: Shelf, entry: Entry, outcome: Outcome) -> None:
    """Record the outcome of the running attempt of `entry`."""
    if entry.cancel_asked and not isinstance(outcome, Done):
        outcome = Cancelled()
    match outcome:
        case Done(result, added):
            refused = _refused(shelf, entry, added)
            entry.result = result if refused is None else None
            finish(shelf, entry, State.SUCCEEDED if refused is None else State.DEAD, refused)
        case Retried(delay, failure, whole_key):
            _note(entry, failure)
            if whole_key:
                shut(shelf, entry, delay)
            place(shelf, entry, shelf.clock.now() + timedelta(seconds=delay) if delay > 0 else None)
        case Dead(reason, failure, hold_key):
            _note(entry, failure)
            if hold_key > 0:
                shut(shelf, entry, hold_key)
            finish(shelf, entry, State.DEAD, reason)
        case Cancelled(reason):
            finish(shelf, entry, State.CANCELLED, reason)
        case Release(delay):
            entry.attempt -= 1
            if delay > 0:
                place(shelf, entry, shelf.clock.now() + timedelta(seconds=delay))
            else:
                make_ready(shelf, entry, keep_place=True)
        case _:
            assert_never(outcome)


def _refused(shelf: Shelf, entry: Entry, added: Sequence[Job]) -> str | None:
    """Enqueue what a job adds. Returns why that cannot be, if it cannot."""
    try:
        add(shelf, added, entry.job)
    except OffloadError as error:
        return f"the jobs that it added were refused: {error}"
    return None


def _note(entry: Entry, failure: Failure | None) -> None:
    if failure is not None:
        entry.errors.append(failure)


def release(shelf: Shelf, session: str) -> None:
    """Hand back, unharmed, what a leaving session still runs."""
    for entry in shelf.running(session):
        settle(shelf, entry, Release())
    settle_up(shelf)


def rescue(shelf: Shelf, session: str) -> list[Touched]:
    """Take from a dead session what it ran."""
    touched = [_rescue(shelf, entry) for entry in shelf.running(session)]
    settle_up(shelf)
    return touched


def _rescue(shelf: Shelf, entry: Entry) -> Touched:
    entry.crashes += 1
    entry.attempt -= 1
    if entry.cancel_asked:
        finish(shelf, entry, State.CANCELLED, "cancelled")
    else:
        make_ready(shelf, entry, keep_place=True)
    event = "cancelled" if entry.state is State.CANCELLED else "rescued"
    return Touched(event, entry.job.id, entry.job.task, entry.job.queue, f"worker {entry.worker} died")
