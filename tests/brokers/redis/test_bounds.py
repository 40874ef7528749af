"""No call holds up the server for long, however much there is: what it looks at, reads and moves is bounded, and nothing is missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.brokers.redis.conftest import Rung

from offload.brokers.redis import RedisBroker
from offload.brokers.redis.session import RedisSession
from offload.errors import IdConflict
from offload.job import Dead, Done, Isolation, Job, State, UniqueKey, WorkerInfo
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import ROOM, claim, claim_one, ids, info, job, live, settle
from offload.testing.servers import RedisServer

pytestmark = pytest.mark.anyio

WORKER = WorkerInfo(name="w", host="here", pid=1, tasks={"greet": "async", "sync": "thread", "heavy": "process"})
NO_THREADS: dict[Isolation, int] = {"async": 10, "thread": 0, "process": 10}
QUEUES = [f"q{number:03}" for number in range(300)]
BARREN = 40
"""Jobs for which there is no room in each of the queues."""
MOST = 2_000
"""Jobs that one call may look at in vain: a thousand, and those of the queue with which it comes to a thousand."""


async def enqueue_all(broker: RedisBroker, jobs: Sequence[Job]) -> None:
    for start in range(0, len(jobs), 1_000):
        await broker.enqueue(jobs[start : start + 1_000])


@pytest.fixture
async def barren(broker: RedisBroker, clock: TestClock) -> None:
    """Hundreds of queues that hold nothing but jobs for threads."""
    await enqueue_all(broker, [job(clock, task="sync", queue=queue) for queue in QUEUES for _ in range(BARREN)])


def large(clock: TestClock, id: str, **fields: Any) -> Job:
    return job(clock, id, payload=b'{"text":"' + id.encode() + b"x" * 20_000 + b'"}', **fields)


# --- many queues


@pytest.mark.usefixtures("barren")
@pytest.mark.parametrize("named", [(), QUEUES], ids=["all queues", "named queues"])
async def test_what_one_call_looks_at_in_vain_is_bounded_over_all_queues(broker: RedisBroker, named: Sequence[str]) -> None:
    async with broker.session(WORKER) as session:
        come_to: list[str] = []
        taken, rest = await session._claim(named, 10, NO_THREADS, 0, goes_on=False)
        left = QUEUES
        while True:
            assert taken == []
            now = left[: len(left) - len(rest)]
            assert 0 < len(now) * BARREN <= MOST
            come_to += now
            left = [queue.decode() for queue in rest]
            if not rest:
                break
            taken, rest = await session._claim(rest, 10, NO_THREADS, 0, goes_on=True)
        assert come_to == QUEUES


async def test_queues_of_few_jobs_count_as_well(broker: RedisBroker, clock: TestClock) -> None:
    await enqueue_all(broker, [job(clock, task="sync", queue=queue) for queue in QUEUES])
    async with broker.session(WORKER) as session:
        _, rest = await session._claim((), 10, NO_THREADS, 0, goes_on=False)
        assert rest


@pytest.mark.usefixtures("barren")
@pytest.mark.parametrize("named", [None, QUEUES], ids=["all queues", "named queues"])
async def test_a_job_behind_hundreds_of_barren_queues_is_reached(
    broker: RedisBroker, clock: TestClock, named: Sequence[str] | None
) -> None:
    await broker.enqueue([job(clock, "first", queue="q100"), job(clock, "last", queue="q299")])
    async with broker.session(WORKER) as session:
        assert ids(await claim(session, 10, named, NO_THREADS)) == ["first", "last"]
        assert await claim(session, 10, named, NO_THREADS) == []
    counts = await broker.counts()
    assert sum(states[State.READY] for states in counts.values()) == len(QUEUES) * BARREN + 2


@pytest.mark.usefixtures("barren")
async def test_no_queue_is_left_out_between_two_calls(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, f"in {queue}", queue=queue) for queue in QUEUES])
    async with broker.session(WORKER) as session:
        assert ids(await claim(session, 1_000, None, {**NO_THREADS, "async": 1_000})) == [f"in {queue}" for queue in QUEUES]


@pytest.mark.usefixtures("barren")
async def test_a_job_that_comes_to_a_queue_already_looked_at_rings(
    broker: RedisBroker, clock: TestClock, rung: Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broker.session(WORKER) as session:
        calls: list[bool] = []
        look = session._claim

        async def look_and_enqueue(*words: Any, goes_on: bool) -> Any:
            answer = await look(*words, goes_on=goes_on)
            if not goes_on:
                await broker.enqueue([job(clock, "late", queue="q000")])
            calls.append(goes_on)
            return answer

        monkeypatch.setattr(session, "_claim", look_and_enqueue)
        assert await claim(session, 10, None, NO_THREADS) == []
        assert calls[:2] == [False, True]
        assert rung(session) == [True]
        monkeypatch.undo()
        assert ids(await claim(session, 10, ["q000"], NO_THREADS)) == ["late"]


@pytest.mark.usefixtures("barren")
async def test_after_a_search_in_vain_the_session_sleeps_and_is_woken(broker: RedisBroker, clock: TestClock, rung: Rung) -> None:
    async with broker.session(WORKER) as session:
        assert await claim(session, 10, None, NO_THREADS) == []
        assert rung(session) == [False]
        await broker.enqueue([job(clock, "a", queue="q150")])
        assert rung(session) == [True]
        assert ids(await claim(session, 10, None, NO_THREADS)) == ["a"]
        assert rung(session) == [False]


@pytest.mark.usefixtures("barren")
async def test_what_earlier_calls_of_a_fetch_took_counts_against_limit_and_room(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, f"{queue}-{n}", queue=queue, priority=1) for queue in ("q000", "q299") for n in range(2)])
    async with broker.session(WORKER) as session:
        assert ids(await claim(session, 3, QUEUES, NO_THREADS)) == ["q000-0", "q000-1", "q299-0"]
    async with broker.session(WORKER) as session:
        assert ids(await claim(session, 10, QUEUES, {**NO_THREADS, "async": 3})) == ["q000-0", "q000-1", "q299-0"]


@pytest.mark.usefixtures("barren")
async def test_a_job_that_crashed_twice_counts_as_one_for_a_process(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "crashing", queue="q000", priority=1), job(clock, "heavy", task="heavy", queue="q299")])
    async with broker.session(WORKER) as alive:
        for _ in range(2):
            async with broker.session(WORKER) as frozen:
                assert ids(await claim(frozen, 1, ["q000"])) == ["crashing"]
                await live(clock, 15, alive)
                await alive.maintain()
        assert ids(await claim(alive, 10, QUEUES, {"async": 10, "thread": 0, "process": 1})) == ["crashing"]


async def test_a_fetch_of_more_than_a_thousand_keeps_to_the_room(broker: RedisBroker, clock: TestClock) -> None:
    await enqueue_all(broker, [job(clock) for _ in range(2_500)])
    async with broker.session(WORKER) as session:
        assert len(await claim(session, 2_200, None, {**ROOM, "async": 1_500})) == 1_500


async def test_aside_lines_of_many_queues_are_served_in_their_places(broker: RedisBroker, clock: TestClock) -> None:
    queues = ["a", "a-b", "b"]
    await broker.enqueue([job(clock, f"{task}-{queue}", task=task, queue=queue) for queue in queues for task in ("new", "newer", "sync")])
    async with broker.session(info("old")) as old, broker.session(info("new", "new", "sync")) as new:
        assert await claim(old) == []
        assert ids(await claim(new)) == [f"{task}-{queue}" for queue in queues for task in ("new", "sync")]
        assert (await broker.inspect()).aside == {"newer": 3}


# --- large payloads


async def test_who_passes_over_large_jobs_does_not_read_their_payloads(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await broker.enqueue([*(large(clock, f"large{number}", task="sync") for number in range(20)), job(clock, "a")])
    for number in range(20):
        each_redis.ask("HDEL", f"{{{fresh_name}}}:jobs", f"large{number}")  # who reads them finds that they are gone, and drops them
    async with broker.session(WORKER) as session:
        assert ids(await claim(session, 1, None, NO_THREADS)) == ["a"]
        assert await broker.counts() == {"default": {State.READY: 20, State.RUNNING: 1}}


async def test_large_jobs_are_claimed_with_their_payloads(broker: RedisBroker, clock: TestClock) -> None:
    jobs = [
        large(clock, "plain"),
        job(clock, "small"),
        large(clock, "rare", timeout=5),
        large(clock, "keyed", unique=UniqueKey("k")),
        large(clock, "aside", task="sync"),
    ]
    await broker.enqueue(jobs)
    async with broker.session(info()) as old, broker.session(WORKER) as session:
        for _ in range(2):
            assert [lease.job for lease in await claim(old)] == jobs[:4]
            assert await old.retain([]) == 4
        assert [lease.job for lease in await claim(session)] == jobs
    assert {id: record.payload for id, record in (await broker.get(ids(jobs))).items()} == {each.id: each.payload for each in jobs}


async def test_a_large_job_is_known_again_and_revived_with_its_payload(broker: RedisBroker, clock: TestClock) -> None:
    sent = large(clock, "a")
    assert await broker.enqueue([sent]) == await broker.enqueue([sent]) == ["a"]
    with pytest.raises(IdConflict):
        await broker.enqueue([job(clock, "a")])
    async with broker.session(WORKER) as session:
        await settle(session, await claim_one(session), Dead("bad"))
        assert await broker.retry(["a"]) == {"a"}
        assert (await claim_one(session)).job.payload == sent.payload


async def test_a_payload_that_becomes_large_or_small_is_the_one_that_is_claimed(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    key = UniqueKey("k", "started", "replace")
    small, big = job(clock, "small", unique=key, payload=b'{"n":1}'), large(clock, "big", unique=key)
    async with broker.session(WORKER) as session:
        for first, last in ((small, big), (big, small)):
            for sent in (first, last):
                assert await broker.enqueue([sent]) == [first.id]
                assert each_redis.ask("HLEN", f"{{{fresh_name}}}:outlines") == int(sent is big)
            lease = await claim_one(session)
            assert lease.job.payload == last.payload
            await settle(session, lease, Done())
            await broker.delete([first.id])


async def test_large_jobs_that_an_earlier_version_stored_have_no_outline_and_run(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    jobs = [large(clock, "earlier"), large(clock, "now")]
    await broker.enqueue(jobs)
    each_redis.ask("HDEL", f"{{{fresh_name}}}:outlines", "earlier")
    async with broker.session(WORKER) as session:
        assert [lease.job for lease in await claim(session)] == jobs


# --- upkeep


async def test_upkeep_takes_about_a_thousand_jobs_at_once_from_workers_that_left(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await enqueue_all(broker, [job(clock) for _ in range(2_400)])
    async with broker.session(WORKER) as session:
        for number in range(8):
            await claim(session, 300)
            each_redis.ask("RENAME", f"{{{fresh_name}}}:running:{session.id}", f"{{{fresh_name}}}:running:left{number}")
            each_redis.ask("HSET", f"{{{fresh_name}}}:orphans", f"left{number}", "left\nw")
        assert (await session.maintain()).wait == 0
        assert await broker.counts() == {"default": {State.READY: 1_200, State.RUNNING: 1_200}}
        await until_done(session)
    assert await broker.counts() == {"default": {State.READY: 2_400}}


async def test_keys_that_nobody_asks_for_are_dropped_however_many(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await enqueue_all(broker, [job(clock, unique=UniqueKey(f"k{number}", until=60.0)) for number in range(1_500)])
    clock.advance(86_400 + 61)
    async with broker.session(WORKER) as session:
        await until_done(session)
    assert each_redis.ask("HLEN", f"{{{fresh_name}}}:keys") == 0


async def until_done(session: RedisSession) -> None:
    """Upkeep as a worker does it: again at once as long as it says so."""
    while (await session.maintain()).wait == 0:
        pass
