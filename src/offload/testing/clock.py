"""A clock that tests move by hand, so that no test sleeps."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

START = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
"""Where a `TestClock` starts unless told otherwise: a Tuesday at noon."""


class TestClock:
    """A `Clock` that stands still until it is moved. Safe to use from several threads."""

    __test__ = False  # pytest must not take it for a test class

    def __init__(self, start: datetime = START) -> None:
        """`start` is aware. Raises ValueError when it is naive."""
        if start.tzinfo is None:
            raise ValueError(f"the clock cannot start at the naive moment {start}; give it a time zone, as in datetime(..., tzinfo=UTC)")
        self._lock = threading.Lock()
        self._now = start.astimezone(UTC)
        self._monotonic = timedelta(seconds=1_000)

    def now(self) -> datetime:
        """The moment by the wall clock, aware, in UTC."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Seconds that only grow."""
        with self._lock:
            return self._monotonic.total_seconds()

    def advance(self, by: float | timedelta) -> None:
        """Let time pass: `by` is seconds or a timedelta, and moves both clocks. Raises ValueError when it is negative."""
        step = _span(by)
        if step < timedelta(0):
            raise ValueError(f"time cannot pass backwards by {by}; use jump() to set the wall clock back")
        with self._lock:
            self._now += step
            self._monotonic += step

    def jump(self, by: float | timedelta) -> None:
        """Set the wall clock forward, or back where `by` is negative, as an operator or NTP does; the monotonic clock stays."""
        with self._lock:
            self._now += _span(by)


def _span(by: float | timedelta) -> timedelta:
    return by if isinstance(by, timedelta) else timedelta(seconds=by)
