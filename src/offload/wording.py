"""How `why` and `doctor` say things: findings, moments, durations, numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

from offload.job import Failure

_LONG = 120.0
"""Seconds up to which a delay that was asked for is told exactly."""
Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class Finding(msgspec.Struct, frozen=True):
    """One thing that `doctor` has to say: what it is, the facts, and what to do about it."""

    severity: Severity
    title: str
    detail: str = ""
    advice: str = ""


def moment(at: datetime | None) -> str:
    """A moment as people read it, in UTC."""
    return "an unknown time" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def number(count: int, one: str, many: str) -> str:
    """`1 job`, `1,200 jobs`."""
    return f"{count:,} {one if count == 1 else many}"


def error_text(failure: Failure) -> str:
    """What an attempt failed with: `SMTPError: down`; of one that named its own delay, `asked to be run again in 3 s`."""
    if (delay := _asked(failure)) is not None:
        return f"asked {_again(delay)}"
    return f"{failure.type}: {failure.message}" if failure.message else failure.type


def failed(failure: Failure, at: str = "") -> str:
    """The same with its verb, and when that was: `failed at noon with SMTPError: down`."""
    when = f" {at}" if at else ""
    delay = _asked(failure)
    return f"failed{when} with {error_text(failure)}" if delay is None else f"asked{when} {_again(delay)}"


def _again(delay: float) -> str:
    return f"to be run again in {f'{delay:g} s' if delay < _LONG else span(delay)}"


def _asked(failure: Failure) -> float | None:
    """The seconds of a RetryLater, whose text is nothing else; None of any other failure."""
    if failure.type != "RetryLater":
        return None
    try:
        return float(failure.message)
    except ValueError:
        return None


def whole(seconds: float) -> str:
    """A duration that is known to about a second."""
    return f"{seconds:.0f} s" if 0.5 <= seconds < 10 else span(seconds)


def span(seconds: float) -> str:
    """A duration as people say it, in its largest fitting unit."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
