"""Time, as brokers and workers ask for it, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EVER = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On Linux the monotonic clock stands still while the machine is suspended."""


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

    def elapsed(self) -> float:
        """Seconds that only grow, also while the machine is suspended."""
        return time.clock_gettime(_EVER)


class ServerClock:
    """The wall clock of a server that many machines share, carried on by the time that passes on this machine between two readings.

    So a machine whose own clock is wrong or jumps enqueues, promotes, expires and forgets nothing at the wrong time. Where the clock is
    not the machine's own, as in tests, readings are ignored and it is followed alone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._own = clock if isinstance(clock, SystemClock) else None
        self._read: tuple[datetime, float] | None = None
        self.skew: timedelta | None = None
        """How far this machine's clock was ahead of the server's at the last reading; None before the first."""

    def read(self, server: datetime) -> None:
        """Take note of what the server's clock showed just now."""
        if self._own is not None:
            self._read = (server, self._own.elapsed())
            self.skew = self._own.now() - server

    def now(self) -> datetime:
        """The moment by the server's clock; by this machine's before the first reading."""
        if self._own is None or self._read is None:
            return self._clock.now()
        server, at = self._read
        return server + timedelta(seconds=self._own.elapsed() - at)

    def monotonic(self) -> float:
        """Seconds that only grow, of this machine."""
        return self._clock.monotonic()
