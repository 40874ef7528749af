"""Calls of a session are numbered: none is carried out twice or too late, and what was lost between two is noticed."""

from __future__ import annotations

import pytest

from offload.brokers.redis import RedisBroker
from offload.brokers.redis.session import RedisSession
from offload.errors import BrokerError
from offload.job import Done, Pulse, Release, State
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, claim_one, ids, info, job, settle, state

pytestmark = pytest.mark.anyio


def forget_calls(session: RedisSession, number: int) -> None:
    """As if calls had never been made, or had been made on a connection whose answers never came."""
    session._calls += number


async def test_a_fetch_that_is_sent_again_claims_nothing_more(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a"), job(clock, "b")])
    async with broker.session(info()) as session:
        lease = (await claim(session, 1))[0]
        forget_calls(session, -1)
        with pytest.raises(BrokerError, match="answer was lost"):
            await claim(session)
        assert await state(broker, "b") is State.READY
        assert await session.retain([lease]) == 0
        assert ids(await claim(session)) == ["b"]


async def test_a_settle_that_is_sent_again_says_so(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        await settle(session, lease, Done())
        forget_calls(session, -1)
        with pytest.raises(BrokerError, match="answer was lost"):
            await session.settle([(lease, Done())])
        assert await session.settle([(lease, Done())]) == [lease]


async def test_what_a_failover_lost_is_noticed_by_the_next_fetch(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a"), job(clock, "b")])
    async with broker.session(info()) as session:
        lost, held = await claim(session)
        forget_calls(session, 1)  # `lost` was settled, but the new primary never heard of it
        with pytest.raises(BrokerError, match="failover"):
            await claim(session)
        assert await session.retain([held]) == 1
        assert ids(await claim(session)) == [lost.job.id]


async def test_a_settle_after_a_gap_is_carried_out_and_leaves_the_doubt_to_the_next_fetch(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        forget_calls(session, 1)
        await settle(session, lease, Done())
        with pytest.raises(BrokerError):
            await claim(session)
        assert await session.retain([]) == 0
        assert await claim(session) == []


async def test_a_fetch_that_comes_after_retain_claims_nothing(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        forget_calls(session, 1)
        assert await session.retain([]) == 0
        forget_calls(session, -1)
        with pytest.raises(BrokerError):
            await claim(session)
        assert await state(broker, "a") is State.READY


async def test_a_fetch_of_more_than_a_thousand_is_made_of_several_calls(broker: RedisBroker, clock: TestClock) -> None:
    for start in range(0, 2_500, 500):
        await broker.enqueue([job(clock, f"j{number:04}") for number in range(start, start + 500)])
    async with broker.session(info()) as session:
        leases = await claim(session, 2_200)
        assert ids(leases) == [f"j{number:04}" for number in range(2_200)]
        assert await session.settle([(lease, Done()) for lease in leases]) == []
        assert len(await claim(session, 2_200)) == 300


async def test_a_lease_is_kept_though_an_older_one_of_its_job_is_told_as_well(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        old = await claim_one(session)
        await settle(session, old, Release())
        new = await claim_one(session)
        for held in ([old, new], [new, old]):
            assert await session.retain(held) == 0


async def test_all_orphans_are_handed_back_however_many_a_session_runs(broker: RedisBroker, clock: TestClock) -> None:
    for start in range(0, 2_500, 500):
        await broker.enqueue([job(clock, f"j{number:04}") for number in range(start, start + 500)])
    async with broker.session(info()) as session:
        leases = await claim(session, 10_000)
        assert await session.retain(leases[1_000:1_100]) == 2_400
        assert len(await claim(session, 10_000)) == 2_400


async def test_a_dead_worker_with_thousands_of_jobs_is_relieved_of_all(broker: RedisBroker, clock: TestClock) -> None:
    for start in range(0, 2_500, 500):
        await broker.enqueue([job(clock, f"j{number:04}") for number in range(start, start + 500)])
    async with broker.session(info("dead")) as dead, broker.session(info("alive")) as alive:
        assert len(await claim(dead, 10_000)) == 2_500
        for _ in range(6):
            await alive.beat(Pulse())
            clock.advance(3)
        rescued: list[str] = []
        for _ in range(10):
            upkeep = await alive.maintain()
            rescued += ids(upkeep.touched)
            if upkeep.wait > 0:
                break
        assert sorted(rescued) == [f"j{number:04}" for number in range(2_500)]
        assert ids(await claim(alive, 10_000)) == [f"j{number:04}" for number in range(2_500)]
