"""Stores jobs, and decides what becomes of those whose id or key is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from msgspec.structs import replace

from offload.brokers.memory.control import cancel
from offload.brokers.memory.keys import Hold
from offload.brokers.memory.line import UNSTARTED, Entry
from offload.brokers.memory.moves import join, place, withdraw
from offload.brokers.memory.shelf import Shelf
from offload.errors import IdConflict, UniqueConflict
from offload.job import Job, State, UniqueKey, keys_of


def store(shelf: Shelf, jobs: Sequence[Job]) -> list[str]:
    """Store jobs in order, all or none; returns the ids that stand for them."""
    with shelf.undo.on_error():
        return [_store(shelf, job) for job in jobs]


def _store(shelf: Shelf, job: Job) -> str:
    known = shelf.entries.get(job.id)
    if known is not None:
        if (known.job.task, known.job.payload) != (job.task, job.payload):
            raise IdConflict(job.id)
        return job.id
    behind: str | None = None
    for unique in keys_of(job):
        shelf.remember_key(unique.key)
        hold = shelf.keys.held(unique.key)
        if hold is not None and job.overlap == "replace" and unique.key == f"schedule:{job.schedule}":
            shelf.remember(shelf.entries[hold.holder])
            cancel(shelf, hold.holder)
            hold = shelf.keys.held(unique.key)
        if hold is None:
            continue
        stand_in = _conflict(shelf, hold, unique, job)
        if stand_in is not None:
            return stand_in
        behind = hold.holder
    _add(shelf, job, behind)
    return job.id


def _conflict(shelf: Shelf, hold: Hold, unique: UniqueKey, job: Job) -> str | None:
    """The id that stands for `job`, or None when it may wait behind the holder."""
    match unique.on_conflict:
        case "skip":
            return hold.holder
        case "raise":
            raise UniqueConflict(unique.key, hold.holder)
        case "replace" | "debounce":
            holder = shelf.entries.get(hold.holder)
            if holder is not None and holder.state in UNSTARTED:
                shelf.remember(holder)
                _replace(shelf, holder, job, move=unique.on_conflict == "debounce")
            return hold.holder
        case "keep_last" if hold.unique.until != "finished":
            return hold.holder  # nothing would tell a successor that the key is free
        case "keep_last":
            if hold.successor is None:
                return None
            successor = shelf.entries[hold.successor]
            shelf.remember(successor)
            successor.job = replace(successor.job, payload=job.payload)
            return hold.successor
        case _:
            assert_never(unique.on_conflict)


def _replace(shelf: Shelf, entry: Entry, job: Job, *, move: bool) -> None:
    entry.job = replace(entry.job, payload=job.payload)
    if not move:
        return
    entry.job = replace(entry.job, run_at=job.run_at)
    if entry.behind is not None:
        entry.due = job.run_at
        return
    if entry.state is State.SCHEDULED:
        join(shelf, entry)
    withdraw(shelf, entry)
    place(shelf, entry, job.run_at)


def _add(shelf: Shelf, job: Job, behind: str | None) -> None:
    n = shelf.next_number()
    entry = shelf.entries[job.id] = Entry(n, job, due=job.run_at, seat=n)
    shelf.undo.by(lambda: shelf.remove(entry))
    for unique in keys_of(job):
        hold = shelf.keys.held(unique.key)
        if hold is None:
            shelf.keys.take(unique, job)
        else:
            hold.successor = job.id
    shelf.expiring.push(entry)
    if behind is None:
        place(shelf, entry, job.run_at)
    else:
        entry.state, entry.behind = State.WAITING, behind
