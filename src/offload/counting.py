"""Judges workflows and batches by their numbers: whether more is to come, whether all have ended, which callbacks are due. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from offload.job import KEEP_SUCCEEDED, KEEP_UNSUCCESSFUL, Callback, TallyKind
from offload.records import Tally

ABANDONED_AFTER = 3_600.0
"""Seconds after its last job came after which what is not complete is taken for abandoned."""
LEAST_KEEP = 60.0
"""Seconds that a finished workflow is kept at least, so that who waits for it sees its end."""


class Numbers(Protocol):
    """What an engine knows of a workflow or batch; flags may be numbers."""

    @property
    def kind(self) -> TallyKind: ...
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def succeeded(self) -> int: ...
    @property
    def dead(self) -> int: ...
    @property
    def cancelled(self) -> int: ...
    @property
    def expired(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def sealed(self) -> int: ...
    @property
    def stopped(self) -> int: ...
    @property
    def abandoned(self) -> int: ...
    @property
    def keep(self) -> float: ...
    @property
    def callbacks(self) -> dict[Callback, str]: ...


def still_open(count: Numbers) -> int:
    """How many of its jobs have not ended."""
    return count.total - count.succeeded - count.dead - count.cancelled - count.expired


def is_complete(count: Numbers) -> bool:
    """Whether no more jobs are to come."""
    return bool(count.sealed) if count.kind == "batch" else count.total >= count.size


def is_over(count: Numbers) -> bool:
    """Whether all of its jobs have come and ended, however they did."""
    return is_complete(count) and still_open(count) == 0


def went_well(count: Numbers) -> bool:
    """Whether every job that it has succeeded, and its producer did not go away."""
    return count.succeeded == count.total and not count.abandoned


def is_due(count: Numbers, callback: Callback) -> bool:
    """Whether what a callback waits for has come."""
    match callback:
        case "failure":
            return bool(count.abandoned) or count.dead + count.expired > 0
        case "success":
            return is_over(count) and went_well(count)
        case "complete":
            return is_over(count)


def may_be_given_up(count: Numbers) -> bool:
    """Whether its producer is taken for gone if nothing comes for ABANDONED_AFTER: of a batch, only once its jobs have ended."""
    return not is_complete(count) and (count.kind == "workflow" or still_open(count) == 0)


def kept_for(count: Numbers) -> float:
    """Seconds that it is kept from its end: a workflow as long as the one of its jobs that is kept longest."""
    if not went_well(count):
        return KEEP_UNSUCCESSFUL
    return KEEP_SUCCEEDED if count.kind == "batch" else max(count.keep, LEAST_KEEP)


def tally_of(count: Numbers, created_at: datetime, finished_at: datetime | None, running: int) -> Tally:
    """What people see of it."""
    return Tally(
        kind=count.kind,
        id=count.id,
        name=count.name,
        created_at=created_at,
        finished_at=finished_at,
        total=count.total,
        running=running,
        succeeded=count.succeeded,
        dead=count.dead,
        cancelled=count.cancelled,
        expired=count.expired,
        size=count.size,
        sealed=bool(count.sealed),
        stopped=bool(count.stopped),
        abandoned=bool(count.abandoned),
        callbacks=tuple(count.callbacks.items()),
    )
