"""The contract of `order_by`: jobs of a key run strictly one after the other."""

from __future__ import annotations

from datetime import timedelta

import pytest

from offload.broker import Feature, Store
from offload.diagnosis import why
from offload.errors import UniqueConflict
from offload.job import Cancelled, Dead, Done, LimitChange, Outcome, Release, Retried, SlotLimit, State, UniqueKey
from offload.records import Filter, LimitRecord
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, live, needs, settle, state
from offload.testing.contract.keyed import run, slot, token, turn, waits


class Orders(Fixtures):
    @needs(Feature.ORDER)
    async def test_jobs_of_an_order_run_one_after_the_other(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b"), turn(clock, "c"), turn(clock, "x", "other")])
        assert await waits(store, "b") == "waits for a turn of k"
        async with store.session(info()) as session:
            first = await claim(session)
            assert ids(first) == ["a", "x"]
            assert await claim(session) == []
            await settle(session, first[0], Done())
            assert await run(session) == ["b"]
            assert await run(session) == ["c"]

    @needs(Feature.ORDER)
    @pytest.mark.parametrize("between", [Retried(0), Retried(60), Release(), Release(60)], ids=["retry", "later", "release", "snooze"])
    async def test_a_turn_is_held_between_attempts(self, store: Store, clock: TestClock, between: Outcome) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), between)
            assert await state(store, "b") is State.WAITING
            clock.advance(60)
            await session.maintain()
            assert await run(session) == ["a"]
            assert await run(session) == ["b"]

    @needs(Feature.ORDER)
    @pytest.mark.parametrize("end", [Done(), Dead("d"), Cancelled()], ids=lambda outcome: type(outcome).__name__)
    async def test_every_end_gives_the_turn_to_the_next(self, store: Store, clock: TestClock, end: Outcome) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), end)
            assert await run(session) == ["b"]

    @needs(Feature.ORDER)
    async def test_cancel_delete_and_expiry_give_the_turn_to_the_next(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b"), turn(clock, "c", expires_in=60), turn(clock, "d")])
        await store.cancel(["a"])
        assert await state(store, "b") is State.READY
        await store.delete(["b"])
        assert await state(store, "c") is State.READY
        clock.advance(60)
        async with store.session(info()) as session:
            await session.maintain()
            assert await run(session) == ["d"]

    @needs(Feature.ORDER)
    async def test_whoever_leaves_the_line_leaves_no_hole(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b"), turn(clock, "c"), turn(clock, "d")])
        assert await store.cancel(["b"]) == {"b"}
        assert await store.delete(["c"]) == {"c"}
        async with store.session(info()) as session:
            assert [await run(session), await run(session), await run(session)] == [["a"], ["d"], []]

    @needs(Feature.ORDER, Feature.PRIORITY)
    async def test_priority_does_not_reorder_a_line(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b"), turn(clock, "c", priority=100)])
        async with store.session(info()) as session:
            assert [await run(session), await run(session), await run(session)] == [["a"], ["b"], ["c"]]

    @needs(Feature.ORDER)
    async def test_an_order_spans_tasks_and_queues(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b", task="other", queue="mail")])
        assert await state(store, "b") is State.WAITING

    @needs(Feature.ORDER, Feature.DELAY)
    async def test_a_job_joins_its_line_when_it_is_first_due(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "late", delay=60), turn(clock, "a"), turn(clock, "b")])
        async with store.session(info()) as session:
            assert await run(session, Retried(300)) == ["a"]
            clock.advance(60)
            await session.maintain()
            await store.enqueue([turn(clock, "c")])
            clock.advance(300)
            await session.maintain()
            assert [await run(session) for _ in range(4)] == [["a"], ["b"], ["late"], ["c"]]

    @needs(Feature.ORDER)
    async def test_a_rescue_keeps_the_turn(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            await claim_one(frozen)
            await live(clock, 15, alive)
            await alive.maintain()
            assert ids(await claim(alive)) == ["a"]

    @needs(Feature.ORDER)
    async def test_on_dead_hold_a_dead_job_stops_its_line_until_it_is_retried(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a", on_dead="hold"), turn(clock, "b", on_dead="hold")])
        async with store.session(info()) as session:
            assert await run(session, Dead("d")) == ["a"]
            clock.advance(timedelta(days=40))
            await session.maintain()
            assert await run(session) == []
            assert await store.retry(["a"]) == {"a"}
            assert [await run(session), await run(session)] == [["a"], ["b"]]

    @needs(Feature.ORDER)
    async def test_on_dead_hold_a_dead_job_is_kept_although_it_had_ended_before(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a", on_dead="hold")])
        await store.cancel(["a"])
        await store.retry(["a"])
        async with store.session(info()) as session:
            assert await run(session, Dead("d")) == ["a"]
            clock.advance(timedelta(days=40))
            await session.maintain()
        assert await state(store, "a") is State.DEAD

    @needs(Feature.ORDER)
    async def test_on_dead_hold_deleting_the_dead_job_lets_its_line_go_on(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a", on_dead="hold"), turn(clock, "b")])
        async with store.session(info()) as session:
            assert await run(session, Dead("d")) == ["a"]
            await store.delete(["a"])
            assert await run(session) == ["b"]

    @needs(Feature.ORDER, Feature.UNIQUE)
    @pytest.mark.parametrize("asked", ["a", "b"])
    async def test_on_dead_hold_who_took_the_unique_key_is_cancelled_before_a_retry(
        self, store: Store, clock: TestClock, asked: str
    ) -> None:
        await store.enqueue([turn(clock, "a", on_dead="hold", unique=UniqueKey("u"))])
        async with store.session(info()) as session:
            await run(session, Dead("d"))
            await store.enqueue([turn(clock, "b", unique=UniqueKey("u"))])
            assert await store.retry(["a"]) == set()
            standing = await store.standing(asked)
            assert standing is not None and "If another job has taken its unique key" in why(standing)
            assert await store.cancel(["b"]) == {"b"}
            assert await store.retry(["a"]) == {"a"}
            assert await run(session) == ["a"]

    @needs(Feature.ORDER)
    async def test_a_job_that_is_retried_by_hand_joins_its_line_anew(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b"), turn(clock, "c")])
        async with store.session(info()) as session:
            assert await run(session, Dead("d")) == ["a"]
            assert await store.retry(["a"]) == {"a"}
            assert [await run(session) for _ in range(3)] == [["b"], ["c"], ["a"]]

    @needs(Feature.ORDER)
    async def test_a_dead_job_that_keeps_its_turn_is_shown_as_dead(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a", on_dead="hold"), turn(clock, "b")])
        async with store.session(info()) as session:
            await run(session, Dead("d"))
        dead = LimitRecord(key="k", kind="turn", holders=("a",), held=1, dead=True, waiting=1)
        assert await store.limits() == [dead]
        assert (await store.inspect()).limits == (dead,)
        standing = await store.standing("b")
        assert standing is not None
        assert standing.limits == (dead,)

    @needs(Feature.ORDER, Feature.LIMITS)
    async def test_doctor_is_told_of_the_keys_that_let_nobody_pass(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a", "o"), slot(clock, "b", key="s"), token(clock, "c", key="t"), token(clock, "d", key="t")])
        assert (await store.inspect()).limits == ()
        async with store.session(info()) as session:
            leases = await claim(session)
            await session.settle([(lease, Retried(60, whole_key=lease.job.id == "c")) for lease in leases])
        await store.set_limit("s", LimitChange(paused=True))
        assert {(each.key, each.paused, each.shut_until is not None) for each in (await store.inspect()).limits} == {
            ("s", True, False),
            ("t", False, True),
        }

    @needs(Feature.ORDER, Feature.LIMITS)
    async def test_jobs_are_found_by_the_keys_of_their_order_and_limits(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a", "x"), slot(clock, "b", key="x"), token(clock, "c", key="x"), turn(clock, "d", "y")])
        assert ids(await store.find(Filter(key="x"), 10)) == ["c", "b", "a"]
        assert ids(await store.find(Filter(key="y"), 10)) == ["d"]

    @needs(Feature.ORDER)
    async def test_who_waits_for_a_turn_is_told_who_holds_it(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), turn(clock, "b"), turn(clock, "c")])
        standing = await store.standing("c")
        assert standing is not None
        assert (standing.limits, standing.before) == ((LimitRecord(key="k", kind="turn", holders=("a",), held=1, waiting=2),), 1)

    @needs(Feature.ORDER, Feature.UNIQUE)
    async def test_an_undone_batch_leaves_orders_as_they_were(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a"), job(clock, "u", unique=UniqueKey("u"))])
        with pytest.raises(UniqueConflict):
            await store.enqueue([turn(clock, "b"), turn(clock, "x", "other"), job(clock, "v", unique=UniqueKey("u", on_conflict="raise"))])
        await store.enqueue([turn(clock, "c"), turn(clock, "y", "other")])
        async with store.session(info()) as session:
            assert [await run(session), await run(session)] == [["a", "u", "y"], ["c"]]

    @needs(Feature.ORDER, Feature.UNIQUE)
    async def test_who_was_held_up_by_a_unique_key_joins_its_line_behind_the_others(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "finished", "keep_last")
        await store.enqueue([job(clock, "first", unique=last)])
        await store.enqueue([turn(clock, "successor", unique=last), turn(clock, "held")])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["first"], Done())
            await settle(session, leases["held"], Retried(0))
            assert [await run(session), await run(session)] == [["held"], ["successor"]]

    @needs(Feature.ORDER, Feature.UNIQUE, Feature.DELAY)
    async def test_who_was_debounced_sticks_no_line(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "started", "debounce")
        await store.enqueue([turn(clock, "late", unique=last, delay=60), turn(clock, "held")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await store.enqueue([turn(clock, "again", unique=last)])
            await settle(session, lease, Retried(0))
            assert [await run(session), await run(session)] == [["held"], ["late"]]
            await store.enqueue([turn(clock, "a", unique=last), turn(clock, "b")])
            await store.enqueue([turn(clock, "later", unique=last, delay=60)])
            clock.advance(60)
            await session.maintain()
            assert sorted([*await run(session), *await run(session)]) == ["a", "b"]

    @needs(Feature.ORDER, Feature.UNIQUE, Feature.DELAY)
    async def test_who_is_debounced_to_a_later_time_gives_its_turn_to_the_next(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "started", "debounce")
        await store.enqueue([turn(clock, "a", unique=last), turn(clock, "b")])
        await store.enqueue([turn(clock, "later", unique=last, delay=60)])
        async with store.session(info()) as session:
            assert await run(session) == ["b"]
            await store.enqueue([turn(clock, "c")])
            clock.advance(60)
            await session.maintain()
            assert [await run(session), await run(session)] == [["c"], ["a"]]

    @needs(Feature.ORDER, Feature.LIMITS)
    async def test_the_next_in_order_passes_only_with_its_slot(self, store: Store, clock: TestClock) -> None:
        next_one = job(clock, "b", order_by="k", limits=(SlotLimit("s", 1),))
        await store.enqueue([slot(clock, "x", key="s"), turn(clock, "a"), next_one])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["a"], Done())
            assert await waits(store, "b") == "waits for a slot of s"
