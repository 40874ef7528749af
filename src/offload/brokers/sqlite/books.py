"""What an operation has still to do for workflows and batches: children that are to be told, and counts that have changed.

Plain data. Whatever ends a job, or revives one, notes it here; `tallies.settle_up` carries it out at the end of the operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import msgspec

from offload import counting
from offload.counting import is_over, kept_for, may_be_given_up, still_open
from offload.job import Callback, Job, State, TallyKind

MICROSECOND = timedelta(microseconds=1)
ABANDONED_AFTER = round(counting.ABANDONED_AFTER * 1_000_000)
"""Microseconds after which what is not complete, and to which no more jobs come, is taken for abandoned."""

Key: TypeAlias = tuple[TallyKind, str]
"""A workflow or batch: its kind and id."""


class Fate(IntEnum):
    """What a child knows of a parent."""

    OPEN = 0
    DONE = 1
    FAILED = 2


class Debts(NamedTuple):
    """Jobs of one workflow whose children are to be told the same."""

    flow: str
    fate: Fate
    after: int = 0
    """The last child that knows."""
    put_off: bool = False
    """Whether an operation before has left it: the parent's record, by which children go otherwise, may be gone by now."""


class Count(msgspec.Struct, array_like=True):
    """A row of `tallies`. Its fields are the columns, and the SQL that names them all is made of these: see `transaction`."""

    n: int
    kind: TallyKind
    id: str
    created_at: int
    name: str
    touched_at: int
    """When a job last came, or, of a batch, all had last ended."""
    keep: float = 0.0
    total: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    expired: int = 0
    size: int = 0
    sealed: int = 0
    stopped: int = 0
    abandoned: int = 0
    finished_at: int | None = None
    forget_at: int | None = None
    abandon_at: int | None = None
    stopping: int | None = None
    callbacks: dict[Callback, str] = {}
    is_new: bool = False
    """Whether it is yet to be stored; no column."""

    @property
    def key(self) -> Key:
        """What it is known by."""
        return (self.kind, self.id)

    def add(self, state: State, number: int) -> None:
        """Count jobs that have ended so, or, below zero, have not any more."""
        name = state.value.lower()
        setattr(self, name, getattr(self, name) + number)

    def close(self, now: int, *, changed: bool) -> bool:
        """All have ended; or, where that is not so any more, they have not. And when it is given up, if nothing comes.

        `changed` says that something came of its jobs, or was done to it. Returns whether it is to be written for this.
        """
        was = (self.finished_at, self.forget_at, self.abandon_at)
        if changed and self.kind == "batch" and still_open(self) == 0:
            self.touched_at = now
        if not is_over(self):
            self.finished_at = self.forget_at = None
        elif self.finished_at is None:
            self.finished_at, self.forget_at = now, now + timedelta(seconds=kept_for(self)) // MICROSECOND
        self.abandon_at = self.touched_at + ABANDONED_AFTER if may_be_given_up(self) else None
        return was != (self.finished_at, self.forget_at, self.abandon_at)

    def row(self) -> tuple[Any, ...]:
        """The columns of `tallies`."""
        return (*(getattr(self, name) for name in COLUMNS[:-1]), msgspec.json.encode(self.callbacks).decode())


COLUMNS = Count.__struct_fields__[:-1]
"""The columns of `tallies`, of which the last holds JSON."""
FIXED = ("n", "kind", "id", "created_at", "callbacks")
"""Those that are written once and for all."""


@dataclass(slots=True)
class Books:
    """What is noted of one operation."""

    owed: dict[Debts, dict[str, str | None]] = field(default_factory=dict[Debts, "dict[str, str | None]"])
    """The ids of parents, each with its result as JSON, or with the words that say how it failed."""
    changes: dict[Key, dict[State, int]] = field(default_factory=dict[Key, dict[State, int]])
    """How many jobs have ended how, or, below zero, have not any more."""
    counts: dict[Key, Count | None] = field(default_factory=dict[Key, "Count | None"])
    """Those that were looked up; None for those that there are not."""
    touched: set[Key] = field(default_factory=set[Key])
    """Those that are to be written at the end of the operation."""

    def ended(self, job: Job, state: State, result: str | None = None) -> None:
        """A job has ended."""
        if job.workflow is not None:
            if state is State.SUCCEEDED:
                self.owe(job.id, Debts(job.workflow.id, Fate.DONE), result)
            else:
                self.owe(job.id, Debts(job.workflow.id, Fate.FAILED), f"parent {job.id} ended {state}")
        self._count(job, state, 1)

    def succeeded(self, jobs: Iterable[tuple[Job, str | None]]) -> None:
        """Jobs have ended so, each with its result; most are of one workflow or batch."""
        groups: dict[tuple[str | None, str | None], dict[str, str | None]] = {}
        for job, result in jobs:
            flow, batch = job.workflow, None if job.callback is not None else job.batch
            groups.setdefault((None if flow is None else flow.id, batch), {})[job.id] = result
        for (flow, batch), results in groups.items():
            if flow is not None:
                debts = Debts(flow, Fate.DONE)
                self._forget(debts, results)
                self.owed.setdefault(debts, {}).update(results)
                self._change(("workflow", flow), State.SUCCEEDED, len(results))
            if batch is not None:
                self._change(("batch", batch), State.SUCCEEDED, len(results))

    def deleted(self, job: Job) -> None:
        """A job was deleted that had not ended."""
        if job.workflow is not None:
            self.owe(job.id, Debts(job.workflow.id, Fate.FAILED), f"parent {job.id} was deleted")
        self._count(job, State.CANCELLED, 1)

    def revived(self, job: Job, was: State) -> None:
        """A job that had ended goes on."""
        if job.workflow is not None:
            self.owe(job.id, Debts(job.workflow.id, Fate.OPEN), None)
        self._count(job, was, -1)

    def owe(self, parent: str, debts: Debts, told: str | None) -> None:
        """Have the children of a job told, instead of what they were to be told before."""
        self._forget(debts, [parent])
        self.owed.setdefault(debts, {})[parent] = told

    def _forget(self, debts: Debts, parents: Iterable[str]) -> None:
        for each, others in self.owed.items():
            if each.flow == debts.flow and each != debts:
                for parent in parents:
                    others.pop(parent, None)

    def _count(self, job: Job, state: State, number: int) -> None:
        if job.workflow is not None:
            self._change(("workflow", job.workflow.id), state, number)
        if job.batch is not None and job.callback is None:
            self._change(("batch", job.batch), state, number)

    def _change(self, key: Key, state: State, number: int) -> None:
        change = self.changes.setdefault(key, {})
        change[state] = change.get(state, 0) + number

    def touch(self, count: Count) -> None:
        """Have it written at the end of the operation."""
        self.touched.add(count.key)

    def copy(self) -> Books:
        """What is noted now, to go back to."""
        return Books(
            {debts: dict(parents) for debts, parents in self.owed.items()},
            {key: dict(change) for key, change in self.changes.items()},
            {key: copy(count) for key, count in self.counts.items()},
            set(self.touched),
        )
