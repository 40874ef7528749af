"""Who sleeps until there is work: how soon it looks where no notifications arrive, and once they do."""

from __future__ import annotations

import asyncio
from time import monotonic

import psycopg
import pytest
from tests.brokers.postgres.conftest import Ask, Opens, carried_out
from tests.conftest import Eventually

from offload.brokers.postgres import PostgresBroker, session, wake
from offload.brokers.postgres.wake import POLL_DEAF
from offload.clock import SystemClock
from offload.job import RateLimit, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import PATIENCE, claim, ids, info, job
from offload.testing.servers import PostgresServer
from offload.testing.servers.process import free_port

pytestmark = pytest.mark.anyio


async def test_while_the_listener_is_down_it_looks_as_often_as_without_one(opens: Opens, url: str) -> None:
    broker = await opens(f"{url}&pgbouncer=true&listen=postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    ear = broker.opened.ear
    looks: list[float] = []

    async def look() -> bool:
        looks.append(monotonic())
        return len(looks) == 4

    begun = monotonic()
    await ear.sleep("work", ear.count("work"), 60.0, look)
    assert looks[-1] - begun < 3 * POLL_DEAF * 1.2 + 0.5


async def test_who_sleeps_looks_again_when_notifications_begin_to_arrive(opens: Opens, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "POLL_DEAF"):
        monkeypatch.setattr(wake, name, 3_600.0)
    ear = (await opens()).opened.ear
    asked: list[bool] = []

    async def look() -> bool:
        asked.append(bool(ask("select 1 from sleepers")))
        return asked[-1]

    async with asyncio.timeout(PATIENCE):
        await ear.sleep("work", ear.count("work"), 3_600.0, look)
    assert asked in ([False, True], [True])


async def test_a_listener_whose_connection_is_cut_listens_on_another(
    opens: Opens, server: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    for name in ("POLL", "POLL_DEAF"):
        monkeypatch.setattr(wake, name, 3_600.0)
    monkeypatch.setattr(wake, "RECONNECT", 0.0)
    ear = (await opens()).opened.ear
    looks = 0

    async def nothing() -> bool:
        nonlocal looks
        looks += 1
        return False

    sleeping = asyncio.create_task(ear.sleep("work", ear.count("work"), 3_600.0, nothing))
    await eventually(lambda: looks == 2)  # deaf, and then listening
    server.ask(f"select pg_terminate_backend(pid) from pg_stat_activity where query = 'listen \"{schema}\"'")
    await eventually(lambda: looks == 3)
    assert not sleeping.done()
    server.ask(f"select pg_notify('{schema}', 'work')")
    async with asyncio.timeout(PATIENCE):
        await sleeping


@pytest.mark.parametrize("by", ["python", "python, one by one", "sql"])
async def test_who_falls_asleep_while_a_caller_s_transaction_is_open_is_woken_by_its_commit(
    broker: PostgresBroker, clock: TestClock, server: PostgresServer, schema: str, ask: Ask, monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually, by: str,
) -> None:  # fmt: skip
    for name in ("POLL", "POLL_DEAF"):
        monkeypatch.setattr(wake, name, 3_600.0)
    ear = broker.opened.ear
    heard = ear.count("work")

    async def nothing() -> bool:
        return False

    async def asleep() -> bool:
        return bool(ask("select 1 from sleepers where what = 'work'"))

    with psycopg.connect(server.url) as caller:
        assert not ask("select 1 from sleepers")
        match by:
            case "python":
                carried_out(caller, broker.enqueue_on([job(clock, "a")]))
            case "python, one by one":
                carried_out(caller, broker.enqueue_on([job(clock, "a", unique=UniqueKey("k")), job(clock, "b", unique=UniqueKey("k"))]))
            case _:
                caller.execute(f"select \"{schema}\".enqueue('t')".encode())
        sleeper = asyncio.ensure_future(ear.sleep("work", heard, 3_600.0, nothing))
        await eventually(asleep)
        caller.commit()
        async with asyncio.timeout(PATIENCE):
            await sleeper


async def test_who_waits_for_a_token_that_is_moments_away_asks_nobody_to_notify(
    opens: Opens, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LONGEST_DOZE", 10.0)
    broker = await opens(by=SystemClock())
    now = TestClock(SystemClock().now())
    await broker.enqueue([job(now, id, limits=(RateLimit("k", 500_000),)) for id in ("a", "b")])
    async with broker.session(info()) as worker:
        assert ids(await claim(worker)) == ["a"]
        assert ids(await claim(worker)) == []
        await worker.wait(60.0)
        assert ask("select count(*) from sleepers") == [(0,)]
        assert ids(await claim(worker)) == ["b"]
