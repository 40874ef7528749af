"""How many jobs a worker asks for, by what runs and how fast it went until now."""

from __future__ import annotations

from offload.job import Isolation
from offload.worker.lanes import AHEAD, MOST_AHEAD, Lane, Pace, demand


def lanes(size: int = 10, threads: int = 4, processes: int = 2) -> dict[Isolation, Lane]:
    return {"async": Lane(size), "thread": Lane(threads), "process": Lane(processes)}


def at_pace(per_second: float, lane: Lane) -> Lane:
    lane.pace.per_second = per_second
    return lane


def test_an_idle_worker_asks_for_as_many_as_may_run_at_once() -> None:
    assert demand(lanes(), 10) == (10, {"async": 10, "thread": 4, "process": 2})


def test_a_full_worker_asks_for_nothing() -> None:
    full = lanes(size=3)
    full["async"].running = 3
    assert demand(full, 3) == (0, {"async": 0, "thread": 4, "process": 2})


def test_all_lanes_together_stay_within_the_concurrency() -> None:
    busy = lanes()
    busy["thread"].running, busy["async"].running = 4, 5
    limit, room = demand(busy, 10)
    assert limit == 1
    assert room == {"async": 5, "thread": 0, "process": 2}


def test_no_more_than_the_lanes_can_take() -> None:
    assert demand({"async": Lane(0), "thread": Lane(2), "process": Lane(1)}, 100)[0] == 3


def test_long_tasks_are_not_claimed_ahead() -> None:
    slow = at_pace(10, Lane(4, running=4))
    assert (slow.pace.ahead(), slow.room) == (0, 0)


def test_short_tasks_are_claimed_ahead_by_what_starts_within_the_time() -> None:
    quick = at_pace(5_000, Lane(4, running=4))
    assert quick.pace.ahead() == quick.room == int(5_000 * AHEAD)


def test_what_is_claimed_ahead_has_a_bound() -> None:
    assert at_pace(1e9, Lane(4)).pace.ahead() == MOST_AHEAD


def test_nothing_is_claimed_while_half_of_what_was_claimed_ahead_still_waits() -> None:
    quick = at_pace(5_000, Lane(4, running=4))
    quick.waiting = 51
    assert quick.room == 0
    quick.waiting = 50
    assert quick.room == 50


def test_what_waits_counts_against_the_demand() -> None:
    quick = lanes(size=4)
    at_pace(5_000, quick["async"]).running, quick["async"].waiting = 4, 40
    assert demand(quick, 4) == (60, {"async": 60, "thread": 4, "process": 2})


def test_a_slot_taken_beyond_the_size_does_not_count_twice() -> None:
    assert Lane(2, running=3).free == 0


def test_the_pace_is_the_number_of_ends_a_second() -> None:
    pace = Pace()
    now = 100.0
    pace.count(0, now)
    for _ in range(200):
        now += 0.03
        pace.count(30, now)
    assert 990 <= pace.per_second <= 1_010


def test_the_pace_is_forgotten_after_a_second_of_rest() -> None:
    pace = Pace(per_second=50_000)
    pace.count(0, 100.0)
    pace.count(1, 130.0)
    assert pace.per_second < 1


def test_where_jobs_with_a_rate_come_nothing_is_claimed_ahead() -> None:
    paced = lanes()
    paced["async"].paced = True
    for lane in paced.values():
        lane.pace.per_second = 10_000
    limit, room = demand(paced, 10)
    assert room["async"] == 10
    assert room["thread"] > 4
    assert limit > 10
