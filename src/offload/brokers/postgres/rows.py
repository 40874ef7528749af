"""Turns jobs into rows and rows into jobs, leases and records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from offload.broker import Work
from offload.brokers._texts import remembered
from offload.brokers.postgres.work import Transaction, text
from offload.job import Callback, Failure, IfParentFails, Job, Limit, Membership, OnDead, Overlap, Parent, Progress, State, UniqueKey
from offload.records import Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECOND = 1_000_000
"""Microseconds in a second: durations that are added to stored moments."""


def stored(moment: datetime) -> int:
    """A moment as the database holds it: whole microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


def moment(stored: int) -> datetime:
    """The moment that `stored` stands for, in UTC."""
    return EPOCH + timedelta(0, 0, stored)


def optional_moment(stored: int | None) -> datetime | None:
    """As `moment`; None stays None."""
    return None if stored is None else moment(stored)


def optional_stored(moment: datetime | None) -> int | None:
    """As `stored`; None stays None."""
    return None if moment is None else stored(moment)


def seconds(duration: float) -> int:
    """A duration in seconds as microseconds."""
    return timedelta(seconds=duration) // MICROSECOND


class Extra(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of a job that few jobs have."""

    run_at: datetime | None = None
    expires_at: datetime | None = None
    timeout: float | None = None
    unique: UniqueKey | None = None
    schedule: str | None = None
    overlap: Overlap | None = None
    order_by: str | None = None
    on_dead: OnDead = "continue"
    limits: tuple[Limit, ...] = ()
    fair_by: str | None = None
    workflow: Membership | None = None
    parents: tuple[Parent, ...] = ()
    if_parent_fails: IfParentFails = "cancel"
    batch: str | None = None
    callback: Callback | None = None


NO_EXTRA = Extra()
_extra = msgspec.json.Decoder(Extra).decode


@remembered
def read_extra(text: str) -> Extra:
    """What `jobs.extra` says."""
    return _extra(text)


@remembered
def _rare_fields(text: str) -> dict[str, Any]:
    """What is rare about a job, as fields of a Job."""
    extra = read_extra(text)
    return {name: value for name in Extra.__struct_fields__ if (value := getattr(extra, name)) != getattr(NO_EXTRA, name)}


_failure = msgspec.json.Decoder(Failure).decode


class JobRow(msgspec.Struct, frozen=True, gc=False):
    """The row of `jobs` for a job that comes in, but for its number; and when it expires."""

    id: str
    task: str
    queue: str
    rank: int
    payload: str
    enqueued_at: int
    keep: float
    due: int | None
    extra: str | None
    expires_at: int | None


def job_row(job: Job) -> JobRow:
    """The row of a job."""
    run_at, expires_at = job.run_at, job.expires_at
    return JobRow(
        job.id,
        job.task,
        job.queue,
        -job.priority,
        job.payload.decode(),
        stored(job.enqueued_at),
        job.keep,
        None if run_at is None else stored(run_at),
        extra_text(job) if _rare(job) else None,
        None if expires_at is None else stored(expires_at),
    )


def _rare(job: Job) -> bool:
    if job.run_at is not None or job.expires_at is not None or job.unique is not None or job.schedule is not None:
        return True
    if job.timeout is not None or job.order_by is not None or bool(job.limits) or job.fair_by is not None:
        return True
    if job.workflow is not None or job.batch is not None or job.callback is not None:
        return True
    return bool(job.parents) or job.if_parent_fails != "cancel"


def extra_text(job: Job) -> str:
    """What `jobs.extra` holds for a job."""
    return text(
        Extra(
            run_at=job.run_at,
            expires_at=job.expires_at,
            timeout=job.timeout,
            unique=job.unique,
            schedule=job.schedule,
            overlap=job.overlap,
            order_by=job.order_by,
            on_dead=job.on_dead,
            limits=job.limits,
            fair_by=job.fair_by,
            workflow=None if job.workflow is None else Membership(job.workflow.id),
            parents=job.parents,
            if_parent_fails=job.if_parent_fails,
            batch=job.batch,
            callback=job.callback,
        )
    )


ROUND_BITS = 40


def placed(rank: int, turn: int = 0) -> int:
    """The rank in a ready line: first by priority, then by the round in which keys take turns; 0 for jobs without such a key."""
    return (rank << ROUND_BITS) + turn


class ReadyRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A candidate of a ready line with its job, as the claim reads it."""

    queue: str
    rank: int
    """In its ready line; see `placed`."""
    pos: int
    n: int
    claim: int
    attempt: int
    crashes: int
    id: str
    task: str
    payload: str
    enqueued_at: int
    keep: float
    extra: str | None

    def job(self) -> Job:
        """The job."""
        return _job(self, -(self.rank >> ROUND_BITS))


class JobColumns(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A row of `jobs`, with the state read off the table that holds it."""

    n: int
    id: str
    task: str
    queue: str
    rank: int
    payload: str
    enqueued_at: int
    keep: float
    due: int | None
    extra: str | None
    state: State
    claim: int
    attempt: int
    crashes: int
    started_at: int | None
    worker: str | None
    aside: bool
    pos: int
    result: str | None
    finished_at: int | None
    reason: str | None
    errors: list[str]
    """JSON of each Failure."""
    steps: dict[str, str]
    """JSON of each step's result, by its name."""
    progress: tuple[float, str] | None
    cancel_asked: bool
    seat: int
    lane: str | None
    """Where it waits for a key."""
    arrives: bool
    """Whether it waits to be let in."""
    place: int
    """Its rank in its ready line."""
    workflow: str | None
    what: str | None
    """What it waits for, where it is neither a key nor another's end: its parents, or its batch."""

    def job(self) -> Job:
        """The job."""
        return _job(self, -self.rank)

    def record(self) -> Record:
        """All that is known of it."""
        job = self.job()
        return Record(
            id=job.id,
            task=job.task,
            payload=job.payload,
            enqueued_at=job.enqueued_at,
            queue=job.queue,
            priority=job.priority,
            run_at=optional_moment(self.due),
            expires_at=job.expires_at,
            timeout=job.timeout,
            unique=job.unique,
            schedule=job.schedule,
            overlap=job.overlap,
            keep=job.keep,
            order_by=job.order_by,
            on_dead=job.on_dead,
            limits=job.limits,
            fair_by=job.fair_by,
            workflow=job.workflow,
            parents=job.parents,
            if_parent_fails=job.if_parent_fails,
            batch=job.batch,
            callback=job.callback,
            state=self.state,
            attempt=self.attempt,
            crashes=self.crashes,
            errors=tuple(_failure(failure) for failure in self.errors),
            result=None if self.result is None else msgspec.json.decode(self.result),
            progress=None if self.progress is None else Progress(*self.progress),
            steps={name: msgspec.json.decode(value) for name, value in self.steps.items()},
            reason=self.reason,
            worker=self.worker,
            cancel_asked=self.cancel_asked,
            started_at=optional_moment(self.started_at),
            finished_at=optional_moment(self.finished_at),
        )


_columns = msgspec.json.Decoder(list[JobColumns]).decode


class Rare(Protocol):
    """A row that may have rare fields."""

    @property
    def extra(self) -> str | None:
        """JSON of an Extra."""
        ...


def extra_of(row: Rare) -> Extra:
    """The rare fields of a job."""
    return NO_EXTRA if row.extra is None else read_extra(row.extra)


def _job(row: ReadyRow | JobColumns, priority: int) -> Job:
    """The job of a row: as most jobs are, and then what is rare about it."""
    job = Job(
        id=row.id,
        task=row.task,
        payload=row.payload.encode(),
        enqueued_at=EPOCH + timedelta(0, 0, row.enqueued_at),
        queue=row.queue,
        priority=priority,
        keep=row.keep,
    )
    return job if row.extra is None else replace(job, **_rare_fields(row.extra))


def jobs_by_number(tx: Transaction, ns: Sequence[int]) -> Work[dict[int, JobColumns]]:
    """The jobs of these numbers that exist."""
    return {row.n: row for row in _columns((yield from tx.value("rows", ns=text(ns))))}


def jobs_by_id(tx: Transaction, ids: Iterable[str]) -> Work[dict[str, JobColumns]]:
    """The jobs of these ids that exist, in the order of the ids."""
    wanted = list(dict.fromkeys(ids))
    rows = {row.id: row for row in _columns((yield from tx.value("rows_by_id", ids=text(wanted))))}
    return {id: rows[id] for id in wanted if id in rows}
