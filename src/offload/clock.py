"""Time, as brokers and workers ask for it, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
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


class ServerClock:
    """The wall clock of a server that many machines share, carried on by this machine's monotonic clock between two readings.

    So a machine whose own clock is wrong or jumps promotes, expires and forgets nothing at the wrong time. Where the clock is not
    the machine's own, as in tests, readings are ignored and it is followed alone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._follows = isinstance(clock, SystemClock)
        self._read: tuple[datetime, float] | None = None
        self.skew: timedelta | None = None
        """How far this machine's clock was ahead of the server's at the last reading; None before the first."""

    def read(self, server: datetime) -> None:
        """Take note of what the server's clock showed just now."""
        if self._follows:
            self._read = (server, self._clock.monotonic())
            self.skew = self._clock.now() - server

    def now(self) -> datetime:
        """The moment by the server's clock; by this machine's before the first reading."""
        if self._read is None:
            return self._clock.now()
        server, at = self._read
        return server + timedelta(seconds=self._clock.monotonic() - at)

    def monotonic(self) -> float:
        """Seconds that only grow, of this machine."""
        return self._clock.monotonic()
