"""What an operation has still to do for workflows and batches: children that are to be told, and counts that have changed.

Plain data. Whatever ends a job, or revives one, notes it here; `tallies.settle_up` carries it out at the end of the operation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from offload import counting
from offload.counting import LEAST_KEEP, is_over, kept_for, may_be_given_up, still_open
from offload.job import KEEP_UNSUCCESSFUL, Callback, Job, State, TallyKind

SECOND = 1_000_000
ABANDONED_AFTER = round(counting.ABANDONED_AFTER * SECOND)
"""Microseconds after which what is not complete, and to which no more jobs come, is taken for abandoned."""

SPANS = {"shortest": LEAST_KEEP, "unsuccessful": round(KEEP_UNSUCCESSFUL * SECOND), "abandoned": ABANDONED_AFTER}
"""What the database is told to count by, where it counts by itself as `Count.close` does: see succeeding.sql."""

Key: TypeAlias = tuple[TallyKind, str]
"""A workflow or batch: its kind and id."""
Fate: TypeAlias = Literal["open", "done", "failed"]
"""What a child knows of a parent."""


def related(job: Job) -> bool:
    """Whether the end of a job, or its coming, concerns a workflow or batch."""
    return job.workflow is not None or job.batch is not None


def tallies_of(job: Job) -> list[Key]:
    """Where a job is counted."""
    keys: list[Key] = []
    if job.workflow is not None:
        keys.append(("workflow", job.workflow.id))
    if job.batch is not None and job.callback is None:
        keys.append(("batch", job.batch))
    return keys


class News(NamedTuple):
    """What became of a job, of which its children are to be told."""

    workflow: str
    parent: str
    after: int
    """The last child that knows."""
    was: Fate
    """What children go by so far, unless they know of a fate of their own."""
    fate: Fate
    n: int | None = None
    """The job's number where its record has the result."""
    result: str | None = None
    why: str | None = None

    @property
    def plain(self) -> bool:
        """Whether its record says it all."""
        return self.after == 0 and self.result is None and (self.fate == "open" or self.n is not None)


class Kin(NamedTuple):
    """A row of `children`."""

    n: int
    open: int
    failed: int
    brave: bool
    felled: bool

    @property
    def falls(self) -> bool:
        """Whether a parent's end takes it down."""
        return self.failed > 0 and not self.brave


class Count(msgspec.Struct, array_like=True):
    """A row of `tallies`."""

    kind: TallyKind
    id: str
    n: int
    created_at: int
    name: str
    touched_at: int
    keep: float
    total: int
    succeeded: int
    dead: int
    cancelled: int
    expired: int
    size: int
    sealed: bool
    stopped: bool
    abandoned: bool
    finished_at: int | None
    forget_at: int | None
    abandon_at: int | None
    stopping: int | None
    callbacks: dict[Callback, str]

    @property
    def key(self) -> Key:
        """What it is known by."""
        return (self.kind, self.id)

    def add(self, state: State, number: int) -> None:
        """Count jobs that have ended so, or, below zero, have not any more."""
        name = state.value.lower()
        setattr(self, name, getattr(self, name) + number)

    def close(self, now: int) -> None:
        """All have ended; or, where that is not so any more, they have not. And when it is given up, if nothing comes."""
        if self.kind == "batch" and still_open(self) == 0:
            self.touched_at = now
        if not is_over(self):
            self.finished_at = self.forget_at = None
        elif self.finished_at is None:
            self.finished_at, self.forget_at = now, now + round(kept_for(self) * SECOND)
        self.abandon_at = self.touched_at + ABANDONED_AFTER if may_be_given_up(self) else None

    def row(self) -> tuple[Any, ...]:
        """The columns of `tallies`."""
        return (*(getattr(self, name) for name in self.__struct_fields__[:-1]), msgspec.json.encode(self.callbacks).decode())


@dataclass(slots=True)
class Books:
    """What is noted of one operation."""

    owed: dict[tuple[str, str], News] = field(default_factory=dict[tuple[str, str], News])
    """By workflow and parent."""
    changes: dict[Key, dict[State, int]] = field(default_factory=dict[Key, dict[State, int]])
    """How many jobs have ended how, or, below zero, have not any more."""
    counts: dict[Key, Count | None] = field(default_factory=dict[Key, "Count | None"])
    """Those that were locked; None for those that there are not."""
    touched: set[Key] = field(default_factory=set[Key])
    """Those that are to be looked at, and written, at the end of the operation."""
    freed: set[Key] = field(default_factory=set[Key])
    """Those of them that are stopped no more."""
    stopping: bool = False
    """Whether any workflow or batch is being stopped, so far as children were told."""
    told: list[Kin] = field(default_factory=list["Kin"])
    """Children that were told already, and may ask something."""

    @property
    def open(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.owed or self.changes or self.touched or self.told)

    def ended(self, n: int, job: Job, state: State) -> None:
        """A job has ended, and its record is written, or will be before all else that is done here."""
        done = state is State.SUCCEEDED
        self._owe(job, "open", "done" if done else "failed", n, None if done else f"parent {job.id} ended {state}")
        self._count(job, state, 1)

    def succeeded(self, jobs: Iterable[Job]) -> None:
        """Jobs have succeeded, and their children know."""
        keys = Counter[Key](key for job in jobs for key in tallies_of(job))
        for key, number in keys.items():
            change = self.changes.setdefault(key, {})
            change[State.SUCCEEDED] = change.get(State.SUCCEEDED, 0) + number

    def deleted(self, job: Job) -> None:
        """A job was deleted that had not ended."""
        self._owe(job, "open", "failed", None, f"parent {job.id} was deleted")
        self._count(job, State.CANCELLED, 1)

    def revived(self, job: Job, was: State, *, by_hand: bool = False) -> None:
        """A job that had ended goes on. What a person revives, `by_hand`, is stopped no more."""
        if by_hand:
            self.freed.update(tallies_of(job))
        self._owe(job, "failed", "open", None, None)
        self._count(job, was, -1)

    def _owe(self, job: Job, was: Fate, fate: Fate, n: int | None, why: str | None) -> None:
        if job.workflow is not None:
            key = (job.workflow.id, job.id)
            before = self.owed.get(key)
            self.owed[key] = News(*key, 0, was if before is None else before.was, fate, n, None, why)

    def _count(self, job: Job, state: State, number: int) -> None:
        for key in tallies_of(job):
            change = self.changes.setdefault(key, {})
            change[state] = change.get(state, 0) + number

    def clear(self) -> None:
        """All is done, or undone."""
        for noted in (self.owed, self.changes, self.counts, self.touched, self.freed, self.told):
            noted.clear()
        self.stopping = False

    def copy(self) -> Books:
        """What is noted now, to go back to."""
        changes = {key: dict(change) for key, change in self.changes.items()}
        counts = {key: copy(count) for key, count in self.counts.items()}
        return Books(dict(self.owed), changes, counts, set(self.touched), set(self.freed), self.stopping, [*self.told])
