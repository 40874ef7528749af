"""Turns jobs into rows and rows into jobs, leases and records. `queue.lua` describes the row of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from offload.brokers.redis.refusals import refusal_of
from offload.gates import gated
from offload.job import (
    Callback,
    Conflict,
    Failure,
    IfParentFails,
    Job,
    Lease,
    Limit,
    LimitChange,
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
"""Microseconds."""
HIGHEST_PRIORITY = 100

_TAIL = Struct(">qdBBHHI")
"""When enqueued, seconds to keep, rank of the priority, traits, lengths of queue, task and rare fields; then these, and the payload."""
GATED, CHECKED, KIN = 1, 2, 4
"""Traits: it passes gates for a turn or for slots; there is more to look at when it is claimed; it is of a workflow or a batch."""
_HEAD = 19
"""Bytes that the script puts before the tail: the job's number, its position, and when it became ready."""
_unpack_tail = _TAIL.unpack_from
REFUSED = b"\0"
"""Begins the reason of a job whose additions were refused."""
MEMBER = 6
"""Bytes of the number before the id in a member."""
_NAMES = _HEAD + _TAIL.size


def stored(moment: datetime) -> int:
    """A moment as the server holds it: whole microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


@lru_cache(maxsize=256)  # jobs of one batch share theirs
def moment(stored: int) -> datetime:
    """The moment that `stored` stands for, in UTC."""
    return EPOCH + timedelta(0, 0, stored)


def optional_moment(stored: int | None) -> datetime | None:
    """As `moment`; None stays None."""
    return None if stored is None else moment(stored)


def optional_stored(moment: datetime | None) -> int | str:
    """As `stored`; None is the empty word."""
    return "" if moment is None else stored(moment)


def microseconds(duration: float) -> int:
    """A duration in seconds as microseconds."""
    return timedelta(seconds=duration) // MICROSECOND


class Kin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """To which workflow and batch a job belongs, and how."""

    workflow: str | None = None
    flow: tuple[str, int] | None = None
    """Name and size of its workflow. Of a job that comes in alone, as are its parents: the script keeps both elsewhere."""
    parents: tuple[Parent, ...] = ()
    linked: bool = False
    """Whether a job that is stored has parents."""
    fails: IfParentFails = "cancel"
    batch: str | None = None
    callback: Callback | None = None

    def membership(self) -> Membership | None:
        """The workflow."""
        return None if self.workflow is None else Membership(self.workflow)


class Rare(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of a job that few jobs have: at most 15, or each is stored in two bytes more."""

    run_at: int | None = None
    expires_at: int | None = None
    timeout: float | None = None
    key: str | None = None
    covers: str | float | None = None
    """Until when the unique key holds: a state, or seconds."""
    frees_at: int | None = None
    """When a key frees itself that holds for so many seconds."""
    conflict: Conflict | None = None
    schedule: str | None = None
    overlap: Overlap | None = None
    order_by: str | None = None
    on_dead: OnDead = "continue"
    limits: tuple[Limit, ...] = ()
    fair_by: str | None = None
    kin: Kin | None = None

    def unique(self) -> UniqueKey | None:
        """The job's own unique key."""
        if self.key is None or self.covers is None or self.conflict is None:
            return None
        return msgspec.convert({"key": self.key, "until": self.covers, "on_conflict": self.conflict}, UniqueKey)


_pack = msgspec.msgpack.Encoder().encode
_read_rare = msgspec.msgpack.Decoder(Rare).decode
_failure = msgspec.json.Decoder(Failure).decode
_steps = msgspec.msgpack.Decoder(dict[str, str]).decode
_progress = msgspec.json.Decoder(tuple[float, str]).decode
ALONE = Kin()
_refusal = msgspec.msgpack.Decoder(list[str]).decode
_parents = msgspec.msgpack.Decoder(tuple[Parent, ...]).decode


def tail(job: Job) -> bytes:
    """The row of a job that comes in, but for its head, which the script adds."""
    queue, task, rare, traits = job.queue.encode(), job.task.encode(), b"", 0
    if (
        job.run_at is not None
        or job.unique is not None
        or job.schedule is not None
        or job.expires_at is not None
        or job.timeout is not None
        or job.overlap is not None
        or job.order_by is not None
        or job.limits
        or job.fair_by is not None
        or job.on_dead != "continue"
        or job.workflow is not None
        or job.batch is not None
        or job.if_parent_fails != "cancel"
    ):
        rare, traits = _pack(_rare_fields(job)), _traits(job)
    rank = HIGHEST_PRIORITY - job.priority
    fixed = _TAIL.pack(stored(job.enqueued_at), job.keep, rank, traits, len(queue), len(task), len(rare))
    return b"".join((fixed, queue, task, rare, job.payload))


def _traits(job: Job) -> int:
    rated = any(isinstance(limit, RateLimit) for limit in job.limits)
    checked = rated or job.expires_at is not None or job.unique is not None or job.schedule is not None or job.parents
    return (CHECKED if checked else 0) | (GATED if gated(job) else 0) | (KIN if _is_kin(job) else 0)


def _rare_fields(job: Job) -> Rare:
    unique = job.unique
    lasts = unique.until if unique is not None and not isinstance(unique.until, str) else None
    return Rare(
        run_at=None if job.run_at is None else stored(job.run_at),
        expires_at=None if job.expires_at is None else stored(job.expires_at),
        timeout=job.timeout,
        key=None if unique is None else unique.key,
        covers=None if unique is None else unique.until,
        frees_at=None if lasts is None else stored(job.enqueued_at) + microseconds(lasts),
        conflict=None if unique is None else unique.on_conflict,
        schedule=job.schedule,
        overlap=job.overlap,
        order_by=job.order_by,
        on_dead=job.on_dead,
        limits=job.limits,
        fair_by=job.fair_by,
        kin=_kin(job) if _is_kin(job) else None,
    )


def _is_kin(job: Job) -> bool:
    return job.workflow is not None or job.batch is not None or job.if_parent_fails != "cancel"


def _kin(job: Job) -> Kin:
    flow = job.workflow
    return Kin(
        workflow=None if flow is None else flow.id,
        flow=None if flow is None else (flow.name, flow.size),
        parents=() if flow is None else job.parents,
        fails=job.if_parent_fails,
        batch=job.batch,
        callback=job.callback,
    )


@lru_cache(maxsize=1024)  # a third of what a lease costs, else
def _names(names: bytes, queue_bytes: int) -> tuple[str, str]:
    return names[:queue_bytes].decode(), names[queue_bytes:].decode()


@lru_cache(maxsize=4096)  # jobs of one key, or of one workflow, mostly have the same
def _fields(packed: bytes) -> dict[str, Any]:
    """What few jobs have, as a job has it; for reading only, as jobs share it."""
    rare = _read_rare(packed)
    kin = rare.kin or ALONE
    fields = {
        "run_at": optional_moment(rare.run_at),
        "expires_at": optional_moment(rare.expires_at),
        "timeout": rare.timeout,
        "unique": rare.unique(),
        "schedule": rare.schedule,
        "overlap": rare.overlap,
        "order_by": rare.order_by,
        "on_dead": rare.on_dead,
        "limits": rare.limits,
        "fair_by": rare.fair_by,
        "workflow": kin.membership(),
        "if_parent_fails": kin.fails,
        "batch": kin.batch,
        "callback": kin.callback,
    }
    return {name: value for name, value in fields.items() if value not in (None, ())}


def job_of(id: str, row: bytes) -> Job:
    """The job of a row, but for its parents."""
    enqueued_at, keep, rank, _, queue_bytes, task_bytes, rare_bytes = _unpack_tail(row, _HEAD)
    rare_at = _NAMES + queue_bytes + task_bytes
    queue, task = _names(row[_NAMES:rare_at], queue_bytes)
    if rare_bytes == 0:  # a call with `**` would take twice as long
        return Job(
            id=id,
            task=task,
            payload=row[rare_at:],
            enqueued_at=moment(enqueued_at),
            queue=queue,
            priority=HIGHEST_PRIORITY - rank,
            keep=keep,
        )
    payload_at = rare_at + rare_bytes
    return Job(
        id=id,
        task=task,
        payload=row[payload_at:],
        enqueued_at=moment(enqueued_at),
        queue=queue,
        priority=HIGHEST_PRIORITY - rank,
        keep=keep,
        **_fields(row[rare_at:payload_at]),
    )


def leases_of(
    words: Sequence[bytes],
    again: Sequence[tuple[int, int, int, int, bytes | None]],
    families: Sequence[tuple[int, bytes | None, Sequence[bytes] | None]],
) -> list[Lease]:
    """The leases of members and rows in turn.

    And at places counted from 1, for jobs claimed before: claim, attempt, crashes, steps; for those that have parents: these, and their
    results, empty where there is none. The `ref` of a lease is the member: what the script calls the job where it stands or runs.
    """
    leases = [
        Lease(job_of(member[MEMBER:].decode(), row), 1, 1, 0, {}, member) for member, row in zip(words[::2], words[1::2], strict=True)
    ]
    for place, claim, attempt, crashes, steps in again:
        lease = leases[place - 1]
        leases[place - 1] = Lease(lease.job, claim, attempt, crashes, steps_of(steps), lease.ref)
    for place, parents, results in families:
        lease = leases[place - 1]
        inputs = tuple(result or None for result in results or ())
        leases[place - 1] = replace(lease, job=replace(lease.job, parents=parents_of(parents)), inputs=inputs)
    return leases


class Known(NamedTuple):
    """All that the store knows of a job, as the script tells it."""

    id: bytes
    row: bytes
    state: bytes
    attempt: int
    crashes: int
    started_at: int | None
    worker: bytes | None
    due: int | None
    finished_at: int | None
    reason: bytes | None
    result: bytes | None
    cancel_asked: int
    errors: bytes | None
    """JSON of each Failure, on a line of its own."""
    steps: bytes | None
    progress: bytes | None
    parents: bytes | None

    def record(self) -> Record:
        """The record of the job."""
        job = job_of(self.id.decode(), self.row)
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
            parents=parents_of(self.parents),
            if_parent_fails=job.if_parent_fails,
            batch=job.batch,
            callback=job.callback,
            state=State(self.state.decode()),
            attempt=self.attempt,
            crashes=self.crashes,
            errors=failures_of(self.errors),
            result=None if self.result is None else msgspec.json.decode(self.result),
            progress=None if self.progress is None else Progress(*_progress(self.progress)),
            steps={name: msgspec.json.decode(value) for name, value in steps_of(self.steps).items()},
            reason=None if self.reason is None else reason_of(self.reason),
            worker=None if self.worker is None else self.worker.decode(),
            cancel_asked=bool(self.cancel_asked),
            started_at=optional_moment(self.started_at),
            finished_at=optional_moment(self.finished_at),
        )


def change_of(change: LimitChange) -> bytes:
    """What a person changes, for the script: False stands for what goes back to what is declared."""
    fields = {name: getattr(change, name) for name in change.__struct_fields__}
    return _pack({name: False if value is None else value for name, value in fields.items() if value is not UNSET})


def parents_of(packed: bytes | None) -> tuple[Parent, ...]:
    """The parents of a job."""
    return () if packed is None else _parents(packed)


def reason_of(told: bytes) -> str:
    """Why a job ended as it did; where what it added was refused, the script says by what."""
    if not told.startswith(REFUSED):
        return told.decode()
    try:
        return f"the jobs that it added were refused: {refusal_of(_refusal(told[len(REFUSED) :]))}"
    except msgspec.DecodeError:  # a task's own words
        return told.decode()


def failures_of(lines: bytes | None) -> tuple[Failure, ...]:
    """The failures of a job's attempts, from JSON of each on a line of its own."""
    return () if lines is None else tuple(_failure(line) for line in lines.split(b"\n"))


def steps_of(packed: bytes | None) -> Mapping[str, bytes]:
    """The results of a job's steps, as JSON."""
    return {} if packed is None else {name: value.encode() for name, value in _steps(packed).items()}
