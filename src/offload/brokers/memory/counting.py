"""Workflows and batches, counted: how many jobs they have, and how many have ended how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from offload.counting import is_over, kept_for, still_open, tally_of
from offload.job import Callback, Job, State, TallyKind
from offload.records import Tally


@dataclass(slots=True)
class Count:
    """One workflow or batch."""

    kind: TallyKind
    id: str
    n: int
    """The order in which it was stored."""
    created_at: datetime
    touched_at: datetime
    """When a job last came, or, of a batch, all had last ended."""
    name: str = ""
    total: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    expired: int = 0
    size: int = 0
    sealed: bool = False
    stopped: bool = False
    abandoned: bool = False
    finished_at: datetime | None = None
    forget_at: datetime | None = None
    keep: float = 0.0
    callbacks: dict[Callback, str] = field(default_factory=dict[Callback, str])

    def finish(self, now: datetime) -> None:
        """All have ended; or, where that is not so any more, they have not."""
        if self.kind == "batch" and still_open(self) == 0:
            self.touched_at = now
        if not is_over(self):
            self.finished_at = self.forget_at = None
        elif self.finished_at is None:
            self.finished_at, self.forget_at = now, now + timedelta(seconds=kept_for(self))

    def add(self, state: State, number: int) -> None:
        """Count jobs that have ended so, or, below zero, have not any more."""
        name = state.value.lower()
        setattr(self, name, getattr(self, name) + number)

    def snapshot(self) -> Callable[[], None]:
        """What puts it back to how it is now."""
        was = copy(self)

        def restore() -> None:
            for name in Count.__slots__:
                setattr(self, name, getattr(was, name))

        return restore

    def tally(self, running: int) -> Tally:
        """What people see of it."""
        return tally_of(self, self.created_at, self.finished_at, running)


class Counts:
    """All that there are."""

    def __init__(self) -> None:
        self.all: dict[tuple[TallyKind, str], Count] = {}
        self.changed: dict[tuple[TallyKind, str], Count] = {}
        """Those that may be finished now, or not any more, or whose callbacks may be due."""

    def of(self, job: Job) -> Iterator[Count]:
        """Where a job is counted."""
        if job.workflow is not None and (count := self.all.get(("workflow", job.workflow.id))) is not None:
            yield count
        if job.batch is not None and job.callback is None and (count := self.all.get(("batch", job.batch))) is not None:
            yield count

    def ended(self, job: Job, state: State) -> None:
        """Count a job that has ended."""
        for count in self.of(job):
            count.add(state, 1)
            self.changed[count.kind, count.id] = count

    def revived(self, job: Job, state: State, *, by_hand: bool = False) -> None:
        """Count a job no more among those that ended in `state`. What a person revives, `by_hand`, is stopped no more."""
        for count in self.of(job):
            count.add(state, -1)
            count.stopped = count.stopped and not by_hand
            self.changed[count.kind, count.id] = count

    def touch(self, count: Count) -> None:
        """Have it looked at, at the end of the operation."""
        self.changed[count.kind, count.id] = count
