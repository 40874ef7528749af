"""How `why` and `doctor` say things: findings, moments, durations, numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

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
