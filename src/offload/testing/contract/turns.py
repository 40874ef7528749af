"""The contract of `fair_by`: keys take turns inside one queue and priority."""

from __future__ import annotations

from typing import Any

import pytest

from offload.broker import Feature, Session, Store
from offload.errors import UniqueConflict
from offload.job import (
    Done,
    Job,
    Release,
    Retried,
    SlotLimit,
    UniqueKey,
)
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, ids, info, job, needs, settle


def fair(clock: TestClock, id: str, key: str, **fields: Any) -> Job:
    """A job whose key takes turns with others."""
    return job(clock, id, fair_by=key, **fields)


async def one_by_one(session: Session) -> list[str]:
    """Claim and settle all there is, each alone. Returns the ids in order."""
    order: list[str] = []
    while leases := await claim(session, 1):
        await settle(session, leases[0], Done())
        order += ids(leases)
    return order


class Turns(Fixtures):
    @needs(Feature.FAIRNESS)
    async def test_keys_take_turns_and_a_newcomer_waits_for_a_round_at_most(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([fair(clock, f"a{n}", "a") for n in range(1, 6)])
        await store.enqueue([fair(clock, f"b{n}", "b") for n in range(1, 3)])
        async with store.session(info()) as session:
            assert ids(await claim(session, 2)) == ["a1", "a2"]
            await store.enqueue([fair(clock, "c1", "c")])
            assert await one_by_one(session) == ["b1", "a3", "b2", "c1", "a4", "a5"]

    @needs(Feature.FAIRNESS)
    async def test_a_key_that_was_served_long_ago_is_owed_and_owes_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([fair(clock, f"a{n}", "a") for n in range(5)])
        async with store.session(info()) as session:
            assert len(await one_by_one(session)) == 5
            await store.enqueue([fair(clock, "b1", "b"), fair(clock, "b2", "b"), fair(clock, "a6", "a"), fair(clock, "a7", "a")])
            assert await one_by_one(session) == ["b1", "b2", "a6", "a7"]

    @needs(Feature.FAIRNESS, Feature.PRIORITY)
    async def test_turns_are_taken_inside_one_queue_and_priority(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([fair(clock, "a1", "a"), fair(clock, "a2", "a"), fair(clock, "a3", "a", priority=5)])
        await store.enqueue([fair(clock, "m1", "a", queue="mail"), fair(clock, "m2", "b", queue="mail")])
        async with store.session(info()) as session:
            assert ids(await claim(session, queues=["default", "mail"])) == ["a3", "a1", "a2", "m1", "m2"]

    @needs(Feature.FAIRNESS, Feature.PRIORITY)
    async def test_jobs_without_a_key_go_before_those_that_take_turns(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([fair(clock, "a1", "a"), job(clock, "plain"), fair(clock, "b1", "b")])
        async with store.session(info()) as session:
            assert await one_by_one(session) == ["plain", "a1", "b1"]

    @needs(Feature.FAIRNESS, Feature.UNIQUE)
    async def test_an_enqueue_that_is_refused_takes_no_turn(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([fair(clock, "a1", "a"), job(clock, "holder", unique=UniqueKey(key="u"))])
        refused = job(clock, "late", unique=UniqueKey(key="u", on_conflict="raise"))
        with pytest.raises(UniqueConflict):
            await store.enqueue([fair(clock, "a2", "a"), refused])
        await store.enqueue([fair(clock, "a3", "a"), fair(clock, "b1", "b"), fair(clock, "b2", "b")])
        async with store.session(info()) as session:
            assert await one_by_one(session) == ["holder", "a1", "a3", "b1", "b2"]

    @needs(Feature.FAIRNESS)
    async def test_a_release_keeps_the_turn_and_a_retry_takes_another(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([fair(clock, "a1", "a"), fair(clock, "a2", "a"), fair(clock, "b1", "b"), fair(clock, "b2", "b")])
        async with store.session(info()) as session:
            (a1,) = await claim(session, 1)
            await settle(session, a1, Release())
            (again,) = await claim(session, 1)
            assert again.job.id == "a1"
            await settle(session, again, Retried(0))
            assert await one_by_one(session) == ["a2", "b1", "b2", "a1"]

    @needs(Feature.FAIRNESS, Feature.DELAY)
    async def test_inside_a_round_jobs_go_in_the_order_in_which_they_became_ready(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([fair(clock, "later", "c", delay=5)])
        await store.enqueue([fair(clock, "first", "a"), fair(clock, "sooner", "b")])
        clock.advance(5)
        async with store.session(info()) as session:
            await session.maintain()
            assert await one_by_one(session) == ["first", "sooner", "later"]

    @needs(Feature.FAIRNESS)
    async def test_who_comes_back_to_an_empty_line_goes_before_those_who_came_to_his_round_since(
        self, store: Store, clock: TestClock
    ) -> None:
        await store.enqueue([fair(clock, "a1", "a"), fair(clock, "b1", "b"), fair(clock, "c1", "c")])
        async with store.session(info()) as session:
            _, _, c1 = await claim(session)
            await store.enqueue([fair(clock, "d1", "d"), fair(clock, "e1", "e")])
            await settle(session, c1, Release())
            assert await one_by_one(session) == ["d1", "c1", "e1"]

    @needs(Feature.FAIRNESS, Feature.LIMITS)
    async def test_who_has_waited_for_a_slot_takes_a_turn_as_well(self, store: Store, clock: TestClock) -> None:
        one = (SlotLimit("k", 1),)
        await store.enqueue([fair(clock, "a1", "a", limits=one), fair(clock, "a3", "a", limits=one)])
        async with store.session(info()) as session:
            (a1,) = await claim(session)
            await store.enqueue([fair(clock, "b1", "b"), fair(clock, "b2", "b"), fair(clock, "a2", "a")])
            await settle(session, a1, Done())
            assert await one_by_one(session) == ["b1", "b2", "a2", "a3"]
