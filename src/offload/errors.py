"""What can go wrong, and what a task may raise to decide its own outcome.

OffloadError
├── Unsupported          the broker cannot honour what the job asks for
├── TaskNotFound         no task of that name is registered here
├── BadPayload           arguments or a result could not be encoded, decoded or bound; or are too large
├── BadDeclaration       a task, schedule, option or URL that cannot work
├── UniqueConflict       the unique key is taken and the job asked to raise
├── IdConflict           the id was used before with another payload, or in another workflow
├── BatchClosed          a job for a batch that is sealed, or that there is not
├── ParentNotFound       a job is to wait for one that there is not
├── BrokerError          the broker could not be reached or answered oddly (`__cause__` is the driver's error)
│   ├── BrokerNotInstalled  the engine, or a package that it needs, is missing
│   ├── BrokerBusy       it answers, but what others hold or do there kept this from being done
│   └── BrokerUnusable   as it is set up it will not work, however often it is tried
│       ├── SchemaTooNew     the database was written by a newer Offload
│       └── Unprepared       PostgreSQL: its tables are missing or older and may not be made here (the engine's own: catch BrokerUnusable)
├── SessionLost          the worker's session is gone; its leases are void
├── LoopRunning          a sync call inside a running event loop
├── NotInTask            `current` outside an attempt
├── JobEnded             `result()` of a job that ended without one; `record` tells how
│   ├── JobFailed            a dead job
│   ├── JobCancelled         a cancelled job
│   └── JobExpired           an expired job
├── ResultTimeout        `result(timeout=...)` ran out
└── JobNotFound          no such job, or its record is forgotten
Directive (BaseException, so that a task's own `except Exception` does not swallow it)
├── RetryLater           try again after a delay; counts as a retry
├── Snooze               try again after a delay; does not count
├── Discard              DEAD at once
└── Cancel               CANCELLED
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offload.records import Record


class OffloadError(Exception):
    """The root of all errors of Offload."""


class Unsupported(OffloadError):
    """The broker cannot honour what the job asks for."""


class TaskNotFound(OffloadError, LookupError):
    """No task of that name is registered here."""


class BadPayload(OffloadError, ValueError):
    """Arguments or a result that cannot be encoded, decoded or bound, or that are too large."""


class BadDeclaration(OffloadError, ValueError):
    """A task, schedule, option or URL that cannot work."""


class UniqueConflict(OffloadError):
    """The unique key is taken. `job_id` is the job that holds it."""

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(f"unique key {key!r} is held by job {job_id}; wait for it, cancel it, or use on_conflict='skip'")
        self.key = key
        self.job_id = job_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.job_id), self.__dict__


class IdConflict(OffloadError):
    """The id was used before with another payload."""

    def __init__(self, job_id: str, told: str = "") -> None:
        super().__init__(
            told
            or f"job id {job_id!r} was already used with another task or payload, or in another workflow or batch; an id is an idempotency "
            "key, so give this job its own"
        )
        self.job_id = job_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id, str(self)), self.__dict__


class BatchClosed(OffloadError):
    """A job was to be added to a batch that takes no more, or that there is not."""


class ParentNotFound(OffloadError, LookupError):
    """A job was to wait for a parent that its workflow has not: never enqueued there, deleted, or its record is forgotten."""

    def __init__(self, job_id: str, parent_id: str) -> None:
        super().__init__(
            f"job {job_id} is to wait for job {parent_id}, and its workflow has none: it is in another one or in none, was deleted, or its "
            "record is forgotten"
        )
        self.job_id = job_id
        self.parent_id = parent_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id, self.parent_id), self.__dict__


class BrokerError(OffloadError):
    """The broker could not be reached or answered oddly; `__cause__` is the driver's error."""


class BrokerNotInstalled(BrokerError):
    """The engine, or a package that it needs, is missing; the message names the extra, and what to use now."""


class BrokerBusy(BrokerError):
    """The broker answers, but other transactions kept this one from being done: they hold a lock for long, or undid it again and again."""


class BrokerUnusable(BrokerError):
    """The broker will not work as it is set up, however often it is tried: a missing folder, a damaged or foreign file, no permission."""


class SchemaTooNew(BrokerUnusable):
    """The database was written by a newer Offload than this one."""


class SessionLost(OffloadError):
    """The worker's session is gone: its leases are void and others may run its jobs."""


class LoopRunning(OffloadError, RuntimeError):
    """A sync call was made inside a running event loop, which it would block."""


class NotInTask(OffloadError, RuntimeError):
    """`current` was used outside an attempt."""


class JobEnded(OffloadError):
    """A job ended without a result. `record` tells how."""

    def __init__(self, message: str, record: Record) -> None:
        super().__init__(message)
        self.record = record

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.record), self.__dict__


class JobFailed(JobEnded):
    """The job is dead. The text holds the last error; `record.errors` every attempt's traceback."""


class JobCancelled(JobEnded):
    """The job was cancelled."""


class JobExpired(JobEnded):
    """The job was not started in time."""


class ResultTimeout(OffloadError, TimeoutError):
    """The job was not finished when the time given to `result` ran out. It goes on."""


class JobNotFound(OffloadError, LookupError):
    """No job of that id: never enqueued, deleted, or its record is forgotten (`keep`)."""


class Directive(BaseException):
    """Raised by a task to decide its own outcome; not an error."""


class RetryLater(Directive):
    """Try again after `delay`, in seconds or as a timedelta; counts as a retry.

    With `whole_key` no other job of the same key starts until then: what an HTTP 429 with `Retry-After` asks for. Those are the keys of its
    rates; of its concurrency limits where it has no rate; else of its order.
    """

    def __init__(self, delay: float | timedelta, whole_key: bool = False) -> None:
        self.delay = delay.total_seconds() if isinstance(delay, timedelta) else delay
        self.whole_key = whole_key
        super().__init__(self.delay)


class Snooze(Directive):
    """Try again after `delay`, in seconds or as a timedelta; the attempt does not count."""

    def __init__(self, delay: float | timedelta) -> None:
        self.delay = delay.total_seconds() if isinstance(delay, timedelta) else delay
        super().__init__(self.delay)


class Discard(Directive):
    """The job is DEAD at once, with this reason."""

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)
        self.reason = reason


class Cancel(Directive):
    """The job is CANCELLED, with this reason."""

    def __init__(self, reason: str = "cancelled by its task") -> None:
        super().__init__(reason)
        self.reason = reason
