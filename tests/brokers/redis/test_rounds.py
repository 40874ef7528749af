"""Turns by key as they lie in the server: what they cost, what is left, and what refused jobs leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from tests.brokers.redis.conftest import calls, stored

from offload.brokers.redis import RedisBroker
from offload.errors import BrokerUnusable, UniqueConflict
from offload.job import Done, Job, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, info, job
from offload.testing.servers import RedisServer

pytestmark = pytest.mark.anyio

JOBS = 500


async def emptied(broker: RedisBroker) -> None:
    """Claim and settle all there is."""
    async with broker.session(info()) as session:
        while leases := await claim(session, JOBS):
            await session.settle([(lease, Done()) for lease in leases])


async def costs(broker: RedisBroker, server: RedisServer, jobs: Sequence[Job]) -> tuple[int, int]:
    """The commands for enqueueing jobs, and for all else until they have ended."""
    before = calls(server)
    await broker.enqueue(jobs)
    enqueued = calls(server)
    await emptied(broker)
    return enqueued - before, calls(server) - enqueued


@pytest.mark.parametrize("keys", [1, 5, JOBS])
async def test_a_turn_costs_a_command_when_it_is_taken_and_none_when_it_is_used(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, keys: int
) -> None:
    plain = await costs(broker, each_redis, [job(clock, keep=0) for _ in range(JOBS)])
    fair = await costs(broker, each_redis, [job(clock, fair_by=f"{number % keys}", keep=0) for number in range(JOBS)])
    assert fair[0] - plain[0] <= JOBS + 10
    assert fair[1] <= plain[1]


async def test_where_nobody_stands_any_more_the_next_turn_forgets_all(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await broker.enqueue([job(clock, fair_by=key, priority=5) for key in "abcab"])
    await emptied(broker)
    await broker.enqueue([job(clock, fair_by="d", priority=5)])
    assert set(stored(each_redis, fresh_name)["rounds:default\x0095"]) == {b"", b"-4", b"d", b"1"}


async def test_an_enqueue_that_is_refused_leaves_the_rounds_as_they_were(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    taken = UniqueKey("taken", on_conflict="raise")
    await broker.enqueue([job(clock, fair_by=key) for key in "abcab"])
    await emptied(broker)
    await broker.enqueue([job(clock, "first", unique=taken)])
    await broker.enqueue([job(clock, "served", fair_by="b", queue="other"), job(clock, fair_by="a", queue="other")])
    before = stored(each_redis, fresh_name)
    again = [job(clock, fair_by=key, queue=queue) for key in "bbd" for queue in ("default", "other")]
    with pytest.raises(UniqueConflict):
        await broker.enqueue([*again, job(clock, "refused", unique=taken)])
    assert stored(each_redis, fresh_name) == before
    await broker.enqueue(again)
    async with broker.session(info()) as session:
        leases = await claim(session, queues=["other"])
    assert [lease.job.fair_by for lease in leases] == ["b", "a", "b", "d", "b"]


async def test_nothing_is_stored_where_the_key_of_rounds_is_spoiled(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    each_redis.ask("SET", f"{{{fresh_name}}}:rounds:default\x00100", "something else")
    before = stored(each_redis, fresh_name)
    with pytest.raises(BrokerUnusable, match="not Offload's; keep jobs under another"):
        await broker.enqueue([job(clock, "a"), job(clock, "b", fair_by="k")])
    assert stored(each_redis, fresh_name) == before


async def test_a_job_that_takes_turns_is_seen_to_be_old_behind_many_that_do_not(broker: RedisBroker, clock: TestClock) -> None:
    enqueued_at = clock.now()
    await broker.enqueue([job(clock, fair_by="k")])
    clock.advance(60)
    await broker.enqueue([job(clock) for _ in range(150)])
    facts = await broker.inspect()
    assert facts.now - facts.oldest_ready["default"] == timedelta(seconds=60)
    assert facts.oldest_ready["default"] == enqueued_at
