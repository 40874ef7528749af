"""Decides what an attempt's end means for its job. Pure: no broker, no loop, no clock."""

from __future__ import annotations

import traceback
from datetime import datetime
from types import TracebackType
from typing import assert_never

from offload.duration import LONGEST, seconds
from offload.errors import BadDeclaration, Cancel, Directive, Discard, RetryLater, Snooze
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
    match _checked(error):
        case Snooze(delay=delay):
            return Release(delay)
        case Discard(reason=reason):
            return Dead(_text(reason), failure_of(error, lease.attempt, now))
        case Cancel(reason=reason):
            return Cancelled(_text(reason))
        case checked:
            age = (now - lease.job.enqueued_at).total_seconds()
            failure = failure_of(checked, lease.attempt, now)
            verdict = _decide(policy, _judged(error, checked), lease.attempt, age, random)
            match verdict:
                case Again(delay):
                    return Retried(delay, failure, whole_key=isinstance(checked, RetryLater) and checked.whole_key)
                case Enough(reason):
                    return Dead(_text(reason), failure, _held_back(checked))
                case _:
                    assert_never(verdict)


def _held_back(checked: BaseException) -> float:
    """Seconds for which the whole key is to wait although the job itself is not tried again: the service asked for it all the same."""
    return seconds(checked.delay, "RetryLater(delay)") if isinstance(checked, RetryLater) and checked.whole_key else 0.0


def _checked(error: BaseException) -> BaseException:
    """A Snooze or RetryLater in plain seconds; one whose delay is no duration is an error of the task like any other."""
    if not isinstance(error, Snooze | RetryLater):
        return error
    name = type(error).__name__
    try:
        delay = max(seconds(error.delay, f"{name}(delay)", least=-LONGEST), 0.0)
        return RetryLater(delay, error.whole_key) if isinstance(error, RetryLater) else Snooze(delay)
    except BadDeclaration as fault:
        return fault.with_traceback(error.__traceback__)


def _decide(policy: RetryPolicy, error: BaseException, attempt: int, age: float, random: float) -> Again | Enough:
    try:
        return decide(policy, error, attempt, age, random)
    except BaseException as fault:  # noqa: BLE001 - a policy is the user's own code, and may raise or exit as it likes
        return Enough(f"the retry policy raised {type(fault).__name__}: {text_of(fault)}")


def _judged(raised: BaseException, checked: BaseException) -> BaseException:
    """What the policy is asked about: a delay that is none is what the task came by in this attempt, and may be one in the next."""
    return _as_failure(checked if checked is raised or isinstance(checked, Directive) else ValueError(text_of(checked)))


def _as_failure(error: BaseException) -> BaseException:
    """`sys.exit`, KeyboardInterrupt and the like inside a task are failures of that task, nothing more."""
    return error if isinstance(error, Exception | RetryLater) else Exited(f"{type(error).__name__}: {text_of(error)}")


def text_of(error: BaseException) -> str:
    """What the error says, even when its `__str__` is broken."""
    return _text(error)


def _text(given: object) -> str:
    """Any value as text that every store can keep."""
    try:
        text = str(given)
    except BaseException as broken:  # noqa: BLE001 - the user's own code, in any way broken
        kind = "an error" if isinstance(given, BaseException) else "a value"
        text = f"<{kind} whose text cannot be made: __str__ raised {type(broken).__name__}>"
    return _storable(text if len(text) <= MOST_MESSAGE else text[:MOST_MESSAGE] + " …")


def _storable(text: str) -> str:
    """Without lone surrogates, which the names of files may contain and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()


def failure_of(error: BaseException, attempt: int, now: datetime) -> Failure:
    """The record of a failed attempt."""
    if isinstance(error, Directive):
        return Failure(attempt, now, type(error).__name__, text_of(error))
    try:
        trace = "".join(traceback.format_exception(type(error), error, _in_task(error.__traceback__)))
    except BaseException as broken:  # noqa: BLE001 - an error that cannot be printed must still be recorded
        frames = "".join(traceback.format_tb(error.__traceback__))
        trace = f"{frames}{type(error).__name__}: its text cannot be printed ({type(broken).__name__})"
    if len(trace) > MOST_TRACEBACK:
        trace = trace[: MOST_TRACEBACK // 2] + "\n … \n" + trace[-MOST_TRACEBACK // 2 :]
    return Failure(attempt, now, _name_of(type(error)), text_of(error), _storable(trace))


def _in_task(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the task, None when there is none: how the worker called it helps nobody."""
    inside = trace
    while inside is not None and inside.tb_frame.f_globals.get("__name__", "").startswith("offload.worker."):
        inside = inside.tb_next
    return inside


def _name_of(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
