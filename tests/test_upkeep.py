"""When a store's upkeep has something to do."""

from __future__ import annotations

import pytest

from offload.upkeep import LONGEST_WAIT, LOOK_EVERY, SECOND, Moments

NOW = 1_000 * SECOND
NOTHING = Moments(due=None, expires=None, forgets=None, tick=None, pruned=NOW, wakes=None, fades=None, now=NOW)


def test_a_store_with_nothing_to_do_is_idle_and_worth_asking_after_the_longest_wait() -> None:
    assert (NOTHING.idle, NOTHING.wait) == (True, LONGEST_WAIT)


@pytest.mark.parametrize("name", ["due", "expires", "forgets", "wakes", "fades"])
def test_a_moment_that_has_come_is_something_to_do_and_one_to_come_is_not(name: str) -> None:
    assert not NOTHING._replace(**{name: NOW}).idle
    assert NOTHING._replace(**{name: NOW + 1}).idle


@pytest.mark.parametrize("name", ["due", "expires", "tick"])
def test_it_waits_until_the_next_promotion_expiry_or_tick_and_not_longer_than_it_may(name: str) -> None:
    assert NOTHING._replace(**{name: NOW + 5 * SECOND}).wait == 5.0
    assert NOTHING._replace(**{name: NOW - 5 * SECOND}).wait == 0.0
    assert NOTHING._replace(**{name: NOW + 5_000 * SECOND}).wait == LONGEST_WAIT


@pytest.mark.parametrize(("pruned", "prunes"), [(None, True), (NOW, False), (NOW - LOOK_EVERY + 1, False), (NOW - LOOK_EVERY, True)])
def test_absent_schedules_are_looked_for_once_a_minute(pruned: int | None, prunes: bool) -> None:
    moments = NOTHING._replace(pruned=pruned)
    assert (moments.prunes, moments.idle) == (prunes, not prunes)


def test_absent_schedules_are_looked_for_when_the_clock_was_set_back() -> None:
    assert NOTHING._replace(pruned=NOW + 1).prunes
