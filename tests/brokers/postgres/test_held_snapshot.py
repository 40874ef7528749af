"""An old snapshot that somebody holds keeps dead rows from being removed; workers go on nearly as fast all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter

import psycopg
import pytest

from offload.broker import Session
from offload.brokers.postgres import PostgresBroker
from offload.job import Done
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import ROOM, info, job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio

COUNT = 200_000
SLICE = 5_000
BATCH = 250
LEAST = 0.6
"""The share of its speed that must be left."""


@asynccontextmanager
async def worker(url: str, clock: TestClock) -> AsyncIterator[tuple[PostgresBroker, Session]]:
    broker = PostgresBroker.connect(url, clock)
    await broker.open()
    async with broker.session(info()) as session:
        yield broker, session
    await broker.close()


async def seconds(broker: PostgresBroker, session: Session, clock: TestClock, count: int) -> float:
    """How long it takes to claim and settle `count` jobs, which are enqueued first."""
    for _ in range(count // 1_000):
        await broker.enqueue([job(clock, keep=0) for _ in range(1_000)])
    left = count
    started = perf_counter()
    while left:
        leases = await session.fetch(["default"], BATCH, ROOM)
        assert await session.settle([(lease, Done()) for lease in leases]) == []
        left -= len(leases)
    return perf_counter() - started


@pytest.mark.soak
@pytest.mark.timeout(1_200)
async def test_speed_under_a_held_snapshot(server: PostgresServer, fresh_name: str, clock: TestClock) -> None:
    free, held = server.database(f"free_{fresh_name}"), server.database(f"held_{fresh_name}")
    async with AsyncExitStack() as stack:
        unhindered = await stack.enter_async_context(worker(free, clock))
        hindered = await stack.enter_async_context(worker(held, clock))
        await seconds(*unhindered, clock, 1_000)
        await seconds(*hindered, clock, 1_000)
        holder = stack.enter_context(psycopg.connect(held))
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from offload.jobs")
        ratios: list[float] = []
        for _ in range(COUNT // SLICE):
            usual = await seconds(*unhindered, clock, SLICE)
            ratios.append(usual / await seconds(*hindered, clock, SLICE))
        assert holder.execute("select 1").fetchone() == (1,), "the snapshot was held to the end"
    print([round(ratio, 2) for ratio in ratios])
    last = sorted(ratios[len(ratios) // 2 :])
    assert last[len(last) // 2] >= LEAST, ratios
