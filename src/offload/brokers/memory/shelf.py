"""What a memory store holds: all jobs, the lines they stand in, who holds which key, who has passed which gate."""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from offload.brokers.memory.counting import Counts
from offload.brokers.memory.gating import Gating
from offload.brokers.memory.keys import Keys
from offload.brokers.memory.line import UNSTARTED, Entry, ReadyLine, TimeLine
from offload.brokers.memory.undo import Undo
from offload.clock import Clock
from offload.gates import holds_on
from offload.job import KEEP_UNSUCCESSFUL, Job, State

if TYPE_CHECKING:
    from offload.brokers.memory.families import Link

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Shelf:
    """Plain state. What is done to it stands in the modules beside, a duty each; the broker holds the lock meanwhile."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.entries: dict[str, Entry] = {}
        """Every job, by its id, in the order in which they were stored."""
        self.ready: defaultdict[str, ReadyLine] = defaultdict(lambda: ReadyLine(aside=False))
        """By queue."""
        self.aside: defaultdict[tuple[str, str], ReadyLine] = defaultdict(lambda: ReadyLine(aside=True))
        """By queue and task: the ready jobs that were met by a worker who did not know their task."""
        self.rounds: dict[tuple[str, int], dict[str, int]] = {}
        """By queue and priority, negated, the last round of each key whose jobs take turns."""
        self.scheduled = TimeLine(lambda entry: entry.due if entry.state is State.SCHEDULED else None)
        self.expiring = TimeLine(lambda entry: entry.job.expires_at if entry.state in UNSTARTED and entry.claim == 0 else None)
        self.forgettable = TimeLine(self._forget_at)
        self.keys = Keys(clock)
        self.gating = Gating()
        self.paused: set[str] = set()
        self.counts = Counts()
        self.links: dict[tuple[str, str], list[Link]] = {}
        """Who waits for a job, by its workflow and id."""
        self.owed: dict[tuple[str, str], str] = {}
        """The jobs whose end, or revival, their children do not know of yet, each with what to say of one that is gone."""
        self.undo = Undo()
        self._sequence = 0

    def next_number(self) -> int:
        """Numbers jobs, their places in ready lines and their seats in lanes."""
        self._sequence += 1
        return self._sequence

    def moment(self) -> int:
        """The time as gates count: whole microseconds since 1970."""
        return stored(self.clock.now())

    def running(self, session: str) -> list[Entry]:
        """What a session runs, in the order in which it was stored."""
        return [entry for entry in self.entries.values() if entry.session == session and entry.state is State.RUNNING]

    def owe(self, job: Job, why: str = "") -> None:
        """Note that the children of a job are to be told what became of it."""
        if job.workflow is not None and self.links.get((job.workflow.id, job.id)):
            self.owed[job.workflow.id, job.id] = why
            self.undo.by(self.owed.clear)

    def mate(self, key: tuple[str, str]) -> Entry | None:
        """The job of a workflow and id. One of the same id that belongs elsewhere is nobody's parent there."""
        workflow, id = key
        entry = self.entries.get(id)
        return entry if entry is not None and entry.job.workflow is not None and entry.job.workflow.id == workflow else None

    def remove(self, entry: Entry) -> None:
        """Drop all that is known of a job."""
        del self.entries[entry.job.id]
        for link in entry.links:
            siblings = self.links[link.parent]
            siblings.remove(link)
            if not siblings:
                del self.links[link.parent]
        entry.links, entry.pending = [], False
        entry.state, entry.session = State.CANCELLED, None  # so that no line takes it for waiting

    def _forget_at(self, entry: Entry) -> datetime | None:
        if entry.finished_at is None or entry.job.workflow is not None or self.entries.get(entry.job.id) is not entry or holds_turn(entry):
            return None
        keep = entry.job.keep if entry.state is State.SUCCEEDED else KEEP_UNSUCCESSFUL
        return entry.finished_at + timedelta(seconds=keep)

    # -- before something is changed that may be undone ------------------------------------------------------------------------

    def remember_key(self, key: str) -> None:
        """Have what is known of a unique key put back if the operation fails."""
        if self.undo.kept:
            hold = self.keys.snapshot(key)
            self.undo.by(lambda: self.keys.restore(key, hold))

    def remember_counts(self, job: Job) -> None:
        """Have the counts of a job put back if the operation fails."""
        if self.undo.kept:
            for count in self.counts.of(job):
                self.undo.by(count.snapshot())

    def remember(self, entry: Entry) -> None:
        """Have a job put back, and into the line where it stands, if the operation fails."""
        if self.undo.kept:
            was = copy(entry)
            self.undo.by(lambda: self._restore(entry, was))

    def _restore(self, entry: Entry, was: Entry) -> None:
        for name in Entry.__slots__:
            setattr(entry, name, getattr(was, name))
        if entry.state is State.READY:
            line = self.aside[entry.job.queue, entry.job.task] if entry.aside else self.ready[entry.job.queue]
            line.push(entry)
        else:
            self.scheduled.push(entry)


def holds_turn(entry: Entry) -> bool:
    """Whether a job that ended keeps its turn, and with it its record, until somebody retries or deletes it."""
    return entry.state is State.DEAD and holds_on(entry.job)


def stored(moment: datetime) -> int:
    """A moment as gates count: whole microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND
