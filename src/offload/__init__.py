"""Offload: background jobs that start on one SQLite file and lose nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offload.app import Offload
from offload.current import current
from offload.errors import (
    BadDeclaration,
    BadPayload,
    BrokerError,
    BrokerNotInstalled,
    Cancel,
    Directive,
    Discard,
    IdConflict,
    JobCancelled,
    JobEnded,
    JobExpired,
    JobFailed,
    JobNotFound,
    LoopRunning,
    NotInTask,
    OffloadError,
    ResultTimeout,
    RetryLater,
    SchemaTooNew,
    SessionLost,
    Snooze,
    TaskNotFound,
    UniqueConflict,
    Unsupported,
)
from offload.events import Event
from offload.handle import Handle
from offload.job import Draft, Failure, Job, Progress, Record, State
from offload.limits import Unique
from offload.retry import Retry
from offload.task import AsyncTask, Task

if TYPE_CHECKING:
    from offload.worker import Worker

__all__ = [
    "AsyncTask",
    "BadDeclaration",
    "BadPayload",
    "BrokerError",
    "BrokerNotInstalled",
    "Cancel",
    "Directive",
    "Discard",
    "Draft",
    "Event",
    "Failure",
    "Handle",
    "IdConflict",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "LoopRunning",
    "NotInTask",
    "Offload",
    "OffloadError",
    "Progress",
    "Record",
    "ResultTimeout",
    "Retry",
    "RetryLater",
    "SchemaTooNew",
    "SessionLost",
    "Snooze",
    "State",
    "Task",
    "TaskNotFound",
    "Unique",
    "UniqueConflict",
    "Unsupported",
    "Worker",
    "current",
]


def __getattr__(name: str) -> Any:
    """The worker is above the app in the order of imports, and web processes never need it: it is loaded when asked for."""
    if name == "Worker":
        from offload.worker import Worker

        return Worker
    raise AttributeError(f"module 'offload' has no attribute {name!r}")
