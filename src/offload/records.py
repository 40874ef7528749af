"""What people see of a store: jobs, schedules, limits, sessions, workflows and batches, and the facts that are judged by. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from offload.job import Callback, Failure, Job, Kind, Limit, Progress, Schedule, State, TallyKind, WorkerInfo


class Record(Job, frozen=True, kw_only=True):
    """All that a store knows of a job."""

    state: State
    attempt: int = 0
    """Executions counted so far: 0 before the first, given back by a release."""
    crashes: int = 0
    errors: tuple[Failure, ...] = ()
    result: Any = None
    """The result as plain JSON values; `Handle.result` gives it the task's return type."""
    progress: Progress | None = None
    steps: Mapping[str, Any] = {}
    reason: str | None = None
    worker: str | None = None
    """The name of the worker that holds it, or held it last."""
    cancel_asked: bool = False
    """True while it runs and its worker is yet to stop it, for its cancellation was asked for."""
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as the store holds it."""

    schedule: Schedule
    next_at: datetime | None
    """The tick to come; None when the rule has no more."""
    last_at: datetime | None = None
    last_job: str | None = None
    paused: bool = False
    declared: bool = False
    """True when it comes from code, so that it goes when no live worker declares it any more."""
    fired: int = 0
    skipped: int = 0


class LimitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a key allows, and who holds it or waits for it."""

    key: str
    kind: Kind
    n: int | None = None
    """Slots; None for other kinds."""
    interval: int | None = None
    """Microseconds from token to token; None for other kinds."""
    burst: int | None = None
    changed: bool = False
    """True when a person has set it."""
    paused: bool = False
    shut_until: datetime | None = None
    """Until then nobody starts, as a task has asked."""
    next_at: datetime | None = None
    """When it is to be looked at again, because time alone lets somebody pass."""
    holders: tuple[str, ...] = ()
    """The ids of jobs that hold it, the first 100 in the order in which they were enqueued."""
    held: int = 0
    """How many hold it."""
    dead: bool = False
    """True of a turn that a DEAD job keeps until it is retried or deleted."""
    waiting: int = 0
    """How many jobs wait whose first is stopped here."""


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A session as others see it."""

    id: str
    info: WorkerInfo
    beat: int
    beat_at: datetime
    """By the wall clock of the worker: to show, never to judge by."""
    started_at: datetime
    running: int = 0


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow or a batch, counted by the operations that end its jobs."""

    kind: TallyKind
    id: str
    name: str = ""
    created_at: datetime
    finished_at: datetime | None = None
    """When all had ended; None while any has not, or more may come."""
    total: int = 0
    running: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    expired: int = 0
    size: int = 0
    """Of a workflow, how many jobs it has once all have arrived."""
    sealed: bool = False
    """True of a batch to which no more are added from outside."""
    stopped: bool = False
    """True once it was cancelled as a whole: whatever still comes is cancelled."""
    abandoned: bool = False
    """True where its producer went away before all had come."""
    callbacks: tuple[tuple[Callback, str], ...] = ()
    """Of a batch, the ids of its callbacks, by what each waits for."""

    @property
    def state(self) -> Literal["running", "succeeded", "failed", "cancelled"]:
        """How it goes: `failed` where a job is DEAD or EXPIRED or its producer went away, `cancelled` where one is CANCELLED."""
        if self.finished_at is None:
            return "running"
        if self.dead or self.expired or self.abandoned:
            return "failed"
        return "cancelled" if self.cancelled else "succeeded"

    @property
    def told(self) -> str:
        """Its numbers in words."""
        numbers = {name: getattr(self, name) for name in ("running", "waiting", "succeeded", "dead", "cancelled", "expired")}
        return ", ".join(f"{number:,} {name}" for name, number in numbers.items() if number) or "no jobs"

    @property
    def waiting(self) -> int:
        """How many have neither begun nor ended, or wait to be tried again."""
        return self.total - self.running - self.succeeded - self.dead - self.cancelled - self.expired


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to find; None leaves a field open. `text` is sought in id, task name, payload and errors."""

    state: State | None = None
    task: str | None = None
    queue: str | None = None
    key: str | None = None
    text: str | None = None
    workflow: str | None = None
    batch: str | None = None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The facts from which `why` explains that a job does not run."""

    record: Record
    paused: bool = False
    aside: bool = False
    """It waits in its task's own line because a worker that did not know the task met it."""
    ahead: int = 0
    """Ready jobs of its queue that go before it."""
    waits_for: str | None = None
    """The job id that it waits for, when WAITING behind a unique key."""
    parents: tuple[str, ...] = ()
    """The ids of parents that it waits for, the first 10 in their order."""
    open_parents: int = 0
    """How many parents it waits for."""
    limits: tuple[LimitRecord, ...] = ()
    """What its keys allow, when it is READY, or WAITS for one of them; that which stops the first of its lane comes first then."""
    before: int = 0
    """How many of its lane go before it."""
    sessions: tuple[SessionRecord, ...] = ()
    now: datetime


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a store tells `doctor` about itself. `notes` are findings only this engine knows, as (severity, text, advice)."""

    engine: str
    version: str
    schema: int
    newest_schema: int
    place: str = ""
    """Where it keeps the jobs, such as the absolute path of a file."""
    durable: bool = True
    """False where the jobs live in one process only."""
    paused: tuple[str, ...] = ()
    sessions: tuple[SessionRecord, ...] = ()
    schedules: tuple[ScheduleRecord, ...] = ()
    aside: Mapping[str, int] = {}
    """Task name to the number of its jobs set aside."""
    oldest_ready: Mapping[str, datetime] = {}
    """Queue to the moment its oldest ready job became ready, as far as the store knows."""
    large: tuple[tuple[str, str, int], ...] = ()
    """(job id, task, bytes) of the largest stored payloads over 16 KiB."""
    finished: tuple[tuple[str, float], ...] = ()
    """(task, seconds) of the last attempts of recently succeeded jobs, newest first."""
    limits: tuple[LimitRecord, ...] = ()
    """Keys that let nobody pass: paused, held back, or with a turn that a DEAD job keeps. The first 100 by key and kind."""
    declared: tuple[Limit, ...] = ()
    """What counts of all that workers have declared, those that are gone too, by rule."""
    notes: tuple[tuple[Literal["error", "warning", "info"], str, str], ...] = ()
    now: datetime


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What `doctor` looks at besides a store's facts. Empty where nothing was looked at."""

    limits: tuple[LimitRecord, ...] = ()
    """What the first of all keys by name allow."""
    dead: Mapping[str, int] = {}
    """Queue to the number of its DEAD jobs."""
    dead_tasks: tuple[str, ...] = ()
    """The tasks of those DEAD jobs that were enqueued last, the most frequent first."""
    holders: Mapping[str, Record] = {}
    """By id, of the first that hold a key for which others wait, those that are READY."""
    queues: frozenset[str] | None = None
    """The queues that have jobs, in whatever state; None where they are not known."""
