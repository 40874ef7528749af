"""Workflows and batches, counted: how many jobs they have, and how many have ended how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from offload.job import KEEP_SUCCEEDED, KEEP_UNSUCCESSFUL, Callback, Job, State, TallyKind
from offload.records import Tally

LEAST_KEEP = 60.0
"""Seconds that a finished workflow is kept at least, so that who waits for it sees its end."""


@dataclass(slots=True)
class Count:
    """One workflow or batch."""

    kind: TallyKind
    id: str
    n: int
    """The order in which it was stored."""
    created_at: datetime
    touched_at: datetime
    """When a job last came."""
    name: str = ""
    total: int = 0
    ended: dict[State, int] = field(default_factory=dict[State, int])
    size: int = 0
    sealed: bool = False
    stopped: bool = False
    abandoned: bool = False
    finished_at: datetime | None = None
    forget_at: datetime | None = None
    keep: float = 0.0
    callbacks: dict[Callback, str] = field(default_factory=dict[Callback, str])

    @property
    def open(self) -> int:
        """How many of its jobs have not ended."""
        return self.total - sum(self.ended.values())

    @property
    def complete(self) -> bool:
        """Whether no more are to come."""
        return self.sealed if self.kind == "batch" else self.total >= self.size

    @property
    def all_succeeded(self) -> bool:
        """Whether every job that it has did."""
        return self.ended.get(State.SUCCEEDED, 0) == self.total

    @property
    def failed(self) -> bool:
        """Whether a job is DEAD or EXPIRED, or its producer went away."""
        return self.abandoned or self.ended.get(State.DEAD, 0) + self.ended.get(State.EXPIRED, 0) > 0

    def due(self, callback: Callback) -> bool:
        """Whether what a callback waits for has come."""
        match callback:
            case "failure":
                return self.failed
            case "success":
                return self.finished_at is not None and self.all_succeeded and not self.abandoned
            case "complete":
                return self.finished_at is not None

    def finish(self, now: datetime) -> None:
        """All have ended; or, where that is not so any more, they have not."""
        if not self.complete or self.open > 0:
            self.finished_at = self.forget_at = None
        elif self.finished_at is None:
            keep = KEEP_UNSUCCESSFUL
            if self.all_succeeded and not self.abandoned:
                keep = KEEP_SUCCEEDED if self.kind == "batch" else max(self.keep, LEAST_KEEP)
            self.finished_at, self.forget_at = now, now + timedelta(seconds=keep)

    def snapshot(self) -> Callable[[], None]:
        """What puts it back to how it is now."""
        was = copy(self)
        was.ended = dict(self.ended)

        def restore() -> None:
            for name in Count.__slots__:
                setattr(self, name, getattr(was, name))

        return restore

    def tally(self, running: int) -> Tally:
        """What people see of it."""
        return Tally(
            kind=self.kind,
            id=self.id,
            name=self.name,
            created_at=self.created_at,
            finished_at=self.finished_at,
            total=self.total,
            running=running,
            succeeded=self.ended.get(State.SUCCEEDED, 0),
            dead=self.ended.get(State.DEAD, 0),
            cancelled=self.ended.get(State.CANCELLED, 0),
            expired=self.ended.get(State.EXPIRED, 0),
            size=self.size,
            sealed=self.sealed,
            stopped=self.stopped,
            abandoned=self.abandoned,
            callbacks=tuple(self.callbacks.items()),
        )


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
            count.ended[state] = count.ended.get(state, 0) + 1
            self.changed[count.kind, count.id] = count

    def revived(self, job: Job, state: State) -> None:
        """Count a job no more among those that ended in `state`."""
        for count in self.of(job):
            count.ended[state] -= 1
            self.changed[count.kind, count.id] = count

    def touch(self, count: Count) -> None:
        """Have it looked at, at the end of the operation."""
        self.changed[count.kind, count.id] = count
