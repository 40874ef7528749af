"""Claims: chooses ready jobs and leases them to a session."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from offload.brokers.memory.endings import finish, give_up
from offload.brokers.memory.line import Entry, ReadyLine, foremost
from offload.brokers.memory.moves import set_aside, starts
from offload.brokers.memory.shelf import Shelf
from offload.job import Isolation, State, WorkerInfo

CRASHES_BEFORE_ISOLATION = 2
WINDOW = 1_000
"""The most candidates of a queue that one fetch looks at."""


def queues(shelf: Shelf) -> list[str]:
    """The queues that have something ready, by name."""
    ready = {queue for queue, line in shelf.ready.items() if line.first() is not None}
    return sorted(ready | {queue for (queue, _), line in shelf.aside.items() if line.first() is not None})


def claim(
    shelf: Shelf, queue: str, limit: int, room: dict[Isolation, int], session: str, worker: WorkerInfo, unknown: set[tuple[str, str]]
) -> list[Entry]:
    """Take up to `limit` ready jobs of one queue; `room` is counted down, and queue and task of those set aside are added to `unknown`."""
    taken: list[Entry] = []
    no_room: list[tuple[ReadyLine, Entry]] = []
    now = shelf.clock.now()
    for looked, (line, entry) in enumerate(foremost(_lines(shelf, queue, worker.tasks)) if limit > 0 else (), start=1):
        isolation = _isolation(entry, worker.tasks)
        if entry.claim == 0 and entry.job.expires_at is not None and entry.job.expires_at <= now:
            finish(shelf, entry, State.EXPIRED, "not started in time")
        elif isolation is None:
            set_aside(shelf, entry)
            unknown.add((queue, entry.job.task))
        elif room[isolation] <= 0:
            no_room.append((line, entry))
        elif starts(shelf, entry):
            room[isolation] -= 1
            _lease(shelf, entry, session, worker.name, now)
            taken.append(entry)
        if len(taken) >= limit or looked >= (limit if taken else max(WINDOW, limit)):
            break
    for line, entry in no_room:
        line.push(entry)
    return taken


def _lines(shelf: Shelf, queue: str, tasks: Mapping[str, Isolation]) -> list[ReadyLine]:
    """The lines of a queue in which a worker looks that knows these tasks."""
    aside = [line for task in tasks if (line := shelf.aside.get((queue, task))) is not None]
    return [shelf.ready[queue], *aside]


def _isolation(entry: Entry, tasks: Mapping[str, Isolation]) -> Isolation | None:
    """Where a worker is to run a job; None when it does not know the task."""
    isolation = tasks.get(entry.job.task)
    return "process" if isolation is not None and entry.crashes >= CRASHES_BEFORE_ISOLATION else isolation


def _lease(shelf: Shelf, entry: Entry, session: str, worker: str, now: datetime) -> None:
    entry.state, entry.session, entry.worker, entry.started_at = State.RUNNING, session, worker, now
    entry.aside, entry.cancel_asked, entry.progress = False, False, None
    entry.claim += 1
    entry.attempt += 1
    give_up(shelf, entry, ("started",))
