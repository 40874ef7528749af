"""Enqueueing and claiming: what goes in comes out, once, and an id is an idempotency key."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from offload.broker import Broker, Store
from offload.errors import IdConflict
from offload.job import MOST_ATOMIC, MOST_PAYLOAD_BYTES, Done, Release, Retried, State
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import PATIENCE, Fixtures, claim, claim_one, ids, info, job, record, settle, state


class Delivery(Fixtures):
    async def test_a_job_is_given_as_it_was_enqueued(self, broker: Broker, clock: TestClock) -> None:
        sent = job(clock, payload='{"name":"Zoë \U0001f600","n":1}'.encode(), queue="mail", timeout=2.5, keep=60)
        await broker.enqueue([sent])
        async with broker.session(info()) as session:
            lease = await claim_one(session)
        assert lease.job == sent
        assert (lease.attempt, lease.crashes, dict(lease.steps)) == (1, 0, {})

    async def test_the_largest_payload_arrives_untouched(self, broker: Broker, clock: TestClock) -> None:
        payload = b'{"x":"' + b"x" * (MOST_PAYLOAD_BYTES - 8) + b'"}'
        await broker.enqueue([job(clock, payload=payload)])
        async with broker.session(info()) as session:
            assert (await claim_one(session)).job.payload == payload

    async def test_enqueue_returns_the_ids_in_order(self, broker: Broker, clock: TestClock) -> None:
        assert await broker.enqueue([job(clock, "b"), job(clock, "a"), job(clock, "c")]) == ["b", "a", "c"]

    async def test_enqueueing_nothing_stores_nothing(self, store: Store) -> None:
        assert await store.enqueue([]) == []
        assert await store.counts() == {}

    async def test_a_thousand_jobs_go_in_one_call_and_come_out_in_order(self, broker: Broker, clock: TestClock) -> None:
        sent = [job(clock) for _ in range(MOST_ATOMIC)]
        assert await broker.enqueue(sent) == ids(sent)
        async with broker.session(info()) as session:
            assert ids(await claim(session, MOST_ATOMIC)) == ids(sent)

    async def test_fetch_gives_no_more_than_the_limit(self, broker: Broker, clock: TestClock) -> None:
        await broker.enqueue([job(clock) for _ in range(5)])
        async with broker.session(info()) as session:
            assert len(await claim(session, 2)) == 2
            assert len(await claim(session, 10)) == 3
            assert await claim(session, 10) == []

    async def test_a_limit_of_nothing_claims_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            assert await claim(session, 0) == []
        assert await state(store, "a") is State.READY

    async def test_two_sessions_never_get_the_same_job(self, broker: Broker, clock: TestClock) -> None:
        sent = [job(clock) for _ in range(200)]
        await broker.enqueue(sent)
        async with broker.session(info("one")) as one, broker.session(info("two")) as two:
            rounds = await asyncio.gather(*(claim(session, 25) for session in (one, two) for _ in range(4)))
        given = [id for leases in rounds for id in ids(leases)]
        assert sorted(given) == sorted(ids(sent))

    async def test_producers_at_the_same_time_lose_nothing(self, broker: Broker, clock: TestClock) -> None:
        batches = [[job(clock) for _ in range(20)] for _ in range(10)]
        await asyncio.gather(*(broker.enqueue(batch) for batch in batches))
        async with broker.session(info()) as session:
            given = ids(await claim(session, 1_000))
        assert sorted(given) == sorted(id for batch in batches for id in ids(batch))

    async def test_every_claim_raises_the_claim_number(self, broker: Broker, clock: TestClock) -> None:
        await broker.enqueue([job(clock)])
        async with broker.session(info()) as session:
            first = await claim_one(session)
            await settle(session, first, Release())
            second = await claim_one(session)
            await settle(session, second, Retried(0))
            third = await claim_one(session)
        assert first.claim < second.claim < third.claim
        assert (first.attempt, second.attempt, third.attempt) == (1, 1, 2)

    async def test_a_claimed_job_shows_who_runs_it_since_when(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        before = await record(store, "a")
        assert (before.state, before.attempt, before.worker, before.started_at) == (State.READY, 0, None, None)
        clock.advance(5)
        async with store.session(info("ada")) as session:
            await claim(session)
            shown = await record(store, "a")
            assert (shown.state, shown.attempt, shown.worker, shown.started_at) == (State.RUNNING, 1, "ada", clock.now())

    async def test_repeating_an_enqueue_stores_nothing_twice(self, store: Store, clock: TestClock) -> None:
        sent = job(clock, "a", payload=b'{"n":1}')
        again = job(clock, "a", payload=b'{"n":1}')
        assert await store.enqueue([sent]) == await store.enqueue([again]) == ["a"]
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert await store.enqueue([again]) == ["a"]
            await settle(session, lease, Done())
            assert await store.enqueue([again]) == ["a"]
            assert await claim(session) == []
        assert await state(store, "a") is State.SUCCEEDED

    async def test_an_id_twice_in_one_batch_is_one_job(self, store: Store, clock: TestClock) -> None:
        assert await store.enqueue([job(clock, "a"), job(clock, "a")]) == ["a", "a"]
        assert await store.counts() == {"default": {State.READY: 1}}

    @pytest.mark.parametrize("other", [{"payload": b'{"n":2}'}, {"task": "farewell"}], ids=["payload", "task"])
    async def test_an_id_used_for_something_else_is_refused(self, store: Store, clock: TestClock, other: dict[str, Any]) -> None:
        await store.enqueue([job(clock, "a", payload=b'{"n":1}')])
        both: dict[str, Any] = {"payload": b'{"n":1}'} | other
        with pytest.raises(IdConflict, match="'a'") as conflict:
            await store.enqueue([job(clock, "b"), job(clock, "a", **both)])
        assert conflict.value.job_id == "a"
        assert await state(store, "b") is None
        assert (await record(store, "a")).payload == b'{"n":1}'

    async def test_an_id_twice_in_one_batch_with_two_payloads_is_refused(self, store: Store, clock: TestClock) -> None:
        with pytest.raises(IdConflict):
            await store.enqueue([job(clock, "a", payload=b'{"n":1}'), job(clock, "a", payload=b'{"n":2}')])
        assert await store.counts() == {}

    async def test_an_id_is_free_again_once_its_record_is_forgotten(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", payload=b'{"n":1}', keep=0)])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done())
            assert await store.enqueue([job(clock, "a", payload=b'{"n":2}')]) == ["a"]
            assert (await claim_one(session)).job.payload == b'{"n":2}'

    async def test_wait_is_woken_by_an_enqueue(self, broker: Broker, clock: TestClock) -> None:
        async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(session.wait(10 * PATIENCE))
            await asyncio.sleep(0)
            await broker.enqueue([job(clock, "a")])
            await waiting
            assert ids(await claim(session)) == ["a"]

    async def test_an_enqueue_between_fetch_and_wait_is_not_slept_through(self, broker: Broker, clock: TestClock) -> None:
        async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
            assert await claim(session) == []
            await broker.enqueue([job(clock, "a")])
            await session.wait(10 * PATIENCE)
            assert ids(await claim(session)) == ["a"]

    @pytest.mark.parametrize("how", ["release", "leave", "revive", "resume"])
    async def test_wait_is_woken_by_whatever_makes_work(self, store: Store, clock: TestClock, how: str) -> None:
        await store.enqueue([job(clock, "a")])
        if how == "resume":
            await store.pause("default")
        if how == "revive":
            await store.cancel(["a"])
        async with store.session(info("sleeps")) as sleeper, asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
            other = await stack.enter_async_context(store.session(info("other")))
            leases = await claim(other)
            assert await claim(sleeper) == []
            waiting = asyncio.create_task(sleeper.wait(10 * PATIENCE))
            await asyncio.sleep(0)
            match how:
                case "release":
                    await settle(other, leases[0], Release())
                case "leave":
                    await stack.aclose()
                case "revive":
                    await store.retry(["a"])
                case _:
                    await store.resume("default")
            await waiting
            assert ids(await claim(sleeper)) == ["a"]

    async def test_another_thread_with_its_own_loop_may_enqueue_and_wakes_workers(self, broker: Broker, clock: TestClock) -> None:
        async def produce() -> None:
            client = broker.client()
            if client is not broker:
                await client.open()
            await client.enqueue([job(clock, "a")])
            if client is not broker:
                await client.close()

        async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
            assert await claim(session) == []
            waiting = asyncio.create_task(session.wait(10 * PATIENCE))
            await asyncio.to_thread(lambda: asyncio.run(produce()))
            await waiting
            assert ids(await claim(session)) == ["a"]

    async def test_wait_ends_by_itself_when_its_time_is_over(self, broker: Broker) -> None:
        async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
            await session.wait(0.01)

    async def test_a_wait_that_is_cancelled_does_no_harm(self, broker: Broker, clock: TestClock) -> None:
        async with broker.session(info()) as session:
            waiting = asyncio.create_task(session.wait(10 * PATIENCE))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await broker.enqueue([job(clock, "a")])
            assert ids(await claim(session)) == ["a"]
