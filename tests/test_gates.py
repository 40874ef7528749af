"""Gates without a store: how a rate paces starts, and what of a job matters at which gate."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis.strategies import DrawFn, composite, integers, lists, sampled_from
from msgspec import UNSET
from msgspec.structs import replace

from offload.brokers._sql import queries, script
from offload.gates import (
    KINDS,
    LATENESS,
    changed_by,
    changed_gates,
    changes,
    gate_of,
    held_back_by,
    key_of,
    kind_of,
    member_of,
    new_rules,
    rule_id,
    settled,
    taken,
    token_at,
    tokens,
    wants_of,
)
from offload.job import Draft, LimitChange, RateLimit, SlotLimit

SECOND = 1_000_000
intervals = integers(1, 5 * LATENESS)
bursts = integers(1, 20)
costs = sampled_from([1, 1, 1, 2, 5, 30])
moments = integers(0, 10**12)


@composite
def starts(draw: DrawFn, interval: int, burst: int) -> list[tuple[int, int]]:
    """When jobs start that ask for tokens at random moments, one after the other, often several at once; with the tokens that they take."""
    at, tat, owed = draw(moments), 0, 0
    started: list[tuple[int, int]] = []
    for pause in draw(lists(integers(0, 3 * LATENESS) | integers(0, 20 * interval), max_size=60)):
        at += pause
        for _ in range(draw(integers(1, 2 * burst + 2))):
            cost = draw(costs)
            if tokens(tat, at, interval, burst, owed) >= min(cost, burst):
                tat, owed = taken(tat, at, interval, owed, cost)
                started.append((at, cost))
    return started


@composite
def paced(draw: DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    interval, burst = draw(intervals), draw(bursts)
    return interval, burst, draw(starts(interval, burst))


@given(paced())
def test_no_span_of_time_sees_more_tokens_taken_than_the_rate_the_burst_and_the_lateness_allow(
    run: tuple[int, int, list[tuple[int, int]]],
) -> None:
    """Of the last job in the span only what was there counts, where it takes more than gathers: those after it make up for that."""
    interval, burst, started = run
    for first, (begin, _) in enumerate(started):
        spent = 0
        for end, cost in started[first:]:
            assert spent + min(cost, burst) <= (end - begin + LATENESS) // interval + burst
            spent += cost


@given(intervals, bursts, moments, integers(1, 10**9))
def test_after_a_pause_longer_than_the_lateness_a_burst_starts_and_no_more(interval: int, burst: int, tat: int, beyond: int) -> None:
    now, owed, started = tat + LATENESS + beyond, burst, 0
    while tokens(tat, now, interval, burst, owed) >= 1:
        tat, owed = taken(tat, now, interval, owed, 1)
        started += 1
    assert started == burst


@given(intervals, integers(0, LATENESS))
def test_who_is_late_by_less_makes_nobody_late(interval: int, late: int) -> None:
    tat = 10 * SECOND
    assert taken(tat, tat + late, interval, 1, 1)[0] == tat + interval


@given(intervals, bursts, moments, moments)
def test_there_are_never_fewer_tokens_than_none_even_after_the_clock_was_set_back(interval: int, burst: int, tat: int, now: int) -> None:
    """Unless a job has taken more than gathers."""
    assert tokens(tat, now, interval, burst, burst) >= 0
    assert tokens(tat, now, interval, burst, burst + 3) >= -3
    assert settled(tat, now, interval, burst) <= now + burst * interval


@given(intervals, bursts, integers(1, 50), moments, moments)
def test_what_a_start_leaves_owed_is_how_far_ahead_it_is(interval: int, burst: int, cost: int, tat: int, now: int) -> None:
    if tokens(tat, now, interval, burst, burst) >= min(cost, burst):
        after, owed = taken(tat, now, interval, burst, cost)
        assert settled(after, now, interval, owed) == max(after, now - LATENESS)
        assert owed <= max(burst, cost)


@given(intervals, bursts, moments, integers(-10 * SECOND, 10 * SECOND), integers(1, 20), integers(0, 30))
def test_tokens_are_there_when_they_are_expected_and_not_before(
    interval: int, burst: int, tat: int, away: int, number: int, more: int
) -> None:
    now, number = max(tat + away, 0), min(number, burst)
    owed = burst + more
    at = token_at(tat, now, interval, burst, owed, number)
    known = settled(tat, now, interval, owed)
    assert at >= now
    assert tokens(known, at, interval, burst, owed) >= number
    assert at == now or tokens(known, at - 1, interval, burst, owed) < number


def job(**fields: object) -> Draft[None]:
    return Draft(task="t", **fields)  # pyright: ignore[reportArgumentType] - the fields differ from test to test


TURN, SLOT, RATE = {"order_by": "o"}, SlotLimit("s", 2), RateLimit("r", SECOND)


def test_a_gate_says_its_kind_and_its_key_whatever_the_key_holds() -> None:
    for kind in KINDS:
        for key in ("k", "slot of k", "a of b", " of "):
            assert (kind_of(gate_of(kind, key)), key_of(gate_of(kind, key))) == (kind, key)


def test_turns_are_looked_at_before_slots_and_slots_before_tokens() -> None:
    wanted = wants_of(job(**TURN, limits=(RATE, SLOT)))
    assert [want.gate for want in wanted] == ["turn of o", "slot of s", "token of r"]


def test_jobs_of_one_order_stand_in_one_lane_and_others_with_those_of_the_same_keys() -> None:
    assert member_of(job(**TURN, limits=(SLOT,)), 1, 1).lane == member_of(job(**TURN), 2, 2).lane == "turn of o"
    assert member_of(job(limits=(SLOT, RATE)), 1, 1).lane == member_of(job(limits=(RATE, SLOT)), 2, 2).lane
    assert member_of(job(limits=(SLOT,)), 1, 1).lane != member_of(job(limits=(SLOT, RATE)), 2, 2).lane


def test_the_rates_are_held_back_or_else_the_slots_or_else_the_order() -> None:
    assert held_back_by(job(**TURN, limits=(SLOT, RATE))) == ("token of r",)
    assert held_back_by(job(**TURN, limits=(SLOT,))) == ("slot of s",)
    assert held_back_by(job(**TURN)) == ("turn of o",)
    assert held_back_by(job()) == ()


def test_a_change_concerns_the_gates_of_what_it_changes() -> None:
    assert changed_by("k", LimitChange(n=3)) == ["slot of k"]
    assert changed_by("k", LimitChange(burst=None)) == ["token of k"]
    assert changed_by("k", LimitChange(paused=True)) == ["turn of k", "slot of k", "token of k"]
    assert changed_by("k", LimitChange(n=UNSET)) == []


def test_a_declaration_changes_what_jobs_of_its_rule_may_do() -> None:
    own = SlotLimit("s:7", 2, "s:{n}")
    assert changes(SlotLimit("s:{n}", 3, "s:{n}"), None, own)
    assert not changes(SlotLimit("s:{n}", 2, "s:{n}"), None, own)
    assert not changes(SlotLimit("x:{n}", 3, "x:{n}"), None, own)
    assert not changes(RateLimit("s:{n}", SECOND, rule="s:{n}"), None, own)
    assert changes(SlotLimit("s:{n}", 2, "s:{n}"), SlotLimit("s:{n}", 3, "s:{n}"), own)


def test_all_that_is_declared_is_looked_for_in_one_look_at_who_stands_first() -> None:
    own = SlotLimit("s:7", 2, "s:{n}")
    rate = RateLimit("r", SECOND, rule="r")
    heads = [("token of r", job(limits=(rate,))), ("slot of s:7", job(limits=(own,))), ("slot of x", job(limits=(SlotLimit("x", 1),)))]
    looks = iter([(gate, wants_of(each)) for gate, each in heads])
    changed = new_rules([SlotLimit("s:{n}", 9, "s:{n}"), replace(rate, burst=2), SlotLimit("s:{n}", 3, "s:{n}")], {rule_id(own): own})
    assert changed == [(SlotLimit("s:{n}", 3, "s:{n}"), own), (replace(rate, burst=2), None)]
    assert changed_gates(changed, looks) == ["slot of s:7", "token of r"]
    assert new_rules([own], {rule_id(own): own}) == []


@pytest.mark.parametrize("package", ["offload.brokers.sqlite", "offload.brokers.postgres"])
def test_sql_reckons_with_the_lateness_by_which_a_gate_may_be_forgotten(package: str) -> None:
    """Its index needs the number itself."""
    told = [script(package, "gates_schema.sql"), *queries(package, "gates.sql").values()]
    told += [sql for name in ("queries.sql", "control.sql") if (files(package) / name).is_file() for sql in queries(package, name).values()]
    numbers = [int(found) for sql in told for found in re.findall(r"tat \+ (\d+)", sql)]
    assert numbers == [LATENESS + 1] * 3
