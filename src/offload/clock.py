"""Time, as brokers and workers ask for it, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The wall clock and a clock that never jumps."""

    def now(self) -> datetime:
        """The moment by the wall clock, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow; for judging sessions and limits."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The moment by the wall clock, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()
