"""The contract of orders, concurrency limits and rates by key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from msgspec import UNSET

from offload.broker import Feature, Session, Store
from offload.errors import UniqueConflict
from offload.job import (
    Cancelled,
    Dead,
    Done,
    Filter,
    Job,
    Lease,
    Limit,
    LimitChange,
    LimitRecord,
    Outcome,
    RateLimit,
    Release,
    Retried,
    SlotLimit,
    State,
    UniqueKey,
    WorkerInfo,
)
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, live, needs, record, settle, state

SECOND = 1_000_000


def turn(clock: TestClock, id: str, key: str = "k", **fields: Any) -> Job:
    """A job of the order `key`."""
    return job(clock, id, order_by=key, **fields)


def slot(clock: TestClock, id: str, n: int = 1, key: str = "k", **fields: Any) -> Job:
    """A job that takes one of `n` slots of `key`."""
    return job(clock, id, limits=(SlotLimit(key, n),), **fields)


def token(clock: TestClock, id: str, every: float = 1, burst: int = 1, cost: int = 1, key: str = "k", **fields: Any) -> Job:
    """A job that takes `cost` tokens of `key`, of which there is another `every` so many seconds."""
    return job(clock, id, limits=(RateLimit(key, round(every * SECOND), burst, cost),), **fields)


async def run(session: Session, outcome: Outcome | None = None) -> list[str]:
    """Claim all there is and settle it. Returns the ids."""
    leases = await claim(session)
    await session.settle([(lease, outcome or Done()) for lease in leases])
    return ids(leases)


async def waits(store: Store, id: str) -> str | None:
    """What a waiting job waits for."""
    shown = await record(store, id)
    assert shown.state is State.WAITING
    return shown.reason


async def limit(store: Store, key: str = "k") -> LimitRecord:
    """The one limit of a key."""
    (found,) = [each for each in await store.limits() if each.key == key]
    return found


def declaring(*limits: Limit, name: str = "worker") -> WorkerInfo:
    """A worker that declares limits."""
    plain = info(name)
    return WorkerInfo(name=plain.name, host=plain.host, pid=plain.pid, tasks=plain.tasks, limits=limits)


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
    async def test_on_dead_hold_deleting_the_dead_job_lets_its_line_go_on(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([turn(clock, "a", on_dead="hold"), turn(clock, "b")])
        async with store.session(info()) as session:
            assert await run(session, Dead("d")) == ["a"]
            await store.delete(["a"])
            assert await run(session) == ["b"]

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
    async def test_who_was_held_up_by_a_unique_key_sticks_no_line(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "finished", "keep_last")
        await store.enqueue([job(clock, "first", unique=last)])
        await store.enqueue([turn(clock, "successor", unique=last), turn(clock, "held")])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["first"], Done())
            await settle(session, leases["held"], Retried(0))
            assert sorted([*await run(session), *await run(session)]) == ["held", "successor"]

    @needs(Feature.ORDER, Feature.UNIQUE, Feature.DELAY)
    async def test_who_was_debounced_sticks_no_line(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "started", "debounce")
        await store.enqueue([turn(clock, "late", unique=last, delay=60), turn(clock, "held")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await store.enqueue([turn(clock, "again", unique=last)])
            await settle(session, lease, Retried(0))
            assert sorted([*await run(session), *await run(session)]) == ["held", "late"]
            await store.enqueue([turn(clock, "a", unique=last), turn(clock, "b")])
            await store.enqueue([turn(clock, "later", unique=last, delay=60)])
            clock.advance(60)
            await session.maintain()
            assert sorted([*await run(session), *await run(session)]) == ["a", "b"]

    @needs(Feature.ORDER, Feature.LIMITS)
    async def test_the_next_in_order_passes_only_with_its_slot(self, store: Store, clock: TestClock) -> None:
        next_one = job(clock, "b", order_by="k", limits=(SlotLimit("s", 1),))
        await store.enqueue([slot(clock, "x", key="s"), turn(clock, "a"), next_one])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["a"], Done())
            assert await waits(store, "b") == "waits for a slot of s"


class Slots(Fixtures):
    @needs(Feature.LIMITS)
    async def test_at_most_n_of_a_key_are_ready_or_running(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, f"j{n}", 2) for n in range(5)])
        assert await store.counts() == {"default": {State.READY: 2, State.WAITING: 3}}
        assert await waits(store, "j2") == "waits for a slot of k"
        async with store.session(info()) as session:
            leases = await claim(session)
            assert ids(leases) == ["j0", "j1"]
            assert await claim(session) == []
            await settle(session, leases[1], Done())
            assert ids(await claim(session)) == ["j2"]

    @needs(Feature.LIMITS, Feature.DELAY)
    async def test_a_job_that_holds_no_slot_gives_none_away(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a"), slot(clock, "later", delay=60), slot(clock, "b")])
        await store.cancel(["later"])
        assert await state(store, "b") is State.WAITING

    @needs(Feature.LIMITS)
    async def test_a_retry_gives_up_its_slot_and_keeps_its_place(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a"), slot(clock, "b"), slot(clock, "c")])
        async with store.session(info()) as session:
            assert await run(session, Retried(60)) == ["a"]
            b = await claim_one(session)
            assert b.job.id == "b"
            clock.advance(60)
            await session.maintain()
            assert await state(store, "a") is State.WAITING
            await settle(session, b, Done())
            assert [await run(session), await run(session)] == [["a"], ["c"]]

    @needs(Feature.LIMITS)
    async def test_who_lets_an_earlier_one_pass_waits_behind_it(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a"), slot(clock, "b")])
        async with store.session(info()) as session:
            assert await run(session, Retried(60)) == ["a"]
            b = await claim_one(session)
            clock.advance(60)
            await session.maintain()
            await settle(session, b, Retried(0))
            assert await waits(store, "b") == "waits for a slot of k"
            assert [await run(session), await run(session)] == [["a"], ["b"]]

    @needs(Feature.LIMITS)
    async def test_release_and_rescue_keep_the_slot(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a"), slot(clock, "b")])
        async with store.session(info("alive")) as alive:
            async with store.session(info("leaving")) as leaving:
                await claim_one(leaving)
            assert ids(await claim(alive)) == ["a"]
            async with store.session(info("other")) as other:
                await live(clock, 15, other)
                await other.maintain()
                assert ids(await claim(other)) == ["a"]

    @needs(Feature.LIMITS)
    async def test_several_keys_are_taken_together_or_not_at_all(self, store: Store, clock: TestClock) -> None:
        both = (SlotLimit("x", 1), SlotLimit("y", 1))
        await store.enqueue([slot(clock, "x1", key="x"), job(clock, "both", limits=both), slot(clock, "y1", key="y")])
        assert await state(store, "y1") is State.READY
        async with store.session(info()) as session:
            x, y = await claim(session)
            await settle(session, x, Done())
            assert await waits(store, "both") == "waits for a slot of y"
            await store.enqueue([slot(clock, "x2", key="x")])
            assert await state(store, "x2") is State.READY
            await settle(session, y, Done())
            assert await waits(store, "both") == "waits for a slot of x"
            assert await run(session) == ["x2"]
            assert await run(session) == ["both"]

    @needs(Feature.LIMITS, Feature.ORDER)
    async def test_an_order_and_a_limit_hold_together(self, store: Store, clock: TestClock) -> None:
        def of(id: str, account: str) -> Job:
            return job(clock, id, order_by=account, limits=(SlotLimit("all", 2),))

        await store.enqueue([of("a1", "a"), of("a2", "a"), of("b1", "b"), of("c1", "c")])
        async with store.session(info()) as session:
            a1, b1 = await claim(session)
            assert (a1.job.id, b1.job.id) == ("a1", "b1")
            await settle(session, b1, Done())
            (c1,) = await claim(session)
            assert c1.job.id == "c1"
            await settle(session, a1, Done())
            assert ids(await claim(session)) == ["a2"]

    @needs(Feature.LIMITS)
    async def test_who_stood_behind_one_that_was_cancelled_passes_at_once(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a"), job(clock, "b", limits=(SlotLimit("k", 1), SlotLimit("y", 1))), slot(clock, "c", 3)])
        assert await waits(store, "c") == "waits for a slot of k"
        await store.cancel(["b"])
        assert await state(store, "c") is State.READY

    @needs(Feature.LIMITS)
    async def test_who_waits_for_one_key_keeps_nobody_from_another(self, store: Store, clock: TestClock) -> None:
        def of(id: str, tenant: str) -> Job:
            return job(clock, id, limits=(SlotLimit(tenant, 1), SlotLimit("all", 2)))

        await store.enqueue([of("a1", "a"), of("a2", "a"), of("a3", "a"), of("b1", "b"), of("c1", "c")])
        async with store.session(info()) as session:
            leases = await claim(session)
            assert ids(leases) == ["a1", "b1"]
            await settle(session, leases[1], Done())
            assert ids(await claim(session)) == ["c1"]

    @needs(Feature.LIMITS)
    async def test_a_limit_can_be_changed_while_jobs_wait(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, f"j{n}") for n in range(5)])
        await store.set_limit("k", LimitChange(n=3))
        assert await store.counts() == {"default": {State.READY: 3, State.WAITING: 2}}
        assert await limit(store) == LimitRecord(key="k", kind="slot", n=3, changed=True, holders=("j0", "j1", "j2"), held=3, waiting=2)
        await store.set_limit("k", LimitChange(n=1))
        async with store.session(info()) as session:
            assert await run(session) == ["j0", "j1", "j2"]
            assert await run(session) == ["j3"]
            await store.set_limit("k", LimitChange(n=None))
            assert await run(session) == ["j4"]
        assert await store.limits() == []

    @needs(Feature.LIMITS)
    async def test_a_paused_key_lets_nobody_start_until_it_goes_on(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a", 2), turn(clock, "o"), token(clock, "t")])
        await store.set_limit("k", LimitChange(paused=True))
        await store.enqueue([slot(clock, "b", 2), job(clock, "free")])
        async with store.session(info()) as session:
            assert await run(session) == ["free"]
            assert {each.paused for each in await store.limits()} == {True}
            await store.set_limit("k", LimitChange(paused=False))
            assert sorted(await run(session)) == ["a", "b", "o", "t"]
        assert await store.limits() == []

    @needs(Feature.LIMITS)
    async def test_the_worker_that_started_last_declares_the_limit(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, f"j{n}", limits=(SlotLimit("k", 1, "tenant:{t}"),)) for n in range(4)])
        assert (await store.counts())["default"][State.READY] == 1
        async with store.session(declaring(SlotLimit("tenant:{t}", 3, "tenant:{t}"))):
            assert (await store.counts())["default"][State.READY] == 3
            assert (await limit(store)).n == 3
        await store.set_limit("k", LimitChange(n=4))
        async with store.session(declaring(SlotLimit("tenant:{t}", 2, "tenant:{t}"))):
            assert (await store.counts())["default"][State.READY] == 4

    @needs(Feature.LIMITS, Feature.UNIQUE, Feature.DELAY)
    async def test_a_debounced_job_that_waits_takes_its_new_time(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "started", "debounce")
        await store.enqueue([slot(clock, "a"), slot(clock, "b", unique=last), slot(clock, "c")])
        await store.enqueue([slot(clock, "again", unique=last, delay=60)])
        assert await state(store, "b") is State.SCHEDULED
        await store.cancel(["a"])
        assert await state(store, "c") is State.READY

    @needs(Feature.LIMITS)
    async def test_expired_before_the_claim_a_job_lets_the_next_one_pass(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a", expires_in=60), slot(clock, "b")])
        clock.advance(60)
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["b"]
        assert await state(store, "a") is State.EXPIRED


class Tokens(Fixtures):
    @needs(Feature.LIMITS)
    async def test_jobs_start_at_the_pace_of_their_rate(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}") for n in range(4)])
        assert await waits(store, "j1") == "waits for a token of k"
        async with store.session(info()) as session:
            assert await run(session) == ["j0"]
            assert await run(session) == []
            clock.advance(0.999)
            assert await run(session) == []
            clock.advance(0.001)
            assert [await run(session), await run(session)] == [["j1"], []]
            clock.advance(1)
            assert [await run(session), await run(session)] == [["j2"], []]

    @needs(Feature.LIMITS)
    async def test_a_pause_gathers_a_burst_and_no_more(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}", burst=2) for n in range(8)])
        async with store.session(info()) as session:
            assert await run(session) == ["j0", "j1"]
            clock.advance(3_600)
            assert [await run(session), await run(session)] == [["j2", "j3"], []]
            clock.advance(1)
            assert await run(session) == ["j4"]

    @needs(Feature.LIMITS)
    async def test_a_start_that_is_a_moment_late_delays_no_other(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}") for n in range(4)])
        async with store.session(info()) as session:
            assert await run(session) == ["j0"]
            clock.advance(1.015)
            assert await run(session) == ["j1"]
            clock.advance(0.985)
            assert await run(session) == ["j2"]

    @needs(Feature.LIMITS)
    async def test_a_job_may_cost_several_tokens(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, "a", burst=3, cost=3), token(clock, "b", burst=3, cost=2), token(clock, "c", burst=3)])
        async with store.session(info()) as session:
            assert await run(session) == ["a"]
            clock.advance(1)
            assert await run(session) == []
            clock.advance(1)
            assert await run(session) == ["b"]
            clock.advance(1)
            assert await run(session) == ["c"]

    @needs(Feature.LIMITS)
    async def test_waiting_for_a_token_costs_no_attempt(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, "a"), token(clock, "b")])
        async with store.session(info()) as session:
            await run(session)
            clock.advance(1)
            lease = await claim_one(session)
            assert (lease.claim, lease.attempt) == (1, 1)

    @needs(Feature.LIMITS)
    async def test_every_start_takes_a_token_also_after_a_release(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, "a"), token(clock, "b")])
        async with store.session(info()) as session:
            assert await run(session, Release()) == ["a"]
            assert await run(session) == []
            assert await waits(store, "a") == "waits for a token of k"
            clock.advance(1)
            assert await run(session) == ["a"]

    @needs(Feature.LIMITS)
    async def test_tokens_that_were_there_for_ready_jobs_do_not_keep(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}", every=0.005) for n in range(6)])
        async with store.session(info()) as session:
            assert await run(session) == ["j0"]
            clock.advance(0.02)
            await session.maintain()
            ready = (await store.counts())["default"][State.READY]
            assert ready > 1
            clock.advance(5)
            assert [await run(session), await run(session)] == [["j1"], []]

    @needs(Feature.LIMITS)
    async def test_a_slot_is_not_held_while_waiting_for_a_token(self, store: Store, clock: TestClock) -> None:
        both: tuple[Limit, ...] = (SlotLimit("s", 1), RateLimit("r", 60 * SECOND))
        await store.enqueue([job(clock, "a", limits=both), job(clock, "b", limits=both), slot(clock, "c", key="s")])
        async with store.session(info()) as session:
            assert await run(session) == ["a"]
            assert await run(session) == ["c"]
            clock.advance(60)
            assert await run(session) == ["b"]

    @needs(Feature.LIMITS)
    async def test_the_whole_key_is_held_back_when_a_task_asks_for_it(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}", burst=3) for n in range(4)])
        async with store.session(info()) as session:
            first = (await session.fetch(None, 1, {"async": 1, "thread": 0, "process": 0}))[0]
            await settle(session, first, Retried(60, whole_key=True))
            assert await run(session) == []
            assert (await limit(store)).shut_until == clock.now() + timedelta(seconds=60)
            clock.advance(59)
            assert await run(session) == []
            clock.advance(1)
            await session.maintain()
            assert "j1" in await run(session)

    @needs(Feature.LIMITS)
    async def test_a_key_that_a_task_holds_back_can_be_let_go(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}", burst=3) for n in range(3)])
        async with store.session(info()) as session:
            (first,) = await claim(session, 1)
            await settle(session, first, Retried(86_400, whole_key=True))
            assert await run(session) == []
            await store.set_limit("k", LimitChange(paused=False))
            assert await run(session) == ["j1", "j2"]

    @needs(Feature.LIMITS)
    async def test_a_rate_can_be_changed_while_jobs_wait(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}", every=60) for n in range(4)])
        async with store.session(info()) as session:
            assert await run(session) == ["j0"]
            await store.set_limit("k", LimitChange(interval=SECOND, burst=1))
            clock.advance(1)
            assert await run(session) == ["j1"]
            shown = await limit(store)
            assert (shown.kind, shown.interval, shown.burst, shown.changed) == ("token", SECOND, 1, True)
            await store.set_limit("k", LimitChange(interval=None, burst=UNSET))
            clock.advance(1)
            assert await run(session) == ["j2"]
            clock.advance(59)
            assert await run(session) == []

    @needs(Feature.LIMITS)
    async def test_who_waits_for_a_token_is_told_when_it_comes(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, "a", every=10), token(clock, "b", every=10)])
        async with store.session(info()) as session:
            await run(session)
        standing = await store.standing("b")
        assert standing is not None
        assert standing.limits[0].next_at == clock.now() + timedelta(seconds=10)

    @needs(Feature.LIMITS)
    async def test_a_lease_that_was_lost_gives_nothing_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a"), slot(clock, "b")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            late: Lease = await claim_one(frozen)
            await live(clock, 15, alive)
            await alive.maintain()
            await claim_one(alive)
            assert await frozen.settle([(late, Done())]) == [late]
            assert await state(store, "b") is State.WAITING


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
