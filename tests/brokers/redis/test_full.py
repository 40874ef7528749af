"""When the server's memory is full: new jobs are refused as a whole, and everything that brings relief goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from offload.brokers.redis import RedisBroker
from offload.errors import BrokerError
from offload.job import Dead, Done, Job, Progress, Pulse, Release, Retried, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, failure, ids, info, job, rule
from offload.testing.servers import RedisServer, redis, valkey

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[redis, valkey], ids=["redis", "valkey"])
def server(request: pytest.FixtureRequest, started: Callable[[Any], RedisServer]) -> RedisServer:
    return started(request.param)


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
async def broker(server: RedisServer, clock: TestClock) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker.connect(f"{server.url}?timeout=0.2", clock)
    await broker.open()
    yield broker
    server.ask("CONFIG", "SET", "maxmemory", "0")
    await broker.close()


def fill(server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "maxmemory", "1")


async def test_new_jobs_are_refused_as_a_whole(server: RedisServer, broker: RedisBroker, clock: TestClock) -> None:
    keyed = UniqueKey("k", on_conflict="keep_last")
    await broker.enqueue([job(clock, "before", unique=keyed)])
    fill(server)
    batches: list[list[Job]] = [
        [job(clock, "plain")],
        [job(clock, "later", delay=5), job(clock, "soon")],
        [job(clock, "waits", unique=keyed)],
    ]
    for batch in batches:
        with pytest.raises(BrokerError, match="maxmemory"):
            await broker.enqueue(batch)
    assert await broker.counts() == {"default": {State.READY: 1}}
    assert list(await broker.get(["before", "plain", "later", "soon", "waits"])) == ["before"]


async def test_workers_come_claim_settle_beat_and_leave(server: RedisServer, broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, name) for name in ("done", "kept", "dead", "again", "later", "back", "left")])
    fill(server)
    another = broker.client()
    await another.open()
    await another.close()
    async with broker.session(info()) as session:
        leases = {lease.job.id: lease for lease in await claim(session)}
        assert (await session.beat(Pulse(((leases["kept"], Progress(0.5)),)))).alive
        outcomes = {
            "kept": Done(b"1"),
            "dead": Dead("bad", failure(clock)),
            "again": Retried(0, failure(clock)),
            "later": Retried(5),
            "back": Release(),
        }
        assert await session.settle([(leases[id], outcome) for id, outcome in outcomes.items()]) == []
        clock.advance(5)
        await session.maintain()
        assert ids(await claim(session)) == ["back", "again", "later"]
    states = {id: record.state for id, record in (await broker.get(["done", "kept", "dead", "again", "left"])).items()}
    assert states == {
        "done": State.READY,
        "kept": State.SUCCEEDED,
        "dead": State.DEAD,
        "again": State.READY,
        "left": State.READY,
    }


async def test_people_can_cancel_and_delete(server: RedisServer, broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a"), job(clock, "b")])
    fill(server)
    assert await broker.cancel(["a"]) == {"a"}
    assert await broker.delete(["a", "b"]) == {"a", "b"}
    assert await broker.counts() == {}


async def test_people_can_hold_up_queues_and_schedules(server: RedisServer, broker: RedisBroker, clock: TestClock) -> None:
    await broker.schedule(rule(), clock.now())
    fill(server)
    await broker.pause("default")
    assert await broker.pause_schedule("report", True)
    assert await broker.paused() == {"default"}
    assert [record.paused for record in await broker.schedules()] == [True]
    await broker.resume("default")
    assert await broker.pause_schedule("report", False, clock.now())
    assert await broker.paused() == set()
    assert [record.paused for record in await broker.schedules()] == [False]
