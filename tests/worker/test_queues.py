"""Which queues a worker serves, and in which order it looks at them."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from offload import BadDeclaration
from offload.worker.queues import Queues

CHANCE = random.Random(7)


def test_no_queues_are_all_queues() -> None:
    assert Queues.parse(None).order(CHANCE) is None


@pytest.mark.parametrize("asked", ["vip,default", " vip , default ", ["vip", "default"], ("vip", "default")])
def test_listed_queues_are_served_in_their_order(asked: Any) -> None:
    queues = Queues.parse(asked)
    assert {queues.order(CHANCE) for _ in range(20)} == {("vip", "default")}


@pytest.mark.parametrize("asked", ["vip:3,default:1", ["vip:3", "default:1"]])
def test_weighed_queues_come_first_as_often_as_they_weigh(asked: Any) -> None:
    queues = Queues.parse(asked)
    orders = Counter(queues.order(CHANCE) for _ in range(4_000))
    assert set(orders) == {("vip", "default"), ("default", "vip")}
    assert 2_850 <= orders["vip", "default"] <= 3_150


def test_the_names_of_weighed_queues_are_told_without_their_weights() -> None:
    assert Queues.parse("vip:3,default:1").names == ("vip", "default")


@pytest.mark.parametrize("asked", ["", "vip,,default", "vip,vip", [], ["vip", ""], "vip:1,vip:2"])
def test_each_queue_is_named_once(asked: Any) -> None:
    with pytest.raises(BadDeclaration, match="give each queue once"):
        Queues.parse(asked)


@pytest.mark.parametrize("asked", ["vip:3,default", "vip:0,default:1", "vip:x,default:1", "vip:-1", "vip:1.5", "vip:"])
def test_weights_are_whole_numbers_above_zero_for_each_queue(asked: str) -> None:
    with pytest.raises(BadDeclaration, match="whole number above 0"):
        Queues.parse(asked)


@pytest.mark.parametrize("limit", [1, 3, 4, 10, 400])
def test_each_round_is_shared_out_by_weight(limit: int) -> None:
    chance = random.Random(3)
    queues = Queues.parse("vip:3,default:1")
    got = {"vip": 0.0, "default": 0.0}
    rounds = 2_000
    for _ in range(rounds):
        left = limit
        for names, most in queues.portions(limit, chance):  # both queues are full: each gives what it is asked for
            assert names is not None
            taken = min(most, left)
            got[names[0]] += taken
            left -= taken
        assert left == 0
    assert got["vip"] / (limit * rounds) == pytest.approx(0.75, abs=0.06)


def test_what_a_share_leaves_unclaimed_goes_to_the_other_queues() -> None:
    *shares, rest = Queues.parse("vip:3,default:1").portions(8, random.Random(1))
    assert sorted(shares) == [(("default",), 2), (("vip",), 6)]
    assert set(rest[0] or ()) == {"vip", "default"}
    assert rest[1] == 8


def test_without_weights_a_round_is_one_claim() -> None:
    assert Queues.parse(None).portions(8, random.Random(1)) == [(None, 8)]
    assert Queues.parse("b,a").portions(8, random.Random(1)) == [(("b", "a"), 8)]
