"""How attempts end, what is remembered of them, and that a lost lease changes nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from offload.broker import Feature, Store
from offload.job import KEEP_UNSUCCESSFUL, Cancelled, Dead, Done, Lease, Outcome, Progress, Pulse, Release, Retried, State
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, failure, ids, info, job, needs, record, settle, state


class Outcomes(Fixtures):
    @needs(Feature.RESULTS)
    async def test_a_job_that_returns_succeeds_with_its_result(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "none")])
        async with store.session(info()) as session:
            leases = await claim(session)
            clock.advance(5)
            assert await session.settle([(leases[0], Done(b'{"n":[1,2]}')), (leases[1], Done())]) == []
        shown = await record(store, "a")
        assert (shown.state, shown.result, shown.reason, shown.finished_at, shown.attempt) == (
            State.SUCCEEDED,
            {"n": [1, 2]},
            None,
            clock.now(),
            1,
        )
        assert (await record(store, "none")).result is None

    async def test_a_failed_attempt_waits_for_its_retry(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            first = failure(clock)
            await settle(session, await claim_one(session), Retried(60, first))
            shown = await record(store, "a")
            assert (shown.state, shown.attempt, shown.errors, shown.reason) == (State.SCHEDULED, 1, (first,), None)
            assert shown.run_at == clock.now() + timedelta(seconds=60)
            clock.advance(59)
            await session.maintain()
            assert await claim(session) == []
            clock.advance(1)
            await session.maintain()
            lease = await claim_one(session)
            assert lease.attempt == 2
            second = failure(clock, "again", 2)
            await settle(session, lease, Retried(0, second))
            shown = await record(store, "a")
            assert (shown.state, shown.attempt, shown.errors) == (State.READY, 2, (first, second))

    async def test_a_dead_job_keeps_its_whole_history(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "no failure")])
        async with store.session(info()) as session:
            first, last = failure(clock, "one"), failure(clock, "two", 2)
            leases = await claim(session)
            assert await session.settle([(leases[0], Retried(0, first)), (leases[1], Dead("discarded"))]) == []
            await settle(session, await claim_one(session), Dead("retries", last))
            assert await claim(session) == []
        shown = await record(store, "a")
        assert (shown.state, shown.reason, shown.errors, shown.finished_at) == (State.DEAD, "retries", (first, last), clock.now())
        shown = await record(store, "no failure")
        assert (shown.state, shown.reason, shown.errors) == (State.DEAD, "discarded", ())

    async def test_a_task_may_cancel_itself(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Cancelled("no longer wanted"))
        shown = await record(store, "a")
        assert (shown.state, shown.reason, shown.finished_at) == (State.CANCELLED, "no longer wanted", clock.now())

    async def test_a_release_gives_the_attempt_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Release())
            shown = await record(store, "a")
            assert (shown.state, shown.attempt, shown.crashes, shown.errors) == (State.READY, 0, 0, ())
            assert (await claim_one(session)).attempt == 1

    async def test_a_snooze_waits_and_gives_the_attempt_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Release(60))
            shown = await record(store, "a")
            assert (shown.state, shown.attempt, shown.run_at) == (State.SCHEDULED, 0, clock.now() + timedelta(seconds=60))
            clock.advance(60)
            await session.maintain()
            assert (await claim_one(session)).attempt == 1

    @pytest.mark.parametrize(
        "second", [Done(b"2"), Retried(0), Dead("late"), Cancelled(), Release()], ids=lambda outcome: type(outcome).__name__
    )
    async def test_the_first_settle_wins(self, store: Store, clock: TestClock, second: Outcome) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await settle(session, lease, Done(b"1"))
            assert await session.settle([(lease, second)]) == [lease]
        shown = await record(store, "a")
        assert (shown.state, shown.result, shown.errors) == (State.SUCCEEDED, 1, ())

    async def test_a_lease_twice_in_one_batch_settles_once(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info()) as session:
            a, b = await claim(session)
            assert await session.settle([(a, Done(b"1")), (a, Dead("twice")), (b, Release()), (b, Done())]) == [a, b]
        assert (await record(store, "a")).result == 1
        assert await state(store, "b") is State.READY

    async def test_a_success_twice_in_one_batch_settles_once(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b", keep=0)])
        async with store.session(info()) as session:
            a, b = await claim(session)
            assert await session.settle([(a, Done(b"1")), (a, Done(b"2")), (b, Done()), (b, Done())]) == [a, b]
        assert (await record(store, "a")).result == 1
        assert await store.get(["b"]) == {}

    @pytest.mark.parametrize("first", [Retried(0), Retried(60), Dead("d"), Cancelled("mine"), Release(), Release(60)])
    async def test_in_one_batch_too_the_first_outcome_wins(self, store: Store, clock: TestClock, first: Outcome) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b", keep=0)])
        async with store.session(info()) as session:
            a, b = await claim(session)
            assert await session.settle([(a, first), (b, first), (a, Done(b"1")), (b, Done())]) == [a, b]
        shown = await store.get(["a", "b"])
        assert set(shown) == {"a", "b"}
        assert not {State.SUCCEEDED, State.RUNNING} & {each.state for each in shown.values()}

    async def test_a_lost_lease_settles_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            old = await claim_one(session)
            await settle(session, old, Release())
            assert await session.settle([(old, Done(b"0"))]) == [old]
            new = await claim_one(session)
            assert await session.settle([(old, Done(b"1"))]) == [old]
            assert await state(store, "a") is State.RUNNING
            await settle(session, new, Done(b"2"))
        assert (await record(store, "a")).result == 2

    async def test_the_lease_of_another_session_settles_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("one")) as one, store.session(info("two")) as two:
            lease = await claim_one(one)
            assert await two.settle([(lease, Done())]) == [lease]
            assert await state(store, "a") is State.RUNNING
            await settle(one, lease, Done())

    async def test_lost_leases_do_not_hinder_the_others_of_the_batch(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, id) for id in ("a", "b", "c")])
        async with store.session(info()) as session:
            a, b, c = await claim(session)
            await settle(session, b, Done())
            assert await session.settle([(a, Done()), (b, Dead("late")), (c, Done())]) == [b]
            assert await session.settle([]) == []
        assert await store.counts() == {"default": {State.SUCCEEDED: 3}}

    async def test_the_lease_of_a_job_that_was_forgotten_is_lost(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", keep=0)])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await settle(session, lease, Done())
            assert await session.settle([(lease, Done())]) == [lease]

    async def test_a_record_is_forgotten_when_its_time_is_over(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "at once", keep=0), job(clock, "a minute", keep=60), job(clock, "a day")])
        async with store.session(info()) as session:
            for lease in await claim(session):
                await settle(session, lease, Done(b"1"))
            assert await store.counts() == {"default": {State.SUCCEEDED: 2}}
            clock.advance(59)
            await session.maintain()
            assert await state(store, "a minute") is State.SUCCEEDED
            clock.advance(1)
            await session.maintain()
            assert await state(store, "a minute") is None
            clock.advance(86_400)
            await session.maintain()
        assert await store.counts() == {}

    async def test_a_thousand_outcomes_are_settled_in_one_call(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, keep=keep) for keep in (0, 60) for _ in range(500)])
        async with store.session(info()) as session:
            leases = await claim(session)
            assert await session.settle([(lease, Done(b"[1]")) for lease in leases]) == []
            assert await session.settle([(lease, Done(b"[2]")) for lease in leases]) == leases
        assert await store.counts() == {"default": {State.SUCCEEDED: 500}}

    async def test_a_flood_of_old_records_is_forgotten_in_bounded_pieces(self, store: Store, clock: TestClock) -> None:
        for n in range(2):
            await store.enqueue([job(clock, keep=60) for _ in range(1_000 - 999 * n)])
        async with store.session(info()) as session:
            await session.settle([(lease, Done()) for lease in await claim(session, 1_001)])
            clock.advance(60)
            assert (await session.maintain()).wait == 0
            assert await store.counts() == {"default": {State.SUCCEEDED: 1}}
            await session.maintain()
        assert await store.counts() == {}

    async def test_what_did_not_succeed_is_kept_for_thirty_days(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "dead", keep=0), job(clock, "cancelled", keep=0), job(clock, "late", keep=0, expires_in=-1)])
        async with store.session(info()) as session:
            await session.settle([(lease, Dead("d") if lease.job.id == "dead" else Cancelled()) for lease in await claim(session)])
            clock.advance(KEEP_UNSUCCESSFUL - 1)
            await session.maintain()
            assert await store.counts() == {"default": {State.DEAD: 1, State.CANCELLED: 1, State.EXPIRED: 1}}
            clock.advance(1)
            await session.maintain()
        assert await store.counts() == {}

    @needs(Feature.STEPS)
    async def test_a_later_attempt_gets_the_steps_of_the_earlier_ones(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            first = await claim_one(session)
            assert await session.remember(first, "charge", b'{"id":7}')
            await settle(session, first, Retried(0))
            second = await claim_one(session)
            assert dict(second.steps) == {"charge": b'{"id":7}'}
            assert await session.remember(second, "mail", b"null")
            await settle(session, second, Release())
            third = await claim_one(session)
            assert dict(third.steps) == {"charge": b'{"id":7}', "mail": b"null"}
            await settle(session, third, Done())
        assert dict((await record(store, "a")).steps) == {"charge": {"id": 7}, "mail": None}

    @needs(Feature.STEPS)
    async def test_a_step_remembered_again_is_overwritten(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert await session.remember(lease, "charge", b"1")
            assert await session.remember(lease, "charge", b"2")
        assert dict((await record(store, "a")).steps) == {"charge": 2}

    @needs(Feature.STEPS)
    async def test_a_lost_lease_remembers_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("one")) as one, store.session(info("two")) as two:
            old = await claim_one(one)
            assert not await two.remember(old, "charge", b"0")
            await settle(one, old, Release())
            assert not await one.remember(old, "charge", b"1")
            new = await claim_one(two)
            assert not await one.remember(old, "charge", b"2")
            assert dict(new.steps) == {}
            await settle(two, new, Done())
            assert not await two.remember(new, "charge", b"3")
        assert dict((await record(store, "a")).steps) == {}

    @needs(Feature.STEPS)
    async def test_steps_go_with_a_job_that_is_forgotten(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", keep=0)])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await session.remember(lease, "charge", b"1")
            await settle(session, lease, Done())
            await store.enqueue([job(clock, "a")])
            assert dict((await claim_one(session)).steps) == {}

    async def test_progress_is_shown_while_it_runs(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert (await record(store, "a")).progress is None
            await session.beat(Pulse(progress=((lease, Progress(0.25, "resizing")),)))
            assert (await record(store, "a")).progress == Progress(0.25, "resizing")
            await session.beat(Pulse(progress=((lease, Progress(0.5)),)))
            assert (await record(store, "a")).progress == Progress(0.5)

    async def test_progress_of_a_lost_lease_is_dropped(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("one")) as one, store.session(info("two")) as two:
            old = await claim_one(one)
            await settle(one, old, Release())
            late = Pulse(progress=((old, Progress(0.9)),))
            await one.beat(late)
            assert (await record(store, "a")).progress is None
            await claim_one(two)
            await one.beat(late)
            await two.beat(late)
            assert (await record(store, "a")).progress is None

    async def test_what_the_store_gives_back_is_not_changed_by_what_follows(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        before = await record(store, "a")
        async with store.session(info()) as session:
            lease: Lease = await claim_one(session)
            await session.remember(lease, "charge", b"1")
            await settle(session, lease, Done())
        assert (before.state, dict(before.steps), dict(lease.steps)) == (State.READY, {}, {})
        assert ids([before]) == ["a"]
