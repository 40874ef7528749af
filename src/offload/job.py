"""The values that travel between producers, brokers and workers. Frozen; they never do I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

R = TypeVar("R", covariant=True)

Isolation: TypeAlias = Literal["async", "thread", "process"]
Until: TypeAlias = Literal["finished", "started"] | float
Conflict: TypeAlias = Literal["skip", "raise", "replace", "debounce", "keep_last"]
Overlap: TypeAlias = Literal["skip", "allow", "replace"]
Missed: TypeAlias = Literal["latest", "skip", "all"]
OnDead: TypeAlias = Literal["continue", "hold"]
IfParentFails: TypeAlias = Literal["cancel", "run"]
Callback: TypeAlias = Literal["success", "failure", "complete"]
TallyKind: TypeAlias = Literal["workflow", "batch"]

DAY = 86_400.0
KEEP_SUCCEEDED = DAY
"""Seconds that the record of a succeeded job is kept unless its task says otherwise."""
KEEP_UNSUCCESSFUL = 30 * DAY
"""Seconds that the record of a dead, cancelled or expired job is kept."""
MOST_PAYLOAD_BYTES = 256 * 1024
"""The largest payload or result in bytes of JSON."""
MOST_ATOMIC = 1_000
"""The most jobs that one atomic enqueue takes."""


class State(StrEnum):
    """Where a job stands. It is in exactly one state at every instant."""

    SCHEDULED = "SCHEDULED"
    WAITING = "WAITING"
    READY = "READY"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"

    @property
    def terminal(self) -> bool:
        """True when the job will not run again by itself."""
        return self in TERMINAL


TERMINAL = frozenset({State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED})


class UniqueKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a job's unique key is and does. `until` is a state, or seconds from enqueue."""

    key: str
    until: Until = "finished"
    on_conflict: Conflict = "skip"


class SlotLimit(msgspec.Struct, frozen=True, omit_defaults=True, tag="slot"):
    """At most `n` jobs of the key are READY or RUNNING."""

    key: str
    n: int
    rule: str = ""
    """The declaration that it comes from; empty where it was given for one job."""


class RateLimit(msgspec.Struct, frozen=True, omit_defaults=True, tag="rate"):
    """Jobs of the key start no oftener than one in `interval` microseconds, of tokens of which a job takes `cost`; `burst` may gather."""

    key: str
    interval: int
    burst: int = 1
    cost: int = 1
    rule: str = ""


Limit: TypeAlias = SlotLimit | RateLimit


class Parent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job of the same workflow that another one waits for."""

    id: str
    at: tuple[tuple[str | int, ...], ...] = ()
    """Where in the arguments of the one that waits its result goes, as paths of names and indexes; nowhere where that only waits."""


class Membership(msgspec.Struct, frozen=True, omit_defaults=True):
    """The workflow that a job belongs to. Stores keep `name` and `size` with the workflow, and not with its jobs."""

    id: str
    name: str = ""
    size: int = 0
    """How many jobs it has once all have arrived, as far as the one who enqueues knows."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request to run one task. It never changes once stored, but for what a unique conflict replaces."""

    id: str
    task: str
    payload: bytes = b"{}"
    """A JSON object: parameter name to argument. Brokers never look inside."""
    enqueued_at: datetime
    queue: str = "default"
    priority: int = 0
    run_at: datetime | None = None
    expires_at: datetime | None = None
    timeout: float | None = None
    """Seconds for one attempt where `using(timeout=...)` changed the task's own; None leaves the task's."""
    unique: UniqueKey | None = None
    schedule: str | None = None
    """The name of the schedule that enqueued it; `run_at` is then the tick."""
    overlap: Overlap | None = None
    """What its tick does while an earlier job of the same schedule is not yet terminal."""
    keep: float = KEEP_SUCCEEDED
    order_by: str | None = None
    """The key whose jobs run strictly one after the other, in the order in which they were first due."""
    on_dead: OnDead = "continue"
    """Whether the next of its `order_by` key may go when it is DEAD, or waits until it was retried or deleted."""
    limits: tuple[Limit, ...] = ()
    fair_by: str | None = None
    """The key that takes turns with others inside one queue and priority."""
    workflow: Membership | None = None
    parents: tuple[Parent, ...] = ()
    """The jobs that must end before it becomes due."""
    if_parent_fails: IfParentFails = "cancel"
    """Whether it is cancelled when a parent ends DEAD, CANCELLED or EXPIRED, or runs with None in place of that one's result."""
    batch: str | None = None
    """The id of the batch that it belongs to."""
    callback: Callback | None = None
    """Of its batch, which end it waits for. It is not counted there."""


def keys_of(job: Job) -> tuple[UniqueKey, ...]:
    """All the unique keys that a job wants: its own, and its schedule's where ticks must not overlap."""
    if job.schedule is None or job.overlap is None or job.overlap == "allow":
        return () if job.unique is None else (job.unique,)
    tick = UniqueKey(key=f"schedule:{job.schedule}", on_conflict="skip" if job.overlap == "skip" else "keep_last")
    return (tick,) if job.unique is None else (tick, job.unique)


class Draft(msgspec.Struct, Generic[R], frozen=True, kw_only=True, omit_defaults=True):
    """A job not yet enqueued: times are still relative. What `task.job(...)` gives; `R` is the task's return type."""

    task: str
    payload: bytes = b"{}"
    id: str | None = None
    queue: str = "default"
    priority: int = 0
    delay: float | None = None
    run_at: datetime | None = None
    expires_in: float | None = None
    timeout: float | None = None
    unique: UniqueKey | None = None
    keep: float = KEEP_SUCCEEDED
    order_by: str | None = None
    on_dead: OnDead = "continue"
    limits: tuple[Limit, ...] = ()
    fair_by: str | None = None
    outputs: tuple[Any, ...] = ()
    """Where in its arguments the results of other jobs go, and of which: `workflow.Use` of each."""
    batch: str | None = None
    producer: Any = None
    """What enqueues it, of the app that its task belongs to. Never stored."""

    def __repr__(self) -> str:
        return f"<job of {self.task}>"

    def stamped(self, id: str, now: datetime) -> Job:
        """The job that this draft becomes when enqueued at `now` under `id` (its own id goes first)."""
        run_at = self.run_at
        if self.delay is not None:
            run_at = now + timedelta(seconds=self.delay)
        return Job(
            id=self.id or id,
            task=self.task,
            payload=self.payload,
            enqueued_at=now,
            queue=self.queue,
            priority=self.priority,
            run_at=run_at,
            expires_at=None if self.expires_in is None else now + timedelta(seconds=self.expires_in),
            timeout=self.timeout,
            unique=self.unique,
            keep=self.keep,
            order_by=self.order_by,
            on_dead=self.on_dead,
            limits=self.limits,
            fair_by=self.fair_by,
            batch=self.batch,
        )


class Lease(msgspec.Struct, frozen=True):
    """The right of one session to run one job. `claim` fences it: a lost lease settles nothing."""

    job: Job
    claim: int
    attempt: int
    """1 for the first execution."""
    crashes: int = 0
    steps: Mapping[str, bytes] = {}
    """Results of steps remembered by earlier attempts, as JSON."""
    ref: Any = None
    """The broker's own handle."""
    inputs: tuple[bytes | None, ...] = ()
    """The results of its parents as JSON, one for each, where any is asked for; None where it is not, or there is none."""


class Failure(msgspec.Struct, frozen=True):
    """How one attempt failed."""

    attempt: int
    at: datetime
    type: str
    message: str
    traceback: str = ""


class Progress(NamedTuple):
    """How far a running job says it is: a fraction of 1 and a word about it."""

    fraction: float
    message: str = ""


class Done(msgspec.Struct, frozen=True, tag=True):
    """The attempt returned; `result` is its JSON, None for `None`."""

    result: bytes | None = None
    added: tuple[Job, ...] = ()
    """Up to 1,000 jobs, enqueued by the same operation. Where they are refused, the job is DEAD, for the reason that they were."""


class Retried(msgspec.Struct, frozen=True, tag=True):
    """The attempt failed and counts; the job runs again after `delay` seconds."""

    delay: float
    failure: Failure | None = None
    whole_key: bool = False
    """Until then no other job of its keys starts either: those of its rates, or else of its other limits, or else of its order."""


class Dead(msgspec.Struct, frozen=True, tag=True):
    """The job is not tried again."""

    reason: str
    failure: Failure | None = None
    hold_key: float = 0.0
    """Seconds for which no other job of its keys starts, as `whole_key` of `Retried` holds them back."""


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """The attempt was stopped, or the task cancelled itself."""

    reason: str = "cancelled"


class Release(msgspec.Struct, frozen=True, tag=True):
    """The job is handed back unharmed: the attempt does not count. `delay` seconds of 0 mean READY at once."""

    delay: float = 0.0


Outcome: TypeAlias = Done | Retried | Dead | Cancelled | Release


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that enqueues `draft` at each of its ticks: `cron` in `timezone`, or `every` so many seconds."""

    name: str
    draft: Draft[Any]
    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    missed: Missed = "latest"


Kind: TypeAlias = Literal["turn", "slot", "token"]
"""What a gate gives: a turn of an order, a slot of a concurrency limit, a token of a rate."""


class LimitChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a person sets for a key; what is UNSET stays, and None goes back to what is declared."""

    n: int | msgspec.UnsetType | None = msgspec.UNSET
    interval: int | msgspec.UnsetType | None = msgspec.UNSET
    burst: int | msgspec.UnsetType | None = msgspec.UNSET
    paused: bool | msgspec.UnsetType = msgspec.UNSET
    """False also lets a key go on that a task holds back."""


class Due(msgspec.Struct, frozen=True):
    """A schedule whose `next_at` has come. `tick` succeeds for one caller only."""

    schedule: Schedule
    next_at: datetime


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its broker when it opens a session."""

    name: str
    host: str
    pid: int
    queues: tuple[str, ...] | None = None
    """The queues it serves; None for all."""
    tasks: Mapping[str, Isolation]
    """The tasks it knows and how each is isolated. Jobs of others are set aside, never failed."""
    schedules: tuple[tuple[Schedule, datetime | None], ...] = ()
    """Schedules declared in its code, each with its next tick from now."""
    limits: tuple[Limit, ...] = ()
    """Limits declared in its code, by their rules; those of the worker that started last count."""
    concurrency: int = 100
    version: str = ""
    session_timeout: float = 15.0
    heartbeat: float = 3.0


class Pulse(msgspec.Struct, frozen=True):
    """What a beat carries up."""

    progress: tuple[tuple[Lease, Progress], ...] = ()


class Beat(msgspec.Struct, frozen=True):
    """What a beat brings down."""

    alive: bool
    """False when the session is gone: stop what runs and open a new one."""
    stop: tuple[tuple[str, int], ...] = ()
    """(job id, claim) of running jobs whose cancellation was asked for."""
    rescue: bool = False
    """True when this session found a dead one: call `maintain` now."""


class Touched(msgspec.Struct, frozen=True):
    """A job that `maintain` moved, for events and logs."""

    event: Literal["rescued", "expired", "dead", "cancelled"]
    id: str
    task: str
    queue: str
    reason: str = ""


class Upkeep(msgspec.Struct, frozen=True):
    """What one round of `maintain` did."""

    wait: float
    """Seconds until it is worth asking again."""
    touched: tuple[Touched, ...] = ()
