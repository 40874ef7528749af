"""Decides what an attempt's end means for its job. Pure: no broker, no loop, no clock."""

from __future__ import annotations

import traceback
from datetime import datetime
from typing import assert_never

from offload.errors import Cancel, Directive, Discard, RetryLater, Snooze
from offload.job import Cancelled, Dead, Failure, Lease, Outcome, Release, Retried
from offload.retry import Again, Enough, RetryPolicy, decide

MOST_MESSAGE = 8_000
MOST_TRACEBACK = 32_000


class AttemptStopped(BaseException):
    """Raised in a thread or child process to end the attempt that runs there."""


class Exited(Exception):
    """The task tried to end the process, or the child process that ran it died."""


def after(error: BaseException, policy: RetryPolicy, lease: Lease, now: datetime, random: float) -> Outcome:
    """What becomes of the job whose attempt raised `error`. `random` is a number from 0 up to 1, for the jitter."""
    match error:
        case Snooze(delay=delay):
            return Release(delay)
        case Discard(reason=reason):
            return Dead(reason, failure_of(error, lease.attempt, now))
        case Cancel(reason=reason):
            return Cancelled(reason)
        case _:
            age = (now - lease.job.enqueued_at).total_seconds()
            failure = failure_of(error, lease.attempt, now)
            verdict = decide(policy, _as_failure(error), lease.attempt, age, random)
            match verdict:
                case Again(delay):
                    return Retried(delay, failure)
                case Enough(reason):
                    return Dead(reason, failure)
                case _:
                    assert_never(verdict)


def _as_failure(error: BaseException) -> BaseException:
    """`sys.exit`, KeyboardInterrupt and the like inside a task are failures of that task, nothing more."""
    return error if isinstance(error, Exception | RetryLater) else Exited(f"{type(error).__name__}: {text_of(error)}")


def text_of(error: BaseException) -> str:
    """What the error says, even when its `__str__` is broken."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - the user's own code, in any way broken
        text = f"<an error whose text cannot be made: __str__ raised {type(broken).__name__}>"
    return text if len(text) <= MOST_MESSAGE else text[:MOST_MESSAGE] + " …"


def failure_of(error: BaseException, attempt: int, now: datetime) -> Failure:
    """The record of a failed attempt."""
    if isinstance(error, Directive):
        return Failure(attempt, now, type(error).__name__, text_of(error))
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001 - an error that cannot be printed must still be recorded
        frames = "".join(traceback.format_tb(error.__traceback__))
        trace = f"{frames}{type(error).__name__}: its text cannot be printed ({type(broken).__name__})"
    if len(trace) > MOST_TRACEBACK:
        trace = trace[: MOST_TRACEBACK // 2] + "\n … \n" + trace[-MOST_TRACEBACK // 2 :]
    return Failure(attempt, now, _name_of(type(error)), text_of(error), trace)


def _name_of(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
