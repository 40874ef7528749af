"""What comes with time: due jobs become ready, late ones expire, old ones are forgotten; a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from offload.brokers.memory import tallies
from offload.brokers.memory.endings import finish
from offload.brokers.memory.line import Entry, TimeLine
from offload.brokers.memory.moves import join, make_ready, pump
from offload.brokers.memory.shelf import Shelf
from offload.brokers.memory.tallies import settle_up
from offload.job import State, Touched

WINDOW = 1_000
"""The most jobs that one round promotes, expires or forgets."""
SOONEST = 0.005
"""Seconds within which tokens are not looked for again: those that come meanwhile are taken together, and none is late for it."""


def wake(shelf: Shelf) -> None:
    """Let pass whom time alone lets pass."""
    pump(shelf, shelf.gating.due(shelf.moment()))


def promote(shelf: Shelf) -> int:
    """Make ready what is due, earliest first. Returns how many."""

    def come_due(entry: Entry) -> None:
        join(shelf, entry)
        make_ready(shelf, entry)

    return len(_each_come(shelf, shelf.scheduled, come_due))


def expire(shelf: Shelf) -> list[Touched]:
    """End what was not started in time."""
    expired = _each_come(shelf, shelf.expiring, lambda entry: finish(shelf, entry, State.EXPIRED, "not started in time"))
    settle_up(shelf)
    return [Touched("expired", entry.job.id, entry.job.task, entry.job.queue) for entry in expired]


def forget(shelf: Shelf) -> int:
    """Drop the records whose time is over. Returns how many."""
    shelf.gating.forget(shelf.moment())
    return len(_each_come(shelf, shelf.forgettable, shelf.remove)) + tallies.forget(shelf)


def _each_come(shelf: Shelf, line: TimeLine, act: Callable[[Entry], None]) -> list[Entry]:
    """Do `act` to each entry whose moment has come, at most WINDOW of them."""
    now = shelf.clock.now()
    come: list[Entry] = []
    while len(come) < WINDOW and (entry := line.take(now)) is not None:
        act(entry)
        come.append(entry)
    return come


def next_moment(shelf: Shelf) -> datetime | None:
    """When a job is next due, or expires."""
    return min((moment for line in (shelf.scheduled, shelf.expiring) if (moment := line.first()) is not None), default=None)


def next_wake(shelf: Shelf) -> float | None:
    """Seconds until time alone lets somebody pass."""
    moment = shelf.gating.next_moment()
    return None if moment is None else max((moment - shelf.moment()) / 1_000_000, SOONEST)
