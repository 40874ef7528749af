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
