"""Stores jobs, and decides what becomes of those whose id or key is taken."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import assert_never

from msgspec.structs import replace

from offload.brokers.memory import tallies
from offload.brokers.memory.control import cancel
from offload.brokers.memory.endings import finish
from offload.brokers.memory.families import arrive, connect, unknown_parent
from offload.brokers.memory.keys import Hold
from offload.brokers.memory.line import UNSTARTED, Entry
from offload.brokers.memory.moves import join as join_lane
from offload.brokers.memory.moves import place, withdraw
from offload.brokers.memory.shelf import Shelf
from offload.brokers.memory.tallies import incomplete, join, settle_up, to_be_checked
from offload.errors import IdConflict, ParentNotFound, UniqueConflict
from offload.job import Job, Membership, State, UniqueKey, keys_of


def store(shelf: Shelf, jobs: Sequence[Job]) -> list[str]:
    """Store jobs in order, all or none; returns the ids that stand for them."""
    with _whole(shelf):
        ids = _store_all(shelf, jobs, None)
        settle_up(shelf)
        return ids


def add(shelf: Shelf, jobs: Sequence[Job], adder: Job) -> None:
    """Store the jobs that one adds by its success, all or none; what they change for others is settled with its end."""
    with _whole(shelf):
        _store_all(shelf, jobs, adder)


@contextmanager
def _whole(shelf: Shelf) -> Generator[None]:
    """Do the block, or, where it raises, nothing of it; nor is anything looked at then that it alone has changed."""
    with shelf.undo.on_error():
        shelf.undo.by(partial(setattr, shelf.counts, "changed", dict(shelf.counts.changed)))
        yield


def _store_all(shelf: Shelf, jobs: Sequence[Job], adder: Job | None) -> list[str]:
    growing = incomplete(shelf, jobs)
    ids = [_store(shelf, job, adder) for job in jobs]
    missing = unknown_parent(shelf, to_be_checked(shelf, jobs, growing))
    if missing is not None:
        raise ParentNotFound(*missing)
    return ids


def open_batch(shelf: Shelf, id: str, name: str, callbacks: Sequence[Job]) -> None:
    """Begin a batch, unless there is one of this id."""
    with _whole(shelf):
        if tallies.open_batch(shelf, id, name, callbacks):
            for job in callbacks:
                _store(shelf, job, None)


def _store(shelf: Shelf, job: Job, adder: Job | None) -> str:
    known = shelf.entries.get(job.id)
    if known is not None:
        if _meant(known.job) != _meant(job):
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
    _add(shelf, job, behind, join(shelf, job, adder))
    return job.id


def _meant(job: Job) -> tuple[object, ...]:
    """What a job of a known id must have in common with that one."""
    return job.task, job.payload, job.batch, job.callback, None if job.workflow is None else job.workflow.id


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
    if entry.behind is not None or entry.pending:
        entry.due = job.run_at
        return
    if entry.state is State.SCHEDULED:
        join_lane(shelf, entry)
    withdraw(shelf, entry)
    place(shelf, entry, job.run_at)


def _add(shelf: Shelf, job: Job, behind: str | None, stopped: str | None) -> None:
    n = shelf.next_number()
    if job.workflow is not None:  # which keeps its name and size itself
        job = replace(job, workflow=Membership(job.workflow.id))
    entry = shelf.entries[job.id] = Entry(n, job, due=job.run_at, seat=n)
    shelf.undo.by(lambda: shelf.remove(entry))
    for unique in keys_of(job):
        hold = shelf.keys.held(unique.key)
        if hold is None:
            shelf.keys.take(unique, job)
        else:
            hold.successor = job.id
    shelf.expiring.push(entry)
    connect(shelf, entry)
    if stopped is not None:
        finish(shelf, entry, State.CANCELLED, stopped)
    elif behind is not None:
        entry.state, entry.behind = State.WAITING, behind
    elif job.callback is not None:
        entry.state, entry.pending = State.WAITING, True
    else:
        arrive(shelf, entry)
