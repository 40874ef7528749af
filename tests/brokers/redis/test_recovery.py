"""A worker and its producers go through a failover of Sentinel or Cluster without a person, and nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable

import pytest
from tests.conftest import Eventually, Starts

from offload import Offload
from offload.brokers.redis.faults import LASTING
from offload.job import State
from offload.task import AsyncTask
from offload.testing.servers import Cluster, RedisServer, Sentinels, ServerFailed, cluster, sentinel, valkey
from offload.worker import Worker

pytestmark = [pytest.mark.anyio, pytest.mark.process]

JOBS = 300
DEATH = 100
"""After how many jobs the primary dies."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def an_app(url: str) -> tuple[Offload, AsyncTask[[int], int], Counter[int]]:
    """An app with a task that counts how often it ran for which number."""
    app = Offload(f"{url}timeout=60")
    ran: Counter[int] = Counter()

    @app.task
    async def work(number: int) -> int:
        ran[number] += 1
        return number

    return app, work, ran


async def through_a_failover(
    url: str, primary: RedisServer, succeeded: Callable[[], object], restart: Callable[[], object], eventually: Eventually
) -> None:
    """Enqueue one job after another while a worker runs them, and kill the primary in the middle; it comes back as a replica."""
    app, work, ran = an_app(f"{url}?durability=replicated&")

    async def come_back() -> None:
        await eventually(succeeded, within=30)  # before that it would be the primary again, with no data
        await asyncio.to_thread(restart)

    async def all_succeeded() -> bool:
        return await app.acounts() == {"default": {State.SUCCEEDED: JOBS}}

    async with Worker(app):
        handles = [await work.aenqueue(number) for number in range(DEATH)]
        primary.kill()
        returning = asyncio.create_task(come_back())
        handles += [await work.aenqueue(number) for number in range(DEATH, JOBS)]
        await returning
        await eventually(all_succeeded, within=60)
    assert set(ran) == set(range(JOBS))
    assert [await handle.aresult() for handle in handles] == list(range(JOBS))
    await app.aclose()


async def test_sentinel(started: Starts[Sentinels], eventually: Eventually) -> None:
    sentinels = started(sentinel)

    def restart() -> None:
        sentinels.master.start()
        sentinels.master.ask("REPLICAOF", "127.0.0.1", str(sentinels.replica.port))  # as the sentinels will, but not in ten seconds

    await through_a_failover(sentinels.url, sentinels.master, lambda: sentinels.current() is sentinels.replica, restart, eventually)


async def test_cluster(started: Starts[Cluster], eventually: Eventually) -> None:
    nodes = started(lambda: cluster(masters=3, replicas=3))
    slot = nodes.masters[0].ask("CLUSTER", "KEYSLOT", "{offload}:")
    assert isinstance(slot, int)
    owner = nodes.master_of(slot)

    def succeeded() -> bool:
        try:
            return nodes.master_of(slot) is not owner
        except ServerFailed:  # nobody holds it now
            return False

    await through_a_failover(nodes.url, owner, succeeded, owner.start, eventually)


async def test_restarts_of_a_durable_server(started: Starts[RedisServer], eventually: Eventually) -> None:
    server = started(lambda: valkey(durable=True))
    app, work, ran = an_app(f"{server.url}?")
    restarts: list[asyncio.Task[None]] = []
    async with Worker(app):
        for number in range(JOBS):
            if number % DEATH == DEATH // 2:
                server.kill()
                restarts.append(asyncio.create_task(asyncio.to_thread(server.start)))
            await work.aenqueue(number)
        await asyncio.gather(*restarts)
        await eventually(lambda: set(ran) == set(range(JOBS)), within=60)
    await app.aclose()


async def test_a_user_with_the_rights_that_errors_recommend_may_do_all_that_apps_do(started: Starts[RedisServer]) -> None:
    server = started(valkey)
    rights = re.search(r"ACL SETUSER <user> (.*)", LASTING["NOPERM"])
    assert rights is not None
    server.ask("ACL", "SETUSER", "jobs", "on", ">secret", *rights[1].replace("{key}", "{offload}:").split())
    app, work, ran = an_app(f"{server.url.replace('//', '//jobs:secret@')}?")
    async with Worker(app):
        handle = await work.aenqueue(7)
        assert await handle.aresult(timeout=20) == 7
        await work.using(delay=60, unique="later").aenqueue(8)
        await app.apause("default")
    assert ran == {7: 1}
    assert any("writes no append-only file" in str(finding) for finding in await app.adoctor())
    await app.aclose()
