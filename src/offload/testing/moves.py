"""The operations of a lockstep program, as data. Numbers pick among what there is; `guesses` makes them up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from offload.job import (
    Callback,
    IfParentFails,
    Isolation,
    Job,
    Limit,
    LimitChange,
    Membership,
    OnDead,
    Outcome,
    Progress,
    Schedule,
    TallyKind,
    UniqueKey,
)
from offload.records import Filter


@dataclass(frozen=True)
class Wish:
    """A job to come. `again` picks an id that was used before; `exactly` repeats its task and payload too."""

    task: str = "quick"
    queue: str = "a"
    priority: int = 0
    delay: float | None = None
    expires_in: float | None = None
    unique: UniqueKey | None = None
    keep: float = 86_400
    payload: bytes = b"{}"
    order_by: str | None = None
    on_dead: OnDead = "continue"
    limits: tuple[Limit, ...] = ()
    fair_by: str | None = None
    flow: str | None = None
    size: int = 0
    parents: tuple[tuple[int, bool], ...] = ()
    """Which jobs of its workflow it waits for, the newest for 0, and whether for their results; -1 is the job that comes next."""
    fails: IfParentFails = "cancel"
    batch: str | None = None
    again: int | None = None
    exactly: bool = True

    def job(self, id: str, now: datetime) -> Job:
        """The job, enqueued now."""
        return Job(
            id=id,
            task=self.task,
            payload=self.payload,
            enqueued_at=now,
            queue=self.queue,
            priority=self.priority,
            run_at=None if self.delay is None else now + timedelta(seconds=self.delay),
            expires_at=None if self.expires_in is None else now + timedelta(seconds=self.expires_in),
            unique=self.unique,
            keep=self.keep,
            order_by=self.order_by,
            on_dead="continue" if self.order_by is None else self.on_dead,
            limits=self.limits,
            fair_by=self.fair_by,
            workflow=None if self.flow is None else Membership(self.flow, f"the {self.flow}", self.size),
            if_parent_fails="cancel" if self.flow is None else self.fails,
            batch=self.batch,
        )


@dataclass(frozen=True)
class Enqueue:
    wishes: list[Wish]


@dataclass(frozen=True)
class Cancel:
    jobs: list[int]


@dataclass(frozen=True)
class Retry:
    jobs: list[int]
    payload: bytes | None


@dataclass(frozen=True)
class Delete:
    jobs: list[int]


@dataclass(frozen=True)
class Pause:
    queue: str


@dataclass(frozen=True)
class Resume:
    queue: str


@dataclass(frozen=True)
class Open:
    tasks: dict[str, Isolation]
    declared: list[Schedule]
    limits: list[Limit]


@dataclass(frozen=True)
class Leave:
    session: int


@dataclass(frozen=True)
class Fetch:
    session: int
    queues: list[str] | None
    limit: int
    room: dict[Isolation, int]


@dataclass(frozen=True)
class Settle:
    """The leases of the session come first, then those of others, then lost ones."""

    session: int
    ends: list[tuple[int, Outcome]]


@dataclass(frozen=True)
class Grow:
    """One lease of the session ends by success, and adds jobs."""

    session: int
    lease: int
    wishes: list[Wish]


@dataclass(frozen=True)
class OpenBatch:
    id: str
    callbacks: list[Callback]
    first: Wish
    """What the first of the callbacks asks for besides."""


@dataclass(frozen=True)
class Seal:
    id: str


@dataclass(frozen=True)
class Stop:
    kind: TallyKind
    id: str


@dataclass(frozen=True)
class Retain:
    """The session keeps the leases picked, of all there were, and hands back the others that it holds."""

    session: int
    kept: list[int]


@dataclass(frozen=True)
class Remember:
    session: int
    lease: int
    step: str
    value: bytes


@dataclass(frozen=True)
class Report:
    session: int
    lease: int
    progress: Progress


@dataclass(frozen=True)
class Live:
    """Some sessions beat every three seconds, and rescue as they are told; the others are frozen meanwhile."""

    beats: int
    beating: list[bool]


@dataclass(frozen=True)
class Maintain:
    session: int


@dataclass(frozen=True)
class Plan:
    schedule: Schedule
    after: int | None


@dataclass(frozen=True)
class Unplan:
    name: str


@dataclass(frozen=True)
class PausePlan:
    name: str
    paused: bool
    after: int | None


@dataclass(frozen=True)
class Tick:
    """Tick a schedule that is due, or was due some time: 0 is the one seen last."""

    session: int
    due: int
    after: int | None
    wishes: list[Wish]


@dataclass(frozen=True)
class Fire:
    schedule: Schedule
    wish: Wish


@dataclass(frozen=True)
class Advance:
    seconds: float


@dataclass(frozen=True)
class Jump:
    seconds: float


@dataclass(frozen=True)
class Find:
    filter: Filter
    limit: int
    after: int | None


@dataclass(frozen=True)
class SetLimit:
    key: str
    change: LimitChange


@dataclass(frozen=True)
class Ask:
    jobs: list[int]


Move: TypeAlias = (
    Enqueue
    | Cancel
    | Retry
    | Delete
    | Pause
    | Resume
    | Open
    | Leave
    | Fetch
    | Settle
    | Retain
    | Remember
    | Report
    | Live
    | Maintain
    | Plan
    | Unplan
    | PausePlan
    | Tick
    | Fire
    | Advance
    | Jump
    | Find
    | SetLimit
    | Ask
    | Grow
    | OpenBatch
    | Seal
    | Stop
)
