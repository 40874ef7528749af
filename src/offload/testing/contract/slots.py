"""The contract of concurrency limits by key."""

from __future__ import annotations

import random

from msgspec.structs import replace

from offload.broker import Feature, Store
from offload.diagnosis import diagnose, why
from offload.gates import MOST_PASSED
from offload.job import Done, Job, LimitChange, RateLimit, Retried, SlotLimit, State, UniqueKey
from offload.records import LimitRecord
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, live, needs, settle, state
from offload.testing.contract.keyed import SECOND, declaring, limit, run, slot, token, turn, waits


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
    async def test_a_limit_that_is_raised_by_much_lets_jobs_pass_in_pieces(self, store: Store, clock: TestClock) -> None:
        number = MOST_PASSED + 100
        await store.set_limit("k", LimitChange(n=0))
        for first in range(0, number, 100):
            await store.enqueue([slot(clock, f"{first + n}") for n in range(100)])
        await store.set_limit("k", LimitChange(n=number))
        assert await store.counts() == {"default": {State.READY: MOST_PASSED, State.WAITING: 100}}
        async with store.session(info()) as session:
            assert ids(await claim(session, 1)) == ["0"]
            assert await store.counts() == {"default": {State.READY: number - 1, State.RUNNING: 1}}

    @needs(Feature.LIMITS, Feature.ORDER)
    async def test_of_a_ready_job_is_told_what_its_keys_allow(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", order_by="o", limits=(SlotLimit("k", 1), RateLimit("r", SECOND))), job(clock, "plain")])
        await store.set_limit("k", LimitChange(paused=True))
        standing = await store.standing("a")
        assert standing is not None and standing.record.state is State.READY
        assert [(each.kind, each.key, each.paused, each.holders) for each in standing.limits] == [
            ("turn", "o", False, ("a",)),
            ("slot", "k", True, ("a",)),
            ("token", "r", False, ("a",)),
        ]
        assert "The key 'k' is paused" in why(standing)
        plain = await store.standing("plain")
        assert plain is not None and plain.limits == ()

    @needs(Feature.LIMITS)
    async def test_of_a_ready_job_is_told_that_its_key_is_held_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a", 2), slot(clock, "b", 2)])
        async with store.session(info()) as session:
            (lease,) = await claim(session, 1)
            await settle(session, lease, Retried(60, whole_key=True))
        standing = await store.standing("b")
        assert standing is not None and standing.record.state is State.READY
        assert "The key 'k' is held back until" in why(standing)

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

    @needs(Feature.LIMITS, Feature.DELAY)
    async def test_who_has_several_keys_as_long_as_can_be_waits_and_passes_as_others_do(self, store: Store, clock: TestClock) -> None:
        chance = random.Random(1)  # what repeats itself takes less room than its length says
        keys = ["".join(chr(chance.randrange(0x20000, 0x2A6E0)) for _ in range(200)) for _ in range(4)]
        limits = tuple(SlotLimit(key, 1) for key in keys)
        await store.enqueue([job(clock, "first", limits=limits[:1]), *(job(clock, id, limits=limits, delay=1) for id in ("a", "b"))])
        await store.enqueue([slot(clock, "plain", delay=1), job(clock, "at once", limits=limits)])
        async with store.session(info()) as session:
            clock.advance(1)
            await session.maintain()
            assert await run(session) == ["first", "plain"]
            assert [await run(session) for _ in range(3)] == [["at once"], ["a"], ["b"]]
        assert await store.limits() == []

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

    @needs(Feature.LIMITS, Feature.ORDER)
    async def test_keys_are_told_of_by_name_a_page_at_a_time(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, f"{key}{n}", key=key) for key in ("d", "a", "c", "b", "ä") for n in range(2)])
        await store.enqueue([turn(clock, "o", key="b"), token(clock, "t", key="bb")])
        seen: list[tuple[str, str]] = []
        while page := await store.limits(2, seen[-1][0] if seen else None):
            assert len({each.key for each in page}) <= 2
            seen += [(each.key, each.kind) for each in page]
        kinds = [("a", "slot"), ("b", "slot"), ("b", "turn"), ("bb", "token"), ("c", "slot"), ("d", "slot"), ("ä", "slot")]
        assert seen == kinds
        assert [each.kind for each in await store.limits(key="b")] == ["slot", "turn"]
        everything = await store.limits()
        for key in ("a", "b", "bb", "ä"):
            assert await store.limits(key=key) == [each for each in everything if each.key == key]
        assert await store.limits(key="bbb") == []
        await store.set_limit("bbb", LimitChange(paused=True))
        assert {each.paused for each in await store.limits(key="bbb")} == {True}

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

    @needs(Feature.LIMITS, Feature.PRIORITY)
    async def test_who_passes_as_a_claim_meets_a_paused_key_comes_before_those_behind(self, store: Store, clock: TestClock) -> None:
        k, m = SlotLimit("k", 2), SlotLimit("m", 1)
        await store.enqueue([job(clock, "a", limits=(k,)), job(clock, "b", limits=(k, m)), job(clock, "c"), job(clock, "d")])
        await store.enqueue([job(clock, "urgent", limits=(m,), priority=5)])
        await store.set_limit("k", LimitChange(paused=True))
        async with store.session(info()) as session:
            assert [ids(await claim(session, 1)) for _ in range(4)] == [["urgent"], ["c"], ["d"], []]
            assert [await waits(store, id) for id in "ab"] == ["waits for a slot of k"] * 2

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

    @needs(Feature.LIMITS)
    async def test_what_a_worker_declared_that_is_gone_counts_until_another_starts_and_is_told(
        self, store: Store, clock: TestClock
    ) -> None:
        old, new, other = SlotLimit("k", 1, "k"), SlotLimit("k", 3, "k"), RateLimit("t", 1_000, rule="t")
        await store.enqueue([job(clock, limits=(new,)) for _ in range(4)])
        async with store.session(declaring(new, other, name="new")):
            assert (await store.inspect()).declared == (new, other)
            async with store.session(declaring(old, name="old")):
                pass
            assert (await store.inspect()).declared == (old, other)
            assert (await limit(store)).n == 1
            assert [finding.title for finding in diagnose(await store.inspect()) if "limit" in finding.title] == [
                "the limit of key 'k' is not what live workers declare"
            ]
            async with store.session(declaring(new, name="again")):
                assert (await store.inspect()).declared == (new, other)
                assert "declare" not in str(diagnose(await store.inspect()))

    @needs(Feature.LIMITS)
    async def test_limits_declared_together_let_jobs_pass_gate_by_gate(self, store: Store, clock: TestClock) -> None:
        limits = [SlotLimit(key, 1, f"rule of {key}") for key in "cab"]
        await store.enqueue([job(clock, f"{limit.key}{n}", limits=(limit,)) for n in range(3) for limit in limits])
        async with store.session(declaring(*(replace(limit, n=2) for limit in limits))) as session:
            assert [ids(await claim(session, 1)) for _ in range(7)] == [["c0"], ["a0"], ["b0"], ["a1"], ["b1"], ["c1"], []]

    @needs(Feature.LIMITS, Feature.UNIQUE, Feature.DELAY)
    async def test_a_debounced_job_that_waits_takes_its_new_time(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "started", "debounce")
        await store.enqueue([slot(clock, "a"), slot(clock, "b", unique=last), slot(clock, "c")])
        await store.enqueue([slot(clock, "again", unique=last, delay=60)])
        assert await state(store, "b") is State.SCHEDULED
        await store.cancel(["a"])
        assert await state(store, "c") is State.READY

    @needs(Feature.LIMITS, Feature.ORDER, Feature.DELAY)
    async def test_who_comes_after_a_key_was_held_back_does_not_keep_those_waiting_who_came_before(
        self, store: Store, clock: TestClock
    ) -> None:
        await store.enqueue([slot(clock, "a"), slot(clock, "b")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Retried(5, whole_key=True))
            await store.cancel(["a"])
            clock.advance(6)
            await store.enqueue([slot(clock, "c", order_by="o")])
            await session.maintain()
            assert [await run(session) for _ in range(2)] == [["b"], ["c"]]

    @needs(Feature.LIMITS, Feature.UNIQUE, Feature.DELAY)
    async def test_who_is_debounced_to_now_waits_behind_those_that_came_before(self, store: Store, clock: TestClock) -> None:
        last = UniqueKey("u", "started", "debounce")
        await store.enqueue([slot(clock, "a")])
        late, again = slot(clock, "late", unique=last, delay=60), slot(clock, "again", unique=last)
        await store.enqueue([slot(clock, "b"), late, again])
        async with store.session(info()) as session:
            assert [await run(session) for _ in range(3)] == [["a"], ["b"], ["late"]]

    @needs(Feature.LIMITS)
    async def test_expired_before_the_claim_a_job_lets_the_next_one_pass(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([slot(clock, "a", expires_in=60), slot(clock, "b")])
        clock.advance(60)
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["b"]
        assert await state(store, "a") is State.EXPIRED
