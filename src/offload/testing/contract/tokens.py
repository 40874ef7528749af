"""The contract of rates by key."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from msgspec import UNSET

from offload.broker import Feature, Store
from offload.gates import MOST_WOKEN
from offload.job import (
    Dead,
    Done,
    Lease,
    Limit,
    LimitChange,
    RateLimit,
    Release,
    Retried,
    SlotLimit,
    State,
)
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, failure, info, job, live, needs, settle, state
from offload.testing.contract.keyed import SECOND, limit, run, slot, token, waits


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
    async def test_a_job_that_dies_holds_its_key_back_as_well(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}", burst=3) for n in range(3)])
        async with store.session(info()) as session:
            (first,) = await claim(session, 1)
            await settle(session, first, Dead("retries used up", failure(clock), hold_key=60))
            assert (await store.get(["j0"]))["j0"].reason == "retries used up"
            assert await run(session) == []
            assert (await limit(store)).shut_until == clock.now() + timedelta(seconds=60)
            clock.advance(60)
            await session.maintain()
            assert sorted([*await run(session), *await run(session)]) == ["j1", "j2"]

    @needs(Feature.LIMITS)
    async def test_a_job_that_takes_more_than_gathers_keeps_the_pace_all_the_same(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, f"j{n}", limits=(RateLimit("k", SECOND, 5, 5),)) for n in range(8)])
        await store.set_limit("k", LimitChange(burst=1))
        started: list[str] = []
        async with store.session(info()) as session:
            for _ in range(12):
                started += await run(session)
                clock.advance(1)
                await session.maintain()
            assert started == ["j0", "j1", "j2"], "one in five seconds"

    @needs(Feature.LIMITS)
    async def test_what_one_job_took_another_of_less_cost_and_burst_does_not_forgive(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "large", limits=(RateLimit("k", SECOND, 5, 5),))])
        async with store.session(info()) as session:
            assert await run(session) == ["large"]
            await store.enqueue([token(clock, "small")])
            for second in range(5):
                assert await run(session) == [], second
                clock.advance(1)
                await session.maintain()
            assert await run(session) == ["small"]

    @needs(Feature.LIMITS)
    async def test_a_clock_that_is_set_back_stops_no_rate(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, f"j{n}") for n in range(4)])
        async with store.session(info()) as session:
            await session.maintain()
            assert await run(session) == ["j0"]
            clock.jump(-3_600)
            await session.maintain()
            started: list[str] = []
            for _ in range(4):
                started += await run(session)
                clock.advance(1)
            assert started == ["j1", "j2", "j3"]

    @needs(Feature.LIMITS)
    async def test_what_is_over_does_not_come_again_when_the_clock_is_set_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([token(clock, "a")])
        async with store.session(info()) as session:
            await session.maintain()
            (a,) = await claim(session)
            await settle(session, a, Dead("spent", hold_key=5))
            clock.advance(12)
            await session.maintain()
            clock.jump(-3_600)
            assert await store.limits() == []
            await store.enqueue([token(clock, "b")])
            assert await run(session) == ["b"]

    @needs(Feature.LIMITS)
    async def test_whoever_stands_behind_a_lane_that_moves_to_another_gate_is_looked_at(self, store: Store, clock: TestClock) -> None:
        slot_of, rate = SlotLimit("s", 1), RateLimit("r", 3_600 * SECOND, 4)
        dear = RateLimit("r", 3_600 * SECOND, 4, 4)
        await store.enqueue([job(clock, "a", limits=(slot_of, rate))])
        async with store.session(info()) as session:
            a = await claim_one(session)
            await store.enqueue([job(clock, "b", limits=(slot_of, dear))])  # waits for four tokens, three are there
            await settle(session, a, Retried(60))
            await store.enqueue([job(clock, "d", limits=(slot_of,)), job(clock, "c", limits=(rate,))])
            assert [lease.job.id for lease in await claim(session)] == ["d"]
            assert await waits(store, "c") == "waits for a token of r"
            clock.advance(61)
            await session.maintain()  # a is due, and takes its lane along to the slot
            assert await run(session) == ["c"]

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
    async def test_very_many_keys_whose_time_has_come_are_looked_at_in_pieces(self, store: Store, clock: TestClock) -> None:
        number = MOST_WOKEN + 50
        for _ in range(2):
            jobs = [token(clock, uuid4().hex, key=f"k{n}") for n in range(number)]
            await store.enqueue(jobs[:1_000])
            await store.enqueue(jobs[1_000:])
        async with store.session(info()) as session:
            assert len(await run(session)) + len(await run(session)) == number
            clock.advance(2)
            assert len(await claim(session, 1)) == 1
            assert (await store.counts())["default"][State.WAITING] == number - MOST_WOKEN
            assert len(await claim(session)) == 1_000
            assert State.WAITING not in (await store.counts())["default"]

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
