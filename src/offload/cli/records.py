"""What people and programs are shown of a job; arguments that its task masks are not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, assert_never

import msgspec

from offload.cli.output import iso
from offload.job import Progress, State
from offload.keys import allows
from offload.records import Record
from offload.wording import error_text
from offload.workflow import with_inputs

if TYPE_CHECKING:
    from offload.app import Offload

MASK = "***"


def payload(record: Record, app: Offload, *, reveal: bool) -> Mapping[str, Any]:
    """The arguments by name. Those that the task masks are `***`; of a task that is not known here all are, for it may mask any."""
    arguments: dict[str, Any] = msgspec.json.decode(record.payload)
    if reveal:
        return arguments
    task = app.tasks.get(record.task)
    return {name: MASK if task is None or name in task.mask else value for name, value in arguments.items()}


def with_outputs(record: Record) -> Record:
    """The job with `<output of ID>` in the places of its arguments that are filled when it runs."""
    places = [msgspec.json.encode(f"<output of {parent.id}>") for parent in record.parents]
    return msgspec.structs.replace(record, payload=with_inputs(record, places)) if places else record


def plain(record: Record, app: Offload, *, reveal: bool) -> dict[str, Any]:
    """A record as JSON carries it, always with the same keys."""
    unique, progress = record.unique, record.progress
    return {
        "id": record.id,
        "task": record.task,
        "queue": record.queue,
        "state": record.state.value,
        "priority": record.priority,
        "payload": payload(record, app, reveal=reveal),
        "attempt": record.attempt,
        "crashes": record.crashes,
        "enqueued_at": iso(record.enqueued_at),
        "run_at": iso(record.run_at),
        "expires_at": iso(record.expires_at),
        "started_at": iso(record.started_at),
        "finished_at": iso(record.finished_at),
        "timeout": record.timeout,
        "keep": record.keep,
        "unique": None if unique is None else {"key": unique.key, "until": unique.until, "on_conflict": unique.on_conflict},
        "order_by": record.order_by,
        "on_dead": None if record.order_by is None else record.on_dead,
        "limits": [{"key": limit.key, "allows": allows(limit)} for limit in record.limits],
        "schedule": record.schedule,
        "workflow": None if record.workflow is None else record.workflow.id,
        "parents": [parent.id for parent in record.parents],
        "if_parent_fails": record.if_parent_fails if record.parents else None,
        "batch": record.batch,
        "callback": record.callback,
        "worker": record.worker,
        "cancel_asked": record.cancel_asked,
        "reason": record.reason,
        "progress": None if progress is None else {"fraction": progress.fraction, "message": progress.message},
        "result": record.result,
        "steps": dict(record.steps),
        "errors": [
            {"attempt": each.attempt, "at": iso(each.at), "type": each.type, "message": each.message, "traceback": each.traceback}
            for each in record.errors
        ],
    }


def since(record: Record) -> datetime | None:
    """Since when the job is in its state; for a scheduled one, when it is due."""
    match record.state:
        case State.SCHEDULED:
            return record.run_at
        case State.WAITING | State.READY:
            return record.enqueued_at
        case State.RUNNING:
            return record.started_at
        case State.SUCCEEDED | State.DEAD | State.CANCELLED | State.EXPIRED:
            return record.finished_at
        case _:
            assert_never(record.state)


def remark(record: Record) -> str:
    """The one thing about a job that is most worth a glance."""
    if record.cancel_asked:
        return "asked to stop"
    if record.state is State.RUNNING and record.progress is not None:
        return progress(record.progress)
    if record.errors and record.state not in (State.SUCCEEDED, State.CANCELLED, State.EXPIRED):
        earlier = earlier_lives(record) == len(record.errors)
        return f"retried after {last_error(record)}" if earlier else last_error(record)
    return "" if record.reason == "cancelled" else record.reason or ""


def progress(made: Progress) -> str:
    """`40% resizing`."""
    return f"{made.fraction:.0%} {made.message}".rstrip()


def earlier_lives(record: Record) -> int:
    """How many of its errors, the first ones, come from before it was last retried by hand, which starts counting attempts anew."""
    if not record.errors:
        return 0
    failed = record.attempt - 1 if record.state in (State.RUNNING, State.SUCCEEDED) else record.attempt
    if record.errors[-1].attempt > failed:
        return len(record.errors)
    first = len(record.errors) - 1
    while first and record.errors[first - 1].attempt < record.errors[first].attempt:
        first -= 1
    return first


def last_error(record: Record) -> str:
    """What the last failed attempt failed with, or the reason where no attempt failed."""
    if not record.errors:
        return record.reason or "no reason was recorded"
    return error_text(record.errors[-1])
