"""Connections that break in mid-call, servers that die and come back, and databases that cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import psycopg
import pytest
from tests.brokers.postgres.conftest import Ask, Opens
from tests.conftest import Eventually, Starts

from offload.brokers.postgres import PostgresBroker
from offload.brokers.postgres.migrating import SCHEMA
from offload.errors import BrokerError, BrokerUnusable, SchemaTooNew
from offload.job import Done, Isolation, Lease, Pulse, State, UniqueKey
from offload.testing.clock import START, TestClock
from offload.testing.contract.fixtures import ROOM, claim, claim_one, ids, info, job, rule, tick_job
from offload.testing.servers import PostgresServer, Proxy, postgres
from offload.testing.servers.process import free_port

pytestmark = pytest.mark.anyio
T = TypeVar("T")

CUTS = [(0, False), (200, False), (800, False), (0, True), (5, True), (60, True)]
"""Where a connection breaks: after so many bytes to the server, or (True) of its answers."""
cut_anywhere = pytest.mark.parametrize(("count", "answers"), CUTS)


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
async def shaky(proxy: Proxy, url: str, opens: Opens) -> PostgresBroker:
    """A broker whose connections lead through the proxy."""
    return await opens(proxy.through(url))


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """What callers do when a connection breaks: they call again."""
    while True:
        try:
            return await call()
        except BrokerUnusable:
            raise
        except BrokerError:
            await asyncio.sleep(0.01)


@cut_anywhere
async def test_an_enqueue_that_is_cut_stores_all_once(
    shaky: PostgresBroker, proxy: Proxy, clock: TestClock, count: int, answers: bool
) -> None:
    await shaky.enqueue([job(clock, "before")])
    names = [f"{n}" for n in range(50)]
    proxy.cut_after(count, answers=answers)
    assert await shaky.enqueue([job(clock, name, unique=UniqueKey(name)) for name in names]) == names
    assert proxy.cuts == 1
    assert await shaky.counts() == {"default": {State.READY: 51}}


@cut_anywhere
async def test_a_claim_that_is_cut_loses_nothing(
    shaky: PostgresBroker, proxy: Proxy, clock: TestClock, ask: Ask, count: int, answers: bool
) -> None:
    names = [f"{n}" for n in range(60)]
    await shaky.enqueue([job(clock, name) for name in names])
    async with shaky.session(info()) as session:
        held = await claim(session, 5)
        rooms: list[dict[Isolation, int]] = [ROOM, {"async": 1, "thread": 0, "process": 0}]
        for room in rooms:  # by one statement, and with care
            proxy.cut_after(count, answers=answers)
            with pytest.raises(BrokerError):
                while True:
                    held += await session.fetch(["default"], 2, room)
                    assert len(held) < len(names), "nothing was cut"
            await again(partial(session.retain, held))
        held += await again(lambda: claim(session))
        assert sorted(ids(held)) == sorted(names)
        assert {lease.attempt for lease in held} == {1}
        assert await again(lambda: session.settle([(lease, Done()) for lease in held])) == []
    assert ask("select count(*) from running") == [(0,)]
    assert await shaky.counts() == {"default": {State.SUCCEEDED: 60}}


@cut_anywhere
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "with keys"])
async def test_a_settle_that_is_cut_may_be_repeated(
    shaky: PostgresBroker, proxy: Proxy, clock: TestClock, count: int, answers: bool, keyed: bool
) -> None:
    await shaky.enqueue([job(clock, f"{n}", unique=UniqueKey(f"{n}") if keyed else None) for n in range(30)])
    async with shaky.session(info()) as session:
        held = await claim(session)
        proxy.cut_after(count, answers=answers)
        with pytest.raises(BrokerError):
            for lease in held:
                assert await session.settle([(lease, Done(b"1"))]) == []
        lost: list[Lease] = []
        for lease in held:
            lost += await again(lambda lease=lease: session.settle([(lease, Done(b"1"))]))
        assert {(await shaky.get([lease.job.id]))[lease.job.id].result for lease in lost} <= {1}
    assert proxy.cuts == 1
    assert await shaky.counts() == {"default": {State.SUCCEEDED: 30}}


@cut_anywhere
async def test_what_else_is_cut_may_be_repeated(shaky: PostgresBroker, proxy: Proxy, clock: TestClock, count: int, answers: bool) -> None:
    await shaky.enqueue([job(clock, f"{n}", delay=5) for n in range(20)])
    await shaky.schedule(rule(), START)
    async with shaky.session(info()) as session:
        (due,) = await session.due()

        async def cut(call: Callable[[], Awaitable[T]]) -> T:
            before = proxy.cuts
            proxy.cut_after(count, answers=answers)
            while proxy.cuts == before:
                try:
                    await call()
                except BrokerError:
                    break
            return await again(call)

        await cut(lambda: session.tick(due, START + timedelta(minutes=1), [tick_job(clock, due.schedule, "tick")]))
        assert [each.fired for each in await shaky.schedules()] == [1]
        await cut(lambda: shaky.cancel(["0", "1"]))
        await cut(lambda: shaky.retry(["0"]))
        await cut(lambda: shaky.delete(["1"]))
        clock.advance(5)
        await cut(session.maintain)
        assert (await cut(lambda: session.beat(Pulse()))).alive
        assert sorted(ids(await claim(session))) == sorted(["tick", "0", *(f"{n}" for n in range(2, 20))])
    assert await shaky.counts() == {"default": {State.READY: 20}}


async def test_a_network_that_is_silent_is_given_up_by_producers(proxy: Proxy, url: str, clock: TestClock) -> None:
    broker = PostgresBroker.connect(proxy.through(url) + "&timeout=0.5", clock)
    await broker.open()
    proxy.freeze()
    async with asyncio.timeout(10):
        with pytest.raises(BrokerError, match=r"0\.5 s"):
            await broker.enqueue([job(clock, "a")])
    proxy.thaw()
    assert await again(lambda: broker.enqueue([job(clock, "a")])) == ["a"]
    assert await broker.counts() == {"default": {State.READY: 1}}
    await broker.close()


@pytest.mark.process
async def test_a_server_that_is_killed_and_comes_back_has_lost_nothing(started: Starts[PostgresServer], clock: TestClock) -> None:
    server = started(lambda: postgres(durable=True))
    broker = PostgresBroker.connect(f"{server.url}?timeout=30", clock)
    await broker.open()
    await broker.enqueue([job(clock, f"{n}") for n in range(20)])
    async with broker.session(info()) as session:
        held = await claim(session, 7)
        await session.beat(Pulse())
        for _ in range(2):
            server.kill()
            with pytest.raises(BrokerError) as raised:
                await session.settle([(held[0], Done())])
            assert not isinstance(raised.value, BrokerUnusable)
            late = asyncio.ensure_future(broker.enqueue([job(clock, f"late-{held[0].job.id}")]))
            await asyncio.to_thread(server.start)
            await late
            assert await again(lambda: session.settle([(held.pop(0), Done())])) == []
            assert (await again(lambda: session.beat(Pulse()))).alive
        held += await again(lambda: claim(session))
        assert len(held) == 20
        assert await again(lambda: session.settle([(lease, Done()) for lease in held])) == []
    assert await broker.counts() == {"default": {State.SUCCEEDED: 22}}
    await broker.close()


async def test_a_server_that_is_not_there_is_tried_for_the_time_stated(clock: TestClock) -> None:
    broker = PostgresBroker.connect(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres", clock)
    with pytest.raises(BrokerError) as raised:
        await broker.open()
    assert not isinstance(raised.value, BrokerUnusable), "it may come"
    assert isinstance(raised.value.__cause__, psycopg.OperationalError)
    assert str(raised.value).endswith("Connection refused; is the server running? check OFFLOAD_URL")


async def refused(url: str, clock: TestClock) -> str:
    """Why a person must act before a broker can be opened at `url`."""
    broker = PostgresBroker.connect(url, clock)
    with pytest.raises(BrokerUnusable) as raised:
        await broker.open()
        await broker.counts()  # a client that may not make its schema can be opened, to be told to `migrate`
    await broker.close()
    return str(raised.value)


async def test_a_wrong_password_is_told_without_repeating_it(
    started: Starts[PostgresServer], clock: TestClock, eventually: Eventually
) -> None:
    server = started(postgres)
    server.ask("set password_encryption = 'scram-sha-256'")
    server.ask("create role shop login password 'right'")
    rules = server.data / "pg_hba.conf"
    rules.write_text("host all shop 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    server.ask("select pg_reload_conf()")
    url = server.url.replace("postgres@", "shop:wrong@")

    async def said_no() -> str | None:
        said = await refused(f"{url}?schema=s1", clock)
        return said if "password authentication failed" in said else None

    said = await eventually(said_no)  # once the rule counts
    assert "check user and password" in said
    assert "wrong@" not in said
    assert "permission denied" in await refused(url.replace("wrong", "right"), clock)
    server.ask("grant create on database postgres to shop")
    broker = PostgresBroker.connect(url.replace("wrong", "right"), clock)
    await broker.open()
    await broker.close()


async def test_a_database_that_does_not_exist_is_told(server: PostgresServer, clock: TestClock) -> None:
    assert 'database "nowhere" does not exist' in await refused(server.url_of("nowhere"), clock)


async def test_a_newer_schema_is_refused(broker: PostgresBroker, url: str, clock: TestClock, ask: Ask) -> None:
    ask("update store set version = 99")
    with pytest.raises(SchemaTooNew, match=f"has version 99, and this version of Offload knows {SCHEMA}; upgrade"):
        await PostgresBroker.connect(url, clock).open()
    with pytest.raises(SchemaTooNew):
        await PostgresBroker.connect(url, clock).migrate()


async def test_with_migrate_false_nothing_is_made(url: str, clock: TestClock, server: PostgresServer, schema: str) -> None:
    broker = PostgresBroker.connect(f"{url}&migrate=false", clock)
    await broker.open()
    for call in (lambda: broker.enqueue([job(clock)]), broker.counts):
        with pytest.raises(BrokerUnusable, match=f"schema {schema!r} is not there and may not be made here") as raised:
            await call()
        assert "is this the right database? `offload migrate` makes it" in str(raised.value)
    assert server.ask(f"select 1 from pg_namespace where nspname = '{schema}'") == []
    assert await broker.migrate() == (0, SCHEMA)
    assert await broker.migrate() == (SCHEMA, SCHEMA)
    await broker.enqueue([job(clock)])
    await broker.close()


async def test_a_database_that_only_reads_takes_no_jobs(broker: PostgresBroker, url: str, clock: TestClock) -> None:
    only_reads = f"{url}&options={quote('-c default_transaction_read_only=on')}"
    reader = PostgresBroker.connect(only_reads, clock)
    await reader.open()
    with pytest.raises(BrokerUnusable, match="connect to the primary"):
        await reader.enqueue([job(clock)])
    assert await reader.counts() == {}
    await reader.close()


def turn_read_only(server: PostgresServer, database: str, on: bool) -> None:
    """Turn a database read-only, or back, as managed services do in a failover: all connections to it end."""
    server.ask(f"alter database {database} set default_transaction_read_only = {'on' if on else 'off'}")
    server.ask(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'")


async def test_a_database_that_turns_read_only_is_waited_for_by_who_has_worked_with_it(server: PostgresServer, clock: TestClock) -> None:
    database = server.database().rpartition("/")[2]
    broker = PostgresBroker.connect(f"{server.url_of(database)}?timeout=30", clock)
    await broker.open()
    turn = partial(turn_read_only, server, database)
    async with broker.session(info()) as session:
        await broker.enqueue([job(clock, "a")])
        (held,) = await claim(session)
        turn(True)
        for call in (partial(session.settle, [(held, Done())]), session.maintain, partial(claim, session)):
            while True:  # the first may meet no more than its connection's end
                with pytest.raises(BrokerError) as raised:
                    await call()
                assert not isinstance(raised.value, BrokerUnusable)
                if "read-only" in str(raised.value):
                    break
        other = broker.client()
        await other.open()  # as a loop that begins in mid-failover does
        late = [asyncio.ensure_future(each.enqueue([job(clock, name)])) for each, name in ((broker, "b"), (other, "c"))]
        done, _ = await asyncio.wait(late, timeout=0.3)
        assert not done, "they try for as long as `timeout` says"
        turn(False)
        assert await asyncio.gather(*late) == [["b"], ["c"]]
        assert await again(lambda: session.settle([(held, Done())])) == []
    await other.close()
    await broker.close()


async def test_a_standby_named_by_mistake_is_told_at_once(url: str, server: PostgresServer, clock: TestClock) -> None:
    assert "asks for a standby" in await refused(f"{url}&target_session_attrs=read-only", clock)
    assert "asks for a standby" in await refused(f"{url}&target_session_attrs=standby", clock)


async def test_a_schema_that_was_dropped_under_a_worker_is_told(broker: PostgresBroker, clock: TestClock, ask: Ask, schema: str) -> None:
    async with broker.session(info()) as session:
        ask(f"drop schema {schema} cascade")
        with pytest.raises(BrokerUnusable, match="run: offload migrate"):
            await claim_one(session)
        await broker.migrate()
