"""A session is judged dead by its beat number and the observer's own clock, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from offload.liveness import Watch

BEATS = (0, 3, 6, 9, 12)


@pytest.fixture
def watch() -> Watch:
    return Watch(timeout=15, heartbeat=3)


def watched(watch: Watch, beats: dict[str, int], moments: Iterable[float]) -> list[list[tuple[str, int]]]:
    return [watch.observe(beats, moment) for moment in moments]


def test_nobody_is_dead_at_first_sight(watch: Watch) -> None:
    assert watch.observe({"a": 1, "b": 900}, 1_000_000) == []


def test_a_session_unchanged_for_the_timeout_is_dead_with_the_number_seen(watch: Watch) -> None:
    assert watched(watch, {"a": 7}, [*BEATS, 14.999]) == [[]] * 6
    assert watch.observe({"a": 7}, 15) == [("a", 7)]


def test_a_dead_session_stays_dead_until_it_is_removed(watch: Watch) -> None:
    assert watched(watch, {"a": 7}, [*BEATS, 15, 18])[-2:] == [[("a", 7)], [("a", 7)]]
    assert watch.observe({}, 21) == []


def test_any_change_of_the_number_is_life(watch: Watch) -> None:
    watched(watch, {"a": 7}, BEATS)
    assert watch.observe({"a": 8}, 15) == []
    assert watched(watch, {"a": 8}, [18, 21, 24, 27]) == [[]] * 4
    assert watch.observe({"a": 8}, 30) == [("a", 8)]


def test_a_number_that_went_down_is_a_change_too(watch: Watch) -> None:
    watched(watch, {"a": 7}, BEATS)
    assert watch.observe({"a": 1}, 15) == []


def test_a_dead_session_that_beats_again_lives(watch: Watch) -> None:
    assert watched(watch, {"a": 7}, [*BEATS, 15])[-1] == [("a", 7)]
    assert watch.observe({"a": 8}, 18) == []


def test_each_session_is_judged_by_itself(watch: Watch) -> None:
    for moment in BEATS:
        assert watch.observe({"frozen": 1, "alive": int(moment)}, moment) == []
    assert watch.observe({"frozen": 1, "alive": 15, "new": 1}, 15) == [("frozen", 1)]


def test_a_session_that_left_and_came_back_starts_anew(watch: Watch) -> None:
    watched(watch, {"a": 7}, BEATS)
    watch.observe({}, 15)
    assert watched(watch, {"a": 7}, [18, 21, 24, 27, 30]) == [[]] * 5
    assert watch.observe({"a": 7}, 33) == [("a", 7)]


def test_an_observer_that_was_away_forgets_what_it_saw(watch: Watch) -> None:
    watched(watch, {"a": 7}, BEATS)
    assert watch.observe({"a": 7}, 12 + 7.001) == []
    assert watched(watch, {"a": 7}, [22, 25, 28, 31, 34]) == [[]] * 5
    assert watch.observe({"a": 7}, 35) == [("a", 7)]


def test_an_observer_that_beats_late_but_within_two_heartbeats_keeps_what_it_saw(watch: Watch) -> None:
    assert watched(watch, {"a": 7}, [0, 7, 14]) == [[]] * 3
    assert watch.observe({"a": 7}, 15) == [("a", 7)]


def test_an_observer_that_only_ever_beats_late_kills_nobody(watch: Watch) -> None:
    assert watched(watch, {"a": 7}, range(0, 1_000, 8)) == [[]] * 125


def test_other_timings_are_kept_to() -> None:
    watch = Watch(timeout=1, heartbeat=0.2)
    assert watched(watch, {"a": 1}, [10.0, 10.25, 10.5, 10.75]) == [[]] * 4
    assert watch.observe({"a": 1}, 11.0) == [("a", 1)]


def test_the_longest_gap_is_never_longer_than_the_timeout() -> None:
    watch = Watch(timeout=4, heartbeat=3)
    watch.observe({"a": 1}, 0)
    assert watch.observe({"a": 1}, 4.5) == []
