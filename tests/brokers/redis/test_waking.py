"""A ready job wakes a sleeper who serves its queue, and only as many as it takes."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from msgspec.structs import replace
from tests.brokers.redis.conftest import Rung
from tests.conftest import Eventually

from offload.brokers.redis import RedisBroker
from offload.job import Done, Isolation, Release, WorkerInfo
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, claim_one, ids, info, job, settle
from offload.testing.servers import RedisServer

pytestmark = pytest.mark.anyio

FOR_OTHERS: dict[Isolation, int] = {"async": 0, "thread": 1, "process": 0}
"""Room for none of the tasks there are."""


def serving(name: str, *queues: str) -> WorkerInfo:
    return replace(info(name), queues=queues or None)


async def test_only_who_serves_the_queue_is_woken(broker: RedisBroker, clock: TestClock, rung: Rung) -> None:
    async with broker.session(serving("mail", "mail", "vip")) as mail, broker.session(serving("other", "other")) as other:
        await broker.enqueue([job(clock, queue="ma")])
        assert rung(mail, other) == [False, False]
        await broker.enqueue([job(clock, queue="vip")])
        assert rung(mail, other) == [True, False]


async def test_one_job_wakes_one_sleeper_the_one_that_looked_longest_ago(broker: RedisBroker, clock: TestClock, rung: Rung) -> None:
    async with broker.session(serving("one")) as one, broker.session(serving("two")) as two:
        assert await claim(two) == []
        assert await claim(one) == []
        await broker.enqueue([job(clock)])
        assert sorted(rung(one, two)) == [False, True]
        await broker.enqueue([job(clock)])
        assert rung(one, two) == [True, True]


async def test_whoever_leaves_jobs_wakes_another_until_all_have_looked(broker: RedisBroker, clock: TestClock, rung: Rung) -> None:
    async with broker.session(serving("full")) as full, broker.session(serving("idle")) as idle:
        await broker.enqueue([job(clock, "a")])
        woken, asleep = (full, idle) if rung(full) == [True] else (idle, full)
        assert await claim(woken, room=FOR_OTHERS) == []
        assert rung(woken, asleep) == [False, True]
        assert await claim(asleep, room=FOR_OTHERS) == []
        assert rung(woken, asleep) == [False, False], "both have looked in vain: they would wake each other for ever"
        assert ids(await claim(woken)) == ["a"]


async def test_whoever_takes_all_that_he_may_wakes_another_for_the_rest(broker: RedisBroker, clock: TestClock, rung: Rung) -> None:
    async with broker.session(serving("one")) as one, broker.session(serving("two")) as two:
        await broker.enqueue([job(clock, "a")])
        await broker.enqueue([job(clock, "b"), job(clock, "c")])
        assert rung(one, two) == [True, True]
        assert await claim(two, 1)
        assert await claim(one, 1)
        assert rung(one, two) == [False, False], "nobody is asleep: both took as many as they may, and ask again"
        assert len(await claim(two)) == 1
        await broker.enqueue([job(clock, "d"), job(clock, "e")])
        assert await claim(one, 1)
        assert rung(two) == [True]


async def test_hundreds_who_serve_other_queues_hide_no_sleeper(
    broker: RedisBroker, clock: TestClock, rung: Rung, each_redis: RedisServer, fresh_name: str
) -> None:
    others = [word for number in range(250) for word in ("0", f"other{number}\nother\n")]
    async with broker.session(serving("one", "mail")) as one, broker.session(serving("two", "mail")) as two:
        each_redis.ask("ZADD", f"{{{fresh_name}}}:asleep", *others)
        await broker.enqueue([job(clock, queue="mail")])
        assert rung(one, two) == [True, False]
        assert await claim(one, room=FOR_OTHERS) == []
        assert rung(one, two) == [False, True]
        assert each_redis.ask("ZCARD", f"{{{fresh_name}}}:asleep") == 251


async def test_a_job_handed_back_wakes_who_looked_before(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(serving("one")) as one, broker.session(serving("two")) as two, asyncio.timeout(20):
        lease = await claim_one(one)
        assert await claim(two) == []
        await settle(one, lease, Release())
        await two.wait(60)
        await settle(two, await claim_one(two), Done())


async def test_a_job_for_later_wakes_somebody_who_then_knows_how_long_to_sleep(broker: RedisBroker, clock: TestClock) -> None:
    async with broker.session(serving("one", "elsewhere")) as one, asyncio.timeout(20):
        assert await claim(one, queues=["elsewhere"]) == []
        started = monotonic()
        waiting = asyncio.create_task(one.wait(60))
        await broker.enqueue([job(clock, "a", delay=5)])
        await waiting
        assert monotonic() - started < 1.5
        assert (await one.maintain()).wait == 5


async def test_a_sleeper_that_is_not_woken_looks_by_itself_now_and_then(broker: RedisBroker) -> None:
    async with broker.session(serving("one")) as one:
        started = monotonic()
        await one.wait(60)
        assert 1.5 < monotonic() - started < 5


async def test_results_are_told_of_at_once(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str, eventually: Eventually
) -> None:
    await broker.enqueue([job(clock, name) for name in ("a", "b", "c")])
    async with broker.session(info()) as session:
        leases = await claim(session)
        waiting = [asyncio.create_task(broker.finished(wanted, 60)) for wanted in (["a"], ["b", "c"], ["a", "unknown"])]
        await eventually(lambda: each_redis.ask("HLEN", f"{{{fresh_name}}}:awaited") == 3)
        started = monotonic()
        assert await session.settle([(lease, Done(b"1")) for lease in leases]) == []
        assert [set(await each) for each in waiting] == [{"a"}, {"b", "c"}, {"a"}]
        assert monotonic() - started < 0.9, "polling alone takes a second"
        assert each_redis.ask("EXISTS", f"{{{fresh_name}}}:awaited") == 0
