"""The clock of a shared server, as one machine carries it on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from offload.clock import ServerClock, SystemClock
from offload.testing.clock import TestClock

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Machine(SystemClock):
    """A machine's clocks, moved by hand: the wall clock jumps, the monotonic one does not."""

    def __init__(self) -> None:
        self.wall = NOON
        self.ticks = 100.0
        self.slept = 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks

    def elapsed(self) -> float:
        return self.ticks + self.slept


def test_before_the_first_reading_it_shows_the_machines_time() -> None:
    clock = ServerClock(Machine())
    assert clock.now() == NOON
    assert clock.skew is None


def test_it_goes_on_from_the_last_reading_whatever_the_machines_wall_clock_does() -> None:
    machine = Machine()
    clock = ServerClock(machine)
    clock.read(NOON - timedelta(minutes=3))
    assert clock.skew == timedelta(minutes=3)
    machine.wall += timedelta(hours=1)
    machine.ticks += 2.5
    assert clock.now() == NOON - timedelta(minutes=3) + timedelta(seconds=2.5)
    assert clock.monotonic() == pytest.approx(102.5)


def test_it_goes_on_while_the_machine_is_suspended() -> None:
    machine = Machine()
    clock = ServerClock(machine)
    clock.read(NOON)
    machine.slept += 3600
    assert clock.now() == NOON + timedelta(hours=1)


def test_a_clock_that_tests_move_is_followed_alone() -> None:
    injected = TestClock()
    clock = ServerClock(injected)
    clock.read(NOON + timedelta(days=1))
    injected.advance(5)
    assert clock.now() == injected.now()
    assert clock.skew is None
