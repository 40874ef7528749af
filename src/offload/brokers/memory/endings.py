"""Brings jobs to their end, and gives their keys to those who waited for them."""

from __future__ import annotations

from collections.abc import Collection

from offload.brokers.memory.line import Entry
from offload.brokers.memory.moves import join, leave, place, withdraw
from offload.brokers.memory.shelf import Shelf, holds_turn
from offload.gates import KINDS
from offload.job import State, keys_of


def finish(shelf: Shelf, entry: Entry, state: State, reason: str | None) -> None:
    """End a job: write it down, give its keys away, and leave its gates."""
    entry.state, entry.reason, entry.behind, entry.session, entry.aside = state, reason, None, None, False
    entry.pending = False
    entry.finished_at = shelf.clock.now()
    shelf.remember_counts(entry.job)
    shelf.counts.ended(entry.job, state)
    shelf.owe(entry.job)
    withdraw(shelf, entry)
    give_up(shelf, entry, ("started", "finished"))
    leave(shelf, entry, ("slot", "token") if holds_turn(entry) else KINDS)
    if state is State.SUCCEEDED and entry.job.keep <= 0 and entry.job.workflow is None:
        del shelf.entries[entry.job.id]
    else:
        shelf.forgettable.push(entry)


def take_back(shelf: Shelf, entry: Entry) -> bool:
    """Take the keys again that a job which is to be revived gave up at its end. False, and nothing taken, when one is another's."""
    wanted = [unique for unique in keys_of(entry.job) if unique.until in ("started", "finished")]
    if any(shelf.keys.held(unique.key) is not None for unique in wanted):
        return False
    for unique in wanted:
        shelf.remember_key(unique.key)
        shelf.keys.take(unique, entry.job)
    return True


def give_up(shelf: Shelf, entry: Entry, until: Collection[object] | None = None) -> None:
    """Free the keys that a job holds `until` what has just come, or all of them, and let their successors take over."""
    for unique in keys_of(entry.job):
        hold = shelf.keys.held(unique.key)
        if hold is None or (hold.holder == entry.job.id and until is not None and hold.unique.until not in until):
            continue
        shelf.remember_key(unique.key)
        successor = shelf.keys.give_up(unique.key, entry.job.id)
        if successor is not None:
            _succeed(shelf, shelf.entries[successor], unique.key)


def _succeed(shelf: Shelf, entry: Entry, key: str) -> None:
    """Give a key that came free to the job that waited for it; it goes on waiting if another of its keys is taken."""
    shelf.remember(entry)
    behind: str | None = None
    for unique in keys_of(entry.job):
        hold = shelf.keys.held(unique.key)
        if hold is None and unique.key == key:
            shelf.keys.take(unique, entry.job)
        elif hold is not None and hold.holder != entry.job.id:
            behind = hold.holder
    if behind is None:
        join(shelf, entry)
        place(shelf, entry, entry.job.run_at)
    else:
        entry.behind = behind
