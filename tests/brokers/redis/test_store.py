"""What lies in the server: nothing is left behind, foreign keys and newer schemas are refused, and an emptied server is lived through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.conftest import Eventually

from offload import Offload
from offload.brokers.redis import RedisBroker
from offload.clock import SystemClock
from offload.errors import BrokerUnusable, SchemaTooNew
from offload.job import Dead, Done, Progress, Pulse, Retried, State, UniqueKey
from offload.records import Filter
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, failure, ids, info, job, live, rule, tick_job
from offload.testing.servers import RedisServer, valkey
from offload.worker import Worker

pytestmark = pytest.mark.anyio


def keys(server: RedisServer, prefix: str) -> set[str]:
    found = server.ask("KEYS", f"{{{prefix}}}:*")
    assert isinstance(found, list)
    return {key.decode().partition(":")[2] for key in found if isinstance(key, bytes)}


async def test_nothing_is_left_of_jobs_that_are_forgotten_and_sessions_that_left(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    day = UniqueKey("day", until=60.0)
    plain = [job(clock, queue=queue, keep=keep, payload=b'"' + b"x" * 20_000 + b'"') for queue in ("a", "b") for keep in (0, 5)]
    rare = [
        job(clock, delay=5, keep=0),
        job(clock, expires_in=2),
        job(clock, unique=day, keep=0),
        job(clock, "k1", unique=UniqueKey("k", on_conflict="keep_last")),
        job(clock, "k2", unique=UniqueKey("k", on_conflict="keep_last")),
        job(clock, "dead"),
        job(clock, "again"),
        job(clock, task="unknown"),
    ]
    await broker.schedule(rule(), clock.now())
    await broker.fire("report", tick_job(clock, rule()))
    clock.advance(2)
    async with broker.session(info("old", schedules=[(rule("nightly"), clock.now())])) as session, asyncio.timeout(60):
        await broker.enqueue([*plain, *rare])
        leases = await claim(session)
        await session.beat(Pulse(tuple((lease, Progress(0.5)) for lease in leases)))
        for lease in leases:
            await session.remember(lease, "step", b"1")
        ends = {"dead": Dead("d", failure(clock)), "again": Retried(0, failure(clock))}
        await session.settle([(lease, ends.get(lease.job.id, Done(b"1"))) for lease in leases])
        await broker.cancel(["k2"])
    async with broker.session(info("knows all", "greet", "unknown")) as session:
        clock.advance(10)
        await session.maintain()
        await session.settle([(lease, Done()) for lease in await claim(session)])
        await broker.unschedule("report")
        await broker.unschedule("nightly")
        clock.advance(31 * 86_400)
        while (await session.maintain()).wait == 0:
            pass
    assert await broker.counts() == {}
    assert await broker.find(Filter(), 100) == []
    assert keys(each_redis, fresh_name) == {"version", "sequence", "pruned"}


async def test_two_prefixes_on_one_server_know_nothing_of_each_other(
    each_redis: RedisServer, broker: RedisBroker, clock: TestClock
) -> None:
    other = RedisBroker.connect(f"{each_redis.url}?prefix=another", clock)
    await other.open()
    await other.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        assert await claim(session) == []
        assert len(await broker.sessions()) == 1
        assert await other.sessions() == []
    assert await other.delete(["a"]) == {"a"}
    await other.close()


async def test_a_key_that_is_not_ours_is_named(broker: RedisBroker, each_redis: RedisServer, fresh_name: str) -> None:
    each_redis.ask("SET", f"{{{fresh_name}}}:jobs", "something else")
    with pytest.raises(BrokerUnusable, match=rf"\{{{fresh_name}\}}:jobs holds a string .* \?prefix="):
        await broker.client().open()


async def test_jobs_of_a_newer_version_are_refused(broker: RedisBroker, each_redis: RedisServer, fresh_name: str) -> None:
    each_redis.ask("SET", f"{{{fresh_name}}}:version", "9")
    with pytest.raises(SchemaTooNew, match="schema 9; this one knows 1: upgrade"):
        await broker.client().open()


async def test_a_worker_lives_through_an_emptied_server(started: Callable[[Any], RedisServer], eventually: Eventually) -> None:
    server = started(valkey)
    app = Offload(server.url, heartbeat=0.2)
    ran: list[int] = []

    @app.task
    async def note(number: int) -> None:
        ran.append(number)

    async with Worker(app):
        await note.aenqueue(1)
        await eventually(lambda: ran == [1])
        server.ask("FLUSHALL")
        server.ask("SCRIPT", "FLUSH")
        await eventually(lambda: server.ask("EXISTS", "{offload}:sessions") == 1)
        await note.aenqueue(2)
        await eventually(lambda: ran == [1, 2])


async def test_a_duration_key_that_nobody_asks_for_is_dropped_a_day_after_its_time(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await broker.enqueue([job(clock, "a", unique=UniqueKey("k", until=60.0))])
    async with broker.session(info()) as session:
        clock.advance(86_400)
        await session.maintain()
        assert each_redis.ask("HLEN", f"{{{fresh_name}}}:keys") == 1
        clock.advance(61)
        await session.maintain()
        assert each_redis.ask("HLEN", f"{{{fresh_name}}}:keys") == 0
        assert each_redis.ask("EXISTS", f"{{{fresh_name}}}:freeing") == 0


async def test_times_are_the_servers_own(each_redis: RedisServer, fresh_name: str) -> None:
    broker = RedisBroker.connect(f"{each_redis.url}?prefix={fresh_name}", SystemClock())
    await broker.open()
    async with broker.session(info()) as session:
        assert (await session.beat(Pulse())).alive
        (shown,) = await broker.sessions()
    told = each_redis.ask("TIME")
    assert isinstance(told, list)
    assert isinstance(told[0], bytes)
    assert abs(shown.beat_at.timestamp() - int(told[0])) < 5
    await broker.close()


async def test_a_page_goes_on_where_a_job_was_that_is_gone(broker: RedisBroker, clock: TestClock) -> None:
    for number in range(450):
        await broker.enqueue([job(clock, f"j{number:03}")])
        clock.advance(1)
    script = broker._script
    place = await script.ask("seat", "j300")
    await broker.delete(["j300"])
    _, _, found = await script.ask("walk", 3, b"\x80", *place)
    assert [id.decode() for id in found] == ["j299", "j298", "j297"]
    assert ids(await broker.find(Filter(), 1_000)) == [f"j{number:03}" for number in reversed(range(450)) if number != 300]


async def test_jobs_in_a_rare_state_are_found_beside_many_others(broker: RedisBroker, clock: TestClock) -> None:
    key = UniqueKey("k", on_conflict="keep_last")
    await broker.enqueue([job(clock, f"old{number:04}", delay=5) for number in range(1_000)])
    await broker.enqueue([job(clock, name, queue=name[0]) for name in ("a1", "a2", "b1")])
    await broker.enqueue([job(clock, name, unique=key) for name in ("holder", "waiting")])
    await broker.enqueue([job(clock, f"new{number:04}", delay=5) for number in range(1_000)])
    async with broker.session(info()) as session:
        assert ids(await claim(session, 1, ["a"])) == ["a1"]
        assert ids(await broker.find(Filter(state=State.READY), 10)) == ["holder", "b1", "a2"]
        assert ids(await broker.find(Filter(state=State.READY), 10, after="holder")) == ["b1", "a2"]
        assert ids(await broker.find(Filter(state=State.READY, queue="b"), 10)) == ["b1"]
        assert ids(await broker.find(Filter(state=State.RUNNING), 10)) == ["a1"]
        assert ids(await broker.find(Filter(state=State.WAITING, key="k"), 10)) == ["waiting"]
        assert await broker.find(Filter(state=State.DEAD), 10) == []
    assert ids(await broker.find(Filter(state=State.SCHEDULED), 2)) == ["new0999", "new0998"]
    assert ids(await broker.find(Filter(state=State.SCHEDULED), 1, after="new0000")) == ["old0999"]
    assert len(await broker.find(Filter(state=State.SCHEDULED), 10_000)) == 2_000


async def test_a_key_that_is_spoiled_under_way_is_explained(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    each_redis.ask("SET", f"{{{fresh_name}}}:ready:default", "something else")
    with pytest.raises(BrokerUnusable, match="not Offload's; keep jobs under another"):
        await broker.enqueue([job(clock)])


@pytest.mark.parametrize("unique", [None, UniqueKey("k", on_conflict="keep_last")], ids=["plain jobs", "jobs with keys"])
async def test_nothing_is_stored_where_a_key_is_spoiled(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str, unique: UniqueKey | None
) -> None:
    ready = f"{{{fresh_name}}}:ready:spoiled"
    jobs = [job(clock, "a", unique=unique), job(clock, "b", unique=unique), job(clock, "c", queue="spoiled", timeout=unique and 5)]
    each_redis.ask("SET", ready, "something else")
    before = keys(each_redis, fresh_name) - {"sequence"}
    with pytest.raises(BrokerUnusable, match="not Offload's; keep jobs under another"):
        await broker.enqueue(jobs)
    assert keys(each_redis, fresh_name) - {"sequence"} == before
    each_redis.ask("DEL", ready)
    assert await broker.enqueue(jobs) == ["a", "b", "c"]
    assert ids(await broker.find(Filter(state=State.READY, queue="spoiled"), 10)) == ["c"]


async def test_a_session_with_very_many_jobs_hands_all_back(broker: RedisBroker, clock: TestClock) -> None:
    number = 20_000
    for start in range(0, number, 4_000):
        await broker.enqueue([job(clock, f"j{start + place}") for place in range(4_000)])
    async with asyncio.timeout(20), broker.session(info()) as session:
        taken = 0
        while leases := await claim(session):
            taken += len(leases)
        assert taken == number
    assert await broker.counts() == {"default": {State.READY: number}}


async def test_a_session_of_which_nothing_is_known_any_more_ends_all_the_same(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info("other")) as other, broker.session(info("lost")) as lost:
        await claim(lost)
        each_redis.ask("DEL", f"{{{fresh_name}}}:session:{lost.id}")
        assert [shown.id for shown in await broker.sessions()] == [other.id]
        assert ids((await broker.get(["a"])).values()) == ["a"]
        assert await live(clock, 60, other)
        assert ids((await other.maintain()).touched) == ["a"]
        assert each_redis.ask("HLEN", f"{{{fresh_name}}}:beats") == 1
        assert ids(await claim(other)) == ["a"]


async def test_a_session_of_which_nothing_is_known_any_more_leaves(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await broker.enqueue([job(clock, "a")])
    async with asyncio.timeout(10), broker.session(info()) as lost:
        await claim(lost)
        each_redis.ask("DEL", f"{{{fresh_name}}}:session:{lost.id}")
    assert await broker.counts() == {"default": {State.READY: 1}}


async def test_migrate_tells_whether_a_schema_was_there(each_redis: RedisServer, fresh_name: str) -> None:
    url = f"{each_redis.url}?prefix={fresh_name}"
    app = Offload(url)
    assert await app.amigrate() == (0, 1)
    assert await app.amigrate() == (1, 1)
    await app.aclose()
    broker = RedisBroker.connect(url, SystemClock())
    assert await broker.migrate() == (1, 1), "one that is not open"


async def test_whose_successor_was_deleted_by_hand_ends_all_the_same(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    last = UniqueKey("k", on_conflict="keep_last")
    await broker.enqueue([job(clock, id, unique=last) for id in ("a", "gone")])
    each_redis.ask("HDEL", f"{{{fresh_name}}}:jobs", "gone")
    assert await broker.enqueue([job(clock, "c", unique=last)]) == ["c"]
    each_redis.ask("HDEL", f"{{{fresh_name}}}:jobs", "c")
    async with broker.session(info()) as session:
        (lease,) = await claim(session)
        assert await session.settle([(lease, Done())]) == []
        assert await broker.enqueue([job(clock, "d", unique=last)]) == ["d"]
        assert ids(await claim(session)) == ["d"]
