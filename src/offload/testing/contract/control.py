"""What a person does to jobs: cancel, retry, delete."""

from __future__ import annotations

import asyncio

import pytest

from offload.broker import Feature, Store
from offload.job import Cancelled, Dead, Done, Outcome, Progress, Pulse, Release, Retried, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, failure, ids, info, job, needs, record, settle, state


class Control(Fixtures):
    @needs(Feature.DELAY, Feature.UNIQUE)
    async def test_cancelling_what_has_not_started_is_immediate(self, store: Store, clock: TestClock) -> None:
        key = UniqueKey("k", on_conflict="keep_last")
        await store.enqueue(
            [job(clock, "ready"), job(clock, "later", delay=60), job(clock, "holder", unique=key), job(clock, "waiting", unique=key)]
        )
        assert await store.cancel(["ready", "later", "waiting", "unknown"]) == {"ready", "later", "waiting"}
        for id in ("ready", "later", "waiting"):
            shown = await record(store, id)
            assert (shown.state, shown.reason, shown.finished_at, shown.attempt) == (State.CANCELLED, "cancelled", clock.now(), 0)
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["holder"]
            clock.advance(60)
            await session.maintain()
            assert await claim(session) == []

    async def test_cancelling_a_job_set_aside_is_immediate(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "n", task="new")])
        async with store.session(info("old")) as old, store.session(info("new", "new")) as new:
            await claim(old)
            assert await store.cancel(["n"]) == {"n"}
            assert await claim(new) == []

    async def test_a_job_waiting_for_its_retry_is_cancelled_at_once(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Retried(60, failure(clock)))
        assert await store.cancel(["a"]) == {"a"}
        shown = await record(store, "a")
        assert (shown.state, shown.attempt, len(shown.errors)) == (State.CANCELLED, 1, 1)

    async def test_a_running_job_is_told_by_the_beat(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info("one")) as one, store.session(info("two")) as two:
            a, _ = await claim(one)
            assert await store.cancel(["a"]) == {"a"}
            assert await state(store, "a") is State.RUNNING
            assert (await one.beat(Pulse())).stop == (("a", a.claim),)
            assert (await one.beat(Pulse())).stop == (("a", a.claim),)
            assert (await two.beat(Pulse())).stop == ()
            assert await store.cancel(["a"]) == {"a"}
            assert [(await record(store, id)).cancel_asked for id in ("a", "b")] == [True, False]
            await settle(one, a, Cancelled())
            assert (await one.beat(Pulse())).stop == ()

    @pytest.mark.parametrize("end", [Retried(0), Retried(60), Dead("d"), Cancelled("mine"), Release(), Release(60)])
    async def test_a_job_asked_to_stop_ends_cancelled(self, store: Store, clock: TestClock, end: Outcome) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await store.cancel(["a"])
            await settle(session, lease, end)
        shown = await record(store, "a")
        assert (shown.state, shown.reason, shown.finished_at) == (State.CANCELLED, "cancelled", clock.now())
        assert not shown.cancel_asked

    async def test_a_job_that_succeeded_before_it_was_stopped_stays_succeeded(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await store.cancel(["a"])
            await settle(session, lease, Done(b"1"))
        shown = await record(store, "a")
        assert (shown.state, shown.result, shown.reason, shown.cancel_asked) == (State.SUCCEEDED, 1, None, False)

    async def test_a_job_asked_to_stop_does_not_come_back_when_its_worker_leaves(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            await claim_one(session)
            await store.cancel(["a"])
        assert await state(store, "a") is State.CANCELLED

    async def test_what_has_ended_cannot_be_cancelled(self, store: Store, clock: TestClock) -> None:
        await self.end_one_each(store, clock)
        assert await store.cancel(["done", "dead", "cancelled", "expired"]) == set()
        assert await store.counts() == {"default": {State.SUCCEEDED: 1, State.DEAD: 1, State.CANCELLED: 1, State.EXPIRED: 1}}

    async def end_one_each(self, store: Store, clock: TestClock) -> None:
        """One job in each terminal state, named after it."""
        await store.enqueue(
            [job(clock, "done"), job(clock, "dead"), job(clock, "cancelled"), job(clock, "expired", delay=60, expires_in=1)]
        )
        async with store.session(info()) as session:
            outcomes: dict[str, Outcome] = {"done": Done(b"1"), "dead": Dead("d", failure(clock)), "cancelled": Cancelled("c")}
            await session.settle([(lease, outcomes[lease.job.id]) for lease in await claim(session)])
            clock.advance(1)
            await session.maintain()

    async def test_what_did_not_succeed_can_be_retried(self, store: Store, clock: TestClock) -> None:
        await self.end_one_each(store, clock)
        clock.advance(5)
        assert await store.retry(["expired", "done", "dead", "unknown", "cancelled"]) == {"dead", "cancelled", "expired"}
        for id in ("dead", "cancelled", "expired"):
            shown = await record(store, id)
            assert (shown.state, shown.attempt, shown.crashes, shown.reason, shown.finished_at) == (State.READY, 0, 0, None, None)
            assert (shown.run_at, shown.expires_at) == (None, None)
        async with store.session(info()) as session:
            assert sorted(ids(await claim(session))) == ["cancelled", "dead", "expired"]

    async def test_a_retried_job_keeps_its_history_and_its_steps(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            first = await claim_one(session)
            await session.remember(first, "charge", b"7")
            await session.beat(Pulse(progress=((first, Progress(0.9, "nearly")),)))
            await settle(session, first, Dead("d", failure(clock)))
            await store.retry(["a"])
            shown = await record(store, "a")
            assert (shown.errors, dict(shown.steps), shown.progress) == ((failure(clock),), {"charge": 7}, None)
            again = await claim_one(session)
            assert (again.attempt, dict(again.steps)) == (1, {"charge": b"7"})
            assert again.claim > first.claim
            assert await session.settle([(first, Done())]) == [first]

    async def test_a_retry_may_bring_another_payload(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", payload=b'{"n":1}'), job(clock, "b", payload=b'{"n":1}')])
        await store.cancel(["a", "b"])
        await store.retry(["a"], b'{"n":2}')
        await store.retry(["b"])
        async with store.session(info()) as session:
            assert [lease.job.payload for lease in await claim(session)] == [b'{"n":2}', b'{"n":1}']

    @needs(Feature.EXPIRY)
    async def test_expiry_no_longer_applies_to_a_retried_job(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", expires_in=5)])
        await store.cancel(["a"])
        await store.retry(["a"])
        async with store.session(info()) as session:
            assert (await session.maintain()).wait == 60
            clock.advance(5)
            assert (await session.maintain()).touched == ()
            assert ids(await claim(session)) == ["a"]

    async def test_a_retried_job_stands_at_the_end_of_its_line(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        await store.cancel(["a"])
        await store.retry(["a"])
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["b", "a"]

    async def test_what_lives_or_succeeded_cannot_be_retried(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "running"), job(clock, "later", delay=60), job(clock, "done")])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["done"], Done())
            await store.enqueue([job(clock, "ready")])
            assert await store.retry(["running", "ready", "later", "done"]) == set()
            assert await state(store, "running") is State.RUNNING

    async def test_a_retried_job_that_succeeds_is_forgotten_like_any_other(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", keep=60)])
        await store.cancel(["a"])
        await store.retry(["a"])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done())
            clock.advance(60)
            await session.maintain()
        assert await state(store, "a") is None

    async def test_deleting_forgets_all_but_running_jobs(self, store: Store, clock: TestClock) -> None:
        await self.end_one_each(store, clock)
        await store.enqueue([job(clock, "running")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await store.enqueue([job(clock, "ready"), job(clock, "later", delay=60)])
            everything = ["done", "dead", "cancelled", "expired", "running", "ready", "later", "unknown"]
            assert await store.delete(everything) == set(everything) - {"running", "unknown"}
            assert list(await store.get(everything)) == ["running"]
            assert await claim(session) == []
            await settle(session, lease, Done())

    async def test_a_deleted_id_starts_from_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await session.remember(lease, "charge", b"1")
            await settle(session, lease, Dead("d", failure(clock)))
            await store.delete(["a"])
            await store.enqueue([job(clock, "a", payload=b'{"n":2}')])
            shown = await record(store, "a")
            assert (shown.state, shown.attempt, shown.errors, dict(shown.steps)) == (State.READY, 0, (), {})
            assert await session.settle([(lease, Done())]) == [lease]
            assert dict((await claim_one(session)).steps) == {}

    async def test_a_job_set_aside_can_be_deleted(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "n", task="new")])
        async with store.session(info("old")) as old, store.session(info("new", "new")) as new:
            await claim(old)
            assert await store.delete(["n"]) == {"n"}
            assert await claim(new) == []

    async def test_asking_for_nothing_does_nothing(self, store: Store) -> None:
        assert (await store.cancel([]), await store.retry([]), await store.delete([]), await store.get([])) == (set(), set(), set(), {})

    async def test_a_command_repeated_is_harmless(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        assert await store.cancel(["a", "a"]) == {"a"}
        assert await store.cancel(["a"]) == set()
        assert await store.retry(["a", "a"]) == {"a"}
        assert await store.retry(["a"]) == set()
        assert await store.delete(["a", "a"]) == {"a"}
        assert await store.delete(["a"]) == set()
        for _ in range(2):
            await store.pause("mail")
        for _ in range(2):
            await store.resume("mail")
        assert await store.paused() == set()

    async def test_a_claim_and_a_cancel_at_the_same_time_agree(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, f"j{n}") for n in range(20)])
        async with store.session(info()) as session:
            given, asked = await asyncio.gather(claim(session), store.cancel([f"j{n}" for n in range(20)]))
            assert len(asked) == 20
            assert sorted(id for id, _ in (await session.beat(Pulse())).stop) == sorted(ids(given))
            assert await session.settle([(lease, Release()) for lease in given]) == []
        assert await store.counts() == {"default": {State.CANCELLED: 20}}
