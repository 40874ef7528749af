"""Turns jobs into rows and rows into jobs, leases and records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from offload.brokers._texts import remembered
from offload.brokers.sqlite.transaction import Transaction
from offload.job import (
    Callback,
    Failure,
    IfParentFails,
    Job,
    Limit,
    Membership,
    OnDead,
    Overlap,
    Parent,
    Progress,
    RateLimit,
    State,
    UniqueKey,
)
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
_encode = msgspec.json.Encoder().encode
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


@remembered
def only_held(text: str) -> bool:
    """Whether what is rare about a job is that it has a turn or slots, or belongs somewhere: such a job is claimed as it stands."""
    extra = read_extra(text)
    if extra.run_at is not None or extra.unique is not None or extra.schedule is not None or extra.expires_at is not None:
        return False
    return extra.timeout is None and extra.fair_by is None and not any(isinstance(limit, RateLimit) for limit in extra.limits)


_failure = msgspec.json.Decoder(Failure).decode

JobRow = tuple[int, str, str, str, int, str, int, float, int | None, str | None]


def _rare(job: Job) -> bool:
    if job.run_at is not None or job.unique is not None or job.schedule is not None or job.expires_at is not None:
        return True
    if job.timeout is not None or job.order_by is not None or job.limits or job.fair_by is not None:
        return True
    return job.workflow is not None or job.batch is not None


def job_row(n: int, job: Job) -> JobRow:
    """The row of `jobs` for a job that comes in."""
    run_at = job.run_at
    extra = extra_text(job) if _rare(job) else None
    due = None if run_at is None else stored(run_at)
    return (n, job.id, job.task, job.queue, -job.priority, job.payload.decode(), stored(job.enqueued_at), job.keep, due, extra)


def member_row(n: int, job: Job) -> tuple[Any, ...]:
    """The row of `jobs` for a job that comes in and belongs to a workflow or batch."""
    return (*job_row(n, job), None if job.workflow is None else job.workflow.id, job.batch)


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


def text(value: Any) -> str:
    """A value as JSON text, as SQLite's JSON functions want it."""
    return _encode(value).decode()


ROUND_BITS = 24


def placed(rank: int, round: int = 0) -> int:
    """The rank in a ready line: first by priority, then by the round in which keys take turns; 0 for jobs without such a key."""
    return (rank << ROUND_BITS) + round


class ReadyRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A candidate of a ready line with its job, as the claim reads it."""

    rank: int
    """In its ready line: the priority, negated, and the round in which it takes its turn; see `placed`."""
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

    def job(self, queue: str) -> Job:
        """The job, which stands in `queue`."""
        return _job(self, queue, -(self.rank >> ROUND_BITS))


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
    aside: int
    pos: int
    result: str | None
    finished_at: int | None
    reason: str | None
    errors: list[str]
    """JSON of each Failure."""
    steps: dict[str, str]
    """JSON of each step's result, by its name."""
    progress: tuple[float, str] | None
    cancel_asked: int
    seat: int
    lane: str | None
    place: int
    """Its rank in its ready line."""
    what: str | None
    """Whether it waits for its parents, or for its batch."""

    def job(self) -> Job:
        """The job."""
        return _job(self, self.queue, -self.rank)

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
            cancel_asked=bool(self.cancel_asked),
            started_at=optional_moment(self.started_at),
            finished_at=optional_moment(self.finished_at),
        )


_numbers = msgspec.json.Decoder(list[int]).decode
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


def _job(row: ReadyRow | JobColumns, queue: str, priority: int) -> Job:
    """The job of a row: as most jobs are, and then what is rare about it."""
    job = Job(
        id=row.id,
        task=row.task,
        payload=row.payload.encode(),
        enqueued_at=EPOCH + timedelta(0, 0, row.enqueued_at),
        queue=queue,
        priority=priority,
        keep=row.keep,
    )
    return job if row.extra is None else replace(job, **_rare_fields(row.extra))


def jobs_by_number(tx: Transaction, ns: Sequence[int]) -> dict[int, JobColumns]:
    """The jobs of these numbers that exist."""
    return {row.n: row for row in _columns(tx.value("rows", ns=text(ns)))}


def jobs_by_id(tx: Transaction, ids: Iterable[str]) -> dict[str, JobColumns]:
    """The jobs of these ids that exist, in the order of the ids."""
    wanted = list(dict.fromkeys(ids))
    numbers = _numbers(tx.value("numbers", ids=text(wanted)))
    rows = {row.id: row for row in jobs_by_number(tx, numbers).values()}
    return {id: rows[id] for id in wanted if id in rows}
