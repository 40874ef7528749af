"""Orders and limits by key as they lie in the server: nothing is left behind, no call is without bounds, and who sleeps wakes in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from time import monotonic

import pytest
from tests.brokers.redis.conftest import Rung, calls, stored

from offload.brokers.redis import RedisBroker
from offload.clock import SystemClock
from offload.errors import BrokerUnusable, UniqueConflict
from offload.job import Dead, Done, Job, LimitChange, RateLimit, Retried, SlotLimit, State, UniqueKey, WorkerInfo
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, claim_one, ids, info, job, settle, state
from offload.testing.servers import RedisServer

pytestmark = pytest.mark.anyio

ONE = (SlotLimit("k", 1),)
PASSED_AT_ONCE = 2_000
"""Jobs that pass in one call after they have waited."""


async def enqueue_all(broker: RedisBroker, jobs: Sequence[Job]) -> None:
    for start in range(0, len(jobs), 1_000):
        await broker.enqueue(jobs[start : start + 1_000])


# --- what is left


async def test_nothing_is_left_of_keys_once_nobody_holds_them_or_waits(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    rate = RateLimit("r", 1_000_000, rule="of {r}")
    jobs = [job(clock, f"{n}", order_by="o", limits=(*ONE, rate), keep=0, delay=5 if n == 3 else None) for n in range(6)]
    await broker.enqueue([*jobs, job(clock, "held", order_by="d", on_dead="hold"), job(clock, "behind", order_by="d")])
    await broker.set_limit("k", LimitChange(paused=True))
    await broker.set_limit("k", LimitChange(paused=False))
    worker = WorkerInfo(name="w", host="here", pid=1, tasks={"greet": "async"}, limits=(rate,))
    async with broker.session(worker) as session:
        first, held = await claim(session)
        await session.settle([(first, Retried(1, whole_key=True)), (held, Dead("d"))])
        assert await broker.delete(["held"]) == {"held"}
        while await broker.counts() != {"default": {State.SUCCEEDED: 1}}:
            clock.advance(1)
            await session.maintain()
            await session.settle([(lease, Done()) for lease in await claim(session)])
        assert await broker.limits() == []
        clock.advance(31 * 86_400)
        await session.maintain()
    assert stored(each_redis, fresh_name).keys() == {"version", "pruned", "rules"}


async def test_a_dead_job_that_holds_its_turn_is_never_forgotten(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a", order_by="k", on_dead="hold"), job(clock, "b", order_by="k")])
    async with broker.session(info()) as session:
        await settle(session, await claim_one(session), Dead("d"))
        clock.advance(400 * 86_400)
        await session.maintain()
        assert await broker.retry(["a"]) == {"a"}
        assert ids(await claim(session)) == ["a"]


async def test_an_enqueue_that_is_refused_changes_nothing_at_any_gate(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    later, taken = UniqueKey("later", "started", "debounce"), UniqueKey("taken", on_conflict="raise")
    tick = UniqueKey("both", "started", "debounce")
    both = (*ONE, RateLimit("r", 60_000_000))
    await broker.enqueue([job(clock, "a", limits=ONE, unique=later), job(clock, "b", limits=ONE), job(clock, "taken", unique=taken)])
    await broker.enqueue([job(clock, "c", limits=both, order_by="o", unique=tick), job(clock, "d", limits=both, order_by="o")])
    before = stored(each_redis, fresh_name)
    again = [
        job(clock, "a2", limits=ONE, unique=later, delay=60),
        job(clock, "c2", unique=tick, delay=60),
        job(clock, "e", limits=both, order_by="new"),
        job(clock, "f", limits=(RateLimit("fresh", 1_000),)),
        job(clock, "g", limits=(RateLimit("fresh", 1_000),)),
        job(clock, "refused", unique=taken),
    ]
    with pytest.raises(UniqueConflict):
        await broker.enqueue(again)
    assert stored(each_redis, fresh_name) == before
    await broker.enqueue(again[:-1])
    assert await state(broker, "b") is State.READY


@pytest.mark.parametrize("key", ["lane:slot of k\nslot of l", "lane:slot of k", "parked:slot of k", "slots:slot of k"])
async def test_nothing_is_stored_where_the_key_of_a_gate_is_spoiled(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str, key: str
) -> None:
    each_redis.ask("SET", f"{{{fresh_name}}}:{key}", "something else")
    before = stored(each_redis, fresh_name)
    with pytest.raises(BrokerUnusable, match="not Offload's; keep jobs under another"):
        await broker.enqueue([job(clock, "a"), job(clock, "b", limits=(*ONE, SlotLimit("l", 1)))])
    assert stored(each_redis, fresh_name) == before


async def test_a_waiting_job_that_was_deleted_by_hand_stops_nobody(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await broker.enqueue([job(clock, id, limits=ONE) for id in ("a", "gone", "c")])
    each_redis.ask("HDEL", f"{{{fresh_name}}}:jobs", "gone")
    async with broker.session(info()) as session:
        await settle(session, await claim_one(session), Done())
        assert ids(await claim(session)) == ["c"]


# --- bounds


async def test_a_limit_that_is_raised_by_much_lets_jobs_pass_in_pieces(broker: RedisBroker, clock: TestClock) -> None:
    number = 2 * PASSED_AT_ONCE + 500
    await enqueue_all(broker, [job(clock, limits=ONE) for _ in range(number)])
    await broker.set_limit("k", LimitChange(n=number))
    ready = [(await broker.counts())["default"][State.READY]]
    async with broker.session(info()) as session:
        assert (await session.maintain()).wait == 0
        ready.append((await broker.counts())["default"][State.READY])
        assert len(await claim(session, 1)) == 1
        ready.append((await broker.counts())["default"][State.READY] + 1)
        assert (await session.maintain()).wait > 0
    assert ready == [1 + PASSED_AT_ONCE, 1 + 2 * PASSED_AT_ONCE, number]


async def test_a_rule_of_very_many_keys_is_looked_at_in_pieces(broker: RedisBroker, clock: TestClock) -> None:
    jobs = [job(clock, limits=(SlotLimit(f"tenant {n:04}", 1, "tenant {t}"),)) for n in range(2_500) for _ in range(2)]
    await enqueue_all(broker, jobs)
    worker = WorkerInfo(name="w", host="here", pid=1, tasks={"greet": "async"}, limits=(SlotLimit("tenant {t}", 2, "tenant {t}"),))
    async with broker.session(worker) as session:
        assert (await broker.counts())["default"][State.READY] == 3_500
        assert (await session.maintain()).wait == 0
        assert (await session.maintain()).wait > 0
    assert await broker.counts() == {"default": {State.READY: 5_000}}


async def test_gates_are_looked_at_once_for_all_limits_that_a_worker_declares(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer
) -> None:
    await broker.enqueue([job(clock, limits=(SlotLimit(f"k{n}", 1, "other"),)) for n in range(100) for _ in range(2)])

    async def cost(*limits: SlotLimit) -> int:
        before = calls(each_redis)
        async with broker.session(WorkerInfo(name="w", host="here", pid=1, tasks={"greet": "async"}, limits=limits)):
            return calls(each_redis) - before

    await cost()  # the first loads the script
    one = await cost(SlotLimit("r", 3, "r"))
    assert await cost(*(SlotLimit(f"r{n}", 3, f"r{n}") for n in range(30))) <= one + 30 * 3


async def test_what_is_declared_while_gates_are_looked_at_is_looked_for_at_all_of_them(broker: RedisBroker, clock: TestClock) -> None:
    rules = ("a", "b")
    for rule in rules:
        keys = [f"{rule} {n:04}" for n in range(750) for _ in range(2)]
        await enqueue_all(broker, [job(clock, limits=(SlotLimit(key, 1, rule),)) for key in keys])
    async with AsyncExitStack() as stack:
        for rule in rules:
            worker = WorkerInfo(name="w", host="here", pid=1, tasks={"greet": "async"}, limits=(SlotLimit(rule, 2, rule),))
            session = await stack.enter_async_context(broker.session(worker))
        assert (await broker.counts())["default"][State.READY] == 1_500 + 1_000
        assert (await session.maintain()).wait > 0
    assert await broker.counts() == {"default": {State.READY: 3_000}}


async def test_very_many_lanes_are_counted_and_found(broker: RedisBroker, clock: TestClock) -> None:
    await broker.set_limit("k", LimitChange(n=0))
    await enqueue_all(broker, [job(clock, f"{n}", limits=(SlotLimit(f"own {n}", 1), *ONE)) for n in range(1_500)])
    (found,) = await broker.limits()
    assert (found.n, found.held, found.waiting) == (0, 0, 1_500)
    standing = await broker.standing("1499")
    assert standing is not None
    assert [limit.key for limit in standing.limits] == ["k", "own 1499"]
    assert await broker.counts() == {"default": {State.WAITING: 1_500}}


# --- waking


async def test_a_job_that_must_wait_for_a_token_wakes_somebody_who_then_knows_how_long_to_sleep(
    broker: RedisBroker, clock: TestClock, rung: Rung
) -> None:
    async with broker.session(info("one")) as one, broker.session(info("two")) as two:
        rate = (RateLimit("r", 60_000_000),)
        await broker.enqueue([job(clock, "a", limits=rate)])
        assert await claim(two, 1)
        assert await claim(one) == []
        await broker.enqueue([job(clock, "b", limits=rate)])
        assert rung(one) == [True]


async def test_who_passes_in_a_fetch_wakes_nobody_but_for_the_rest(broker: RedisBroker, clock: TestClock, rung: Rung) -> None:
    rate = (RateLimit("r", 1_000_000, 2),)
    async with broker.session(info("one")) as one, broker.session(info("two")) as two:
        await broker.enqueue([job(clock, f"{n}", limits=rate) for n in range(4)])
        assert len(await claim(one)) == 2
        assert await claim(two) == []
        clock.advance(2)
        assert len(await claim(one)) == 2
        assert rung(two) == [False], "who took them all looks again itself"
        await broker.enqueue([job(clock, f"{n}", limits=rate) for n in range(4, 6)])
        assert await claim(two) == []
        clock.advance(2)
        assert len(await claim(one, 1)) == 1
        assert rung(two) == [True]


async def test_a_sleeper_wakes_when_a_token_comes(each_redis: RedisServer, fresh_name: str) -> None:
    broker = RedisBroker.connect(f"{each_redis.url}?prefix={fresh_name}", SystemClock())
    await broker.open()
    now = broker.clock.now()
    rate = (RateLimit("r", 300_000),)
    await broker.enqueue([Job(id=f"{n}", task="greet", enqueued_at=now, limits=rate) for n in range(2)])
    async with broker.session(info()) as session, asyncio.timeout(20):
        assert ids(await claim(session)) == ["0"]
        assert await claim(session) == []
        started = monotonic()
        await session.wait(60)
        slept = monotonic() - started
        assert slept < 1
        while not (leases := await claim(session)):
            await session.wait(60)
        assert ids(leases) == ["1"]
        shown = (await broker.get(["0", "1"])).values()
        first, second = [record.started_at for record in shown]
        assert first is not None
        assert second is not None
        assert second - first >= timedelta(seconds=0.28)
    await broker.close()


async def test_a_sleeper_that_waits_for_a_token_is_woken_by_other_work(broker: RedisBroker, clock: TestClock) -> None:
    async with broker.session(info()) as session, asyncio.timeout(20):
        await broker.enqueue([job(clock, f"{n}", limits=(RateLimit("r", 3_600_000_000),)) for n in range(2)])
        assert len(await claim(session)) == 1
        assert await claim(session) == []
        started = monotonic()
        waiting = asyncio.create_task(session.wait(60))
        await broker.enqueue([job(clock, "plain")])
        await waiting
        assert monotonic() - started < 1.5
        assert ids(await claim(session)) == ["plain"]


# --- what a key costs


KEYS = 50
COMMANDS = {"order": 5.5, "slot": 6.5}
"""At most so many commands for all of a job's way past its gate; each costs about as much as processing a tenth of a job without a key."""


@pytest.mark.parametrize("kind", ["order", "slot"])
async def test_a_job_with_one_key_costs_few_commands(broker: RedisBroker, clock: TestClock, each_redis: RedisServer, kind: str) -> None:
    keys = [f"k{number % KEYS}" for number in range(20 * KEYS)]
    if kind == "order":
        jobs = [job(clock, order_by=key, keep=0) for key in keys]
    else:
        jobs = [job(clock, limits=(SlotLimit(key, 1),), keep=0) for key in keys]
    await broker.enqueue(jobs)
    async with broker.session(info()) as session:
        before, done = calls(each_redis), 0
        while leases := await claim(session):
            done += len(leases)
            await session.settle([(lease, Done()) for lease in leases])
        assert done == len(jobs)
        assert (calls(each_redis) - before) / done <= COMMANDS[kind]


async def test_a_line_of_one_key_takes_up_nothing_but_its_jobs(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await broker.enqueue([job(clock, order_by="k") for _ in range(3)])
    assert not stored(each_redis, fresh_name).keys() & {"lanes", "parked:turn of k", "gates", "wakes", "past"}
