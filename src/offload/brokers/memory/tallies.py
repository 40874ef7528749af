"""Workflows and batches: who joins them, when they are finished, which callbacks are due, and how one is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from offload.brokers.memory.control import cancel
from offload.brokers.memory.counting import Count
from offload.brokers.memory.endings import finish, give_up
from offload.brokers.memory.families import pay, waits_for_parents
from offload.brokers.memory.line import UNSTARTED, Entry
from offload.brokers.memory.moves import place
from offload.brokers.memory.shelf import Shelf, holds_turn
from offload.counting import ABANDONED_AFTER, is_complete, is_due, may_be_given_up
from offload.errors import BatchClosed
from offload.job import Callback, Job, State, TallyKind
from offload.records import Tally

POSTPONED = timedelta(days=1)
"""How much longer a workflow is kept of which a dead job keeps its turn."""
WINDOW = 1_000
"""The most records that one round forgets."""


def join(shelf: Shelf, job: Job, adder: Job | None) -> str | None:
    """Count a new job where it belongs. Returns why it is cancelled at once, if it is. Raises BatchClosed.

    `adder` is the job that adds it, which may do so to its own batch when that is sealed.
    """
    stopped: str | None = None
    if job.workflow is not None:
        count = _count(shelf, "workflow", job.workflow.id, job.enqueued_at)
        shelf.undo.by(count.snapshot())
        count.name, count.keep = count.name or job.workflow.name, max(count.keep, job.keep)
        if not count.stopped:
            count.size = max(count.size, job.workflow.size) + (adder is not None)  # whom a job adds its producer did not announce
        stopped = _add(shelf, count)
    if job.batch is not None and job.callback is None:
        count = shelf.counts.all.get(("batch", job.batch))
        if count is None:
            raise BatchClosed(f"there is no batch {job.batch}: open it first, or it is forgotten")
        if count.sealed and (adder is None or adder.batch != job.batch):
            raise BatchClosed(f"batch {job.batch} is sealed and takes no more jobs; add them before its block ends, or from its own jobs")
        shelf.undo.by(count.snapshot())
        stopped = _add(shelf, count) or stopped
    return stopped


def _count(shelf: Shelf, kind: TallyKind, id: str, now: datetime) -> Count:
    count = shelf.counts.all.get((kind, id))
    if count is None:
        count = shelf.counts.all[kind, id] = Count(kind, id, shelf.next_number(), now, now)
        shelf.undo.by(partial(shelf.counts.all.__delitem__, (kind, id)))
    return count


def _add(shelf: Shelf, count: Count) -> str | None:
    count.total += 1
    count.touched_at = shelf.clock.now()
    shelf.counts.touch(count)
    return f"its {count.kind} was cancelled" if count.stopped else None


def incomplete(shelf: Shelf, jobs: Sequence[Job]) -> dict[str, bool]:
    """The workflows of jobs that are to be stored, and whether more of each are to come than are there so far."""
    ids = {job.workflow.id: job.workflow for job in jobs if job.workflow is not None}
    counts = {id: shelf.counts.all.get(("workflow", id)) for id in ids}
    return {id: count is None or not is_complete(count) for id, count in counts.items()}


def to_be_checked(shelf: Shelf, jobs: Sequence[Job], growing: Mapping[str, bool]) -> Iterator[Entry]:
    """The jobs whose parents must be there, now that these were stored: all of a workflow that has just become complete.

    Parents may come after those who wait for them, as long as more are to come; nobody may wait for one that never does.
    """
    given = {job.id for job in jobs}
    for id, grew in growing.items():
        count = shelf.counts.all.get(("workflow", id))
        if count is not None and is_complete(count):
            yield from (entry for entry in members(shelf, count) if grew or entry.job.id in given)


def open_batch(shelf: Shelf, id: str, name: str, callbacks: Sequence[Job]) -> Count | None:
    """Begin a batch. None when there is one of this id; its callbacks are stored by the caller."""
    if ("batch", id) in shelf.counts.all:
        return None
    count = _count(shelf, "batch", id, shelf.clock.now())
    count.name = name
    count.callbacks = {job.callback: job.id for job in callbacks if job.callback is not None}
    return count


def seal(shelf: Shelf, id: str) -> bool:
    """Let no more jobs come from outside."""
    count = shelf.counts.all.get(("batch", id))
    if count is None or count.sealed:
        return False
    count.sealed = True
    shelf.counts.touch(count)
    return True


def stop(shelf: Shelf, kind: TallyKind, id: str) -> bool:
    """Cancel all jobs, those that are still to come too."""
    count = shelf.counts.all.get((kind, id))
    if count is None or count.finished_at is not None:
        return False
    _stop(shelf, count)
    return True


def _stop(shelf: Shelf, count: Count) -> None:
    count.stopped, count.sealed = True, count.kind == "batch"
    count.size = min(count.size, count.total)
    shelf.counts.touch(count)
    for entry in members(shelf, count):
        if entry.state in UNSTARTED:
            entry.felled = waits_for_parents(entry)  # so it comes back with them
            finish(shelf, entry, State.CANCELLED, f"its {count.kind} was cancelled")
        else:
            cancel(shelf, entry.job.id)


def members(shelf: Shelf, count: Count) -> Iterator[Entry]:
    """Its jobs, in the order in which they were stored."""
    return (entry for entry in list(shelf.entries.values()) if count in shelf.counts.of(entry.job))


def settle_up(shelf: Shelf) -> None:
    """What is to be done at the end of each operation: children learn how their parents ended, and callbacks that are due may go."""
    pay(shelf)
    changed, shelf.counts.changed = shelf.counts.changed, {}
    due: list[Entry] = []
    for count in changed.values():
        shelf.undo.by(count.snapshot())
        count.finish(shelf.clock.now())
        for which, entry in _waiting(shelf, count):
            if is_due(count, which):
                due.append(entry)
            elif is_due(count, "success"):  # nothing is left that could be retried, and fail
                _drop(shelf, entry)
    for entry in sorted(due, key=lambda entry: entry.n):
        shelf.remember(entry)
        entry.pending = False
        entry.seat = shelf.next_number()
        place(shelf, entry, entry.job.run_at)


def _waiting(shelf: Shelf, count: Count) -> list[tuple[Callback, Entry]]:
    """Its callbacks that wait for it."""
    return [(which, entry) for which, id in count.callbacks.items() if (entry := shelf.entries.get(id)) is not None and entry.pending]


def abandon(shelf: Shelf) -> None:
    """Give up what its producer left incomplete."""
    now = shelf.clock.now()
    after = timedelta(seconds=ABANDONED_AFTER)
    for count in [count for count in shelf.counts.all.values() if may_be_given_up(count) and now >= count.touched_at + after]:
        count.abandoned = True
        if count.kind == "workflow":
            _stop(shelf, count)
        else:
            count.sealed = True
            shelf.counts.touch(count)
    settle_up(shelf)


def forget(shelf: Shelf) -> int:
    """Drop the finished ones whose time is over, with the records of a workflow's jobs. Returns how many records went."""
    now, forgotten = shelf.clock.now(), 0
    for count in [count for count in shelf.counts.all.values() if count.forget_at is not None and count.forget_at <= now]:
        jobs = [*members(shelf, count)] if count.kind == "workflow" else [entry for _, entry in _waiting(shelf, count)]
        if any(holds_turn(entry) for entry in jobs):
            count.forget_at = now + POSTPONED
            continue
        for entry in jobs[: WINDOW - forgotten]:
            _drop(shelf, entry)
        forgotten += len(jobs[: WINDOW - forgotten])
        if forgotten < WINDOW:
            del shelf.counts.all[count.kind, count.id]
    return forgotten


def _drop(shelf: Shelf, entry: Entry) -> None:
    """Remove a job that has ended, or a callback that never comes, with the keys that it holds."""
    waits = not entry.state.terminal
    shelf.remove(entry)
    if waits:
        give_up(shelf, entry)


def tallies(shelf: Shelf, kind: TallyKind, ids: Sequence[str] | None, limit: int, after: str | None) -> list[Tally]:
    """What people see of them; see `Store.tallies`."""
    if ids is not None:
        found = [count for id in dict.fromkeys(ids) if (count := shelf.counts.all.get((kind, id))) is not None]
    else:
        found = sorted((c for c in shelf.counts.all.values() if c.kind == kind), key=lambda c: (c.created_at, c.n), reverse=True)
        if after is not None:
            position = next((i for i, count in enumerate(found) if count.id == after), len(found))
            found = found[position + 1 :]
        found = found[:limit]
    return [count.tally(sum(entry.state is State.RUNNING for entry in members(shelf, count))) for count in found]
