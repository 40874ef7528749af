"""Who comes after jobs that leave their gates: told without a ledger, and the same as the ledger tells."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis.strategies import DrawFn, booleans, composite, integers, lists, sampled_from

from offload.gates import Gate, Lane, Ledger, Member, Need, Succession, answered, gate_of, heirs, lone_want, member_of
from offload.job import Draft, Limit, RateLimit, SlotLimit

OWN = SlotLimit("k", 2, "r")
ORDER = Draft(task="t", order_by="k")
SLOT = Draft(task="t", limits=(OWN,))
OTHER = Draft(task="t", limits=(SlotLimit("k", 5),))


def members(drafts: Sequence[Draft], first: int) -> list[Member]:
    return [member_of(draft, n, n) for n, draft in enumerate(drafts, start=first)]


def by_ledger(holders: Sequence[Member], line: Sequence[Member], leaving: int, rules: dict[str, Limit]) -> list[int]:
    """Who passes when the first so many of the holders of one gate leave."""
    passed: list[int] = []
    ledger = Ledger(1, rules, lambda member: passed.append(member.n))
    gate = Gate(holders[0].lane, "slot" if holders[0].wants[0].limit else "turn", {each.n: 1 for each in holders})
    ledger.read_gate(gate, [(line[0].seat, gate.id)] if line else [], more=False)
    ledger.read_lane(Lane(gate.id, gate.id if line else None), line, more=False)
    for each in holders[:leaving]:
        answered(ledger.leave(each), unasked)
    return passed


def unasked(need: Need) -> None:
    raise AssertionError(need)


@composite
def situations(draw: DrawFn) -> tuple[list[Member], list[Member], int, int, dict[str, Limit]]:
    draft = draw(sampled_from([ORDER, SLOT]))
    holders = members([draft] * draw(integers(1, 1 if draft is ORDER else 4)), first=1)
    line = members([draft if draft is ORDER or draw(booleans()) else OTHER for _ in range(draw(integers(0, 6)))], first=10)
    rules: dict[str, Limit] = {f"slot {OWN.rule}": SlotLimit("k", n, OWN.rule) for n in draw(lists(integers(1, 4), max_size=1))}
    return holders, line, draw(integers(1, len(holders))), draw(integers(1, 6)), rules


@given(situations())
def test_who_comes_after_is_told_as_the_ledger_tells_it_or_not_at_all(
    situation: tuple[list[Member], list[Member], int, int, dict[str, Limit]],
) -> None:
    holders, line, leaving, depth, rules = situation
    wants = [each.wants[0] for each in holders[:leaving]]
    after: list[int | None] = [each.n if each.wants == holders[0].wants else None for each in line[:depth]]
    found = heirs(wants, {holders[0].lane: Succession(complex=False, held=len(holders), heirs=after)}, depth, rules)
    told = by_ledger(holders, line, leaving, rules)
    assert found in (None, told)
    if None not in after and len(told) < depth:
        assert found == told


def test_where_more_is_known_of_a_gate_it_takes_more_care() -> None:
    [holder] = members([SLOT], first=1)
    assert heirs(holder.wants, {holder.lane: Succession(complex=True, held=1, heirs=[2])}, 2, {}) is None


def test_where_those_who_leave_one_gate_say_different_numbers_of_it_it_takes_more_care() -> None:
    [one, other] = members([SLOT, OTHER], first=1)
    after = {one.lane: Succession(complex=False, held=2, heirs=[])}
    assert heirs([*one.wants, *one.wants], after, 3, {}) == []
    assert heirs([*one.wants, *other.wants], after, 3, {}) is None


@pytest.mark.parametrize("gates", [1, 3])
def test_each_gate_has_its_own_heirs_and_they_pass_in_the_order_in_which_gates_are_left(gates: int) -> None:
    holders = [member_of(Draft(task="t", order_by=f"k{n}"), n, n) for n in range(gates)]
    after = {each.lane: Succession(complex=False, held=1, heirs=[10 + each.n, 20 + each.n]) for each in holders}
    assert heirs([each.wants[0] for each in reversed(holders)], after, 2, {}) == [10 + n for n in reversed(range(gates))]


@pytest.mark.parametrize(
    ("draft", "wanted"),
    [
        (ORDER, gate_of("turn", "k")),
        (SLOT, gate_of("slot", "k")),
        (Draft(task="t"), None),
        (Draft(task="t", order_by="k", limits=(OWN,)), None),
        (Draft(task="t", limits=(RateLimit("k", 1),)), None),
    ],
)
def test_a_turn_or_a_slot_alone_is_all_that_most_jobs_with_a_key_want(draft: Draft, wanted: str | None) -> None:
    want = lone_want(draft)
    assert (None if want is None else want.gate) == wanted
