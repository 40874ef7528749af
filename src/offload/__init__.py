"""Offload: background jobs that start on one SQLite file and lose nothing."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offload.app import Offload
    from offload.batching import Batch
    from offload.composing import Results, Run, Workflow, WorkflowRecord, chain, group
    from offload.current import current
    from offload.errors import (
        BadDeclaration,
        BadPayload,
        BatchClosed,
        BrokerBusy,
        BrokerError,
        BrokerNotInstalled,
        BrokerUnusable,
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
        ParentNotFound,
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
    from offload.job import Draft, Failure, Job, Progress, State
    from offload.limits import Concurrency, Rate, Unique
    from offload.records import Record, Tally
    from offload.retry import Retry
    from offload.task import AsyncTask, Task
    from offload.worker import Worker
    from offload.workflow import Node, previous

__all__ = [
    "AsyncTask",
    "BadDeclaration",
    "BadPayload",
    "Batch",
    "BatchClosed",
    "BrokerBusy",
    "BrokerError",
    "BrokerNotInstalled",
    "BrokerUnusable",
    "Cancel",
    "Concurrency",
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
    "Node",
    "NotInTask",
    "Offload",
    "OffloadError",
    "ParentNotFound",
    "Progress",
    "Rate",
    "Record",
    "ResultTimeout",
    "Results",
    "Retry",
    "RetryLater",
    "Run",
    "SchemaTooNew",
    "SessionLost",
    "Snooze",
    "State",
    "Tally",
    "Task",
    "TaskNotFound",
    "Unique",
    "UniqueConflict",
    "Unsupported",
    "Worker",
    "Workflow",
    "WorkflowRecord",
    "chain",
    "current",
    "group",
    "previous",
]

_ELSEWHERE = {
    "offload.app": ("Offload",),
    "offload.batching": ("Batch",),
    "offload.composing": ("Results", "Run", "Workflow", "WorkflowRecord", "chain", "group"),
    "offload.workflow": ("Node", "previous"),
    "offload.current": ("current",),
    "offload.events": ("Event",),
    "offload.handle": ("Handle",),
    "offload.job": ("Draft", "Failure", "Job", "Progress", "State"),
    "offload.records": ("Record", "Tally"),
    "offload.limits": ("Concurrency", "Rate", "Unique"),
    "offload.retry": ("Retry",),
    "offload.task": ("AsyncTask", "Task"),
    "offload.worker": ("Worker",),
}
_HOMES = dict.fromkeys(__all__, "offload.errors") | {name: home for home, names in _ELSEWHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    """Public names are loaded when asked for: `offload --help` needs none of them, and web processes never need the worker."""
    if name not in _HOMES:
        raise AttributeError(f"module 'offload' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `offload.current` the public object: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "current" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
