"""Stores in lockstep with the reference, and proof that lockstep sees what is broken."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

import pytest
from tests.conftest import Schemas

from offload.brokers.memory import MemoryBroker
from offload.brokers.memory.session import MemorySession
from offload.brokers.postgres import PostgresBroker
from offload.brokers.redis import RedisBroker
from offload.brokers.sqlite import SqliteBroker
from offload.job import Filter, Isolation, Job, Lease, Outcome, Record, WorkerInfo
from offload.testing.clock import TestClock
from offload.testing.lockstep import Opener, lockstep
from offload.testing.servers import PostgresServer, RedisServer


def memory(kind: type[MemoryBroker] = MemoryBroker) -> Opener:
    @asynccontextmanager
    async def opened(clock: TestClock) -> AsyncGenerator[MemoryBroker]:
        broker = kind.connect("memory://", clock)
        await broker.open()
        yield broker
        await broker.close()

    return opened


@asynccontextmanager
async def sqlite(clock: TestClock) -> AsyncGenerator[SqliteBroker]:
    with TemporaryDirectory() as folder:
        broker = SqliteBroker.connect(f"sqlite:///{folder}/offload.db?synchronous=normal", clock)
        await broker.open()
        yield broker
        await broker.close()


@pytest.fixture
def postgres(shared_postgres: Callable[[int | None], PostgresServer], schemas: Schemas) -> Opener:
    """Each run in a schema of its own."""

    @asynccontextmanager
    async def opened(clock: TestClock) -> AsyncGenerator[PostgresBroker]:
        server = shared_postgres(None)
        with schemas.lent(server) as schema:
            broker = PostgresBroker.connect(f"{server.url}?schema={schema}", clock)
            await broker.open()
            yield broker
            await broker.close()

    return opened


@pytest.fixture
def redis(each_redis: RedisServer, fresh_name: str) -> Opener:
    """Each run under a prefix of its own."""
    numbers = itertools.count(1)

    @asynccontextmanager
    async def opened(clock: TestClock) -> AsyncGenerator[RedisBroker]:
        broker = RedisBroker.connect(f"{each_redis.url}?prefix=lockstep_{fresh_name}_{next(numbers)}", clock)
        await broker.open()
        yield broker
        await broker.close()

    return opened


@pytest.mark.timeout(0)  # as long as OFFLOAD_LOCKSTEP_RUNS asks for, and until the shortest program that fails is found
def test_sqlite_is_indistinguishable_from_memory() -> None:
    lockstep(memory(), sqlite)


@pytest.mark.timeout(0)
def test_postgresql_is_indistinguishable_from_memory(postgres: Opener) -> None:
    lockstep(memory(), postgres)


@pytest.mark.timeout(0)
def test_redis_is_indistinguishable_from_memory(redis: Opener) -> None:
    lockstep(memory(), redis)


def test_memory_is_indistinguishable_from_itself() -> None:
    lockstep(memory(), memory(), runs=20)


class ForgetsPriority(MemoryBroker):
    async def find(self, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
        return [record for record in await super().find(filter, limit, after) if record.priority == 0]


class StoresHalfABatch(MemoryBroker):
    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        return [id for job in jobs for id in await super(StoresHalfABatch, self).enqueue([job])]


class CancelsOnlyOne(MemoryBroker):
    async def cancel(self, ids: Sequence[str]) -> set[str]:
        return await super().cancel(ids[:1])


class _Altered(MemoryBroker):
    """Its sessions are of the class that `altered` names."""

    altered: type[MemorySession]

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncGenerator[MemorySession]:
        async with super().session(worker) as session:
            session.__class__ = self.altered
            yield session


class _IgnoresRoom(MemorySession):
    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        return await super().fetch(queues, limit, dict.fromkeys(room, limit))


class IgnoresRoom(_Altered):
    altered = _IgnoresRoom


class _ReportsNothingLost(MemorySession):
    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        await super().settle(settlements)
        return []


class ReportsNothingLost(_Altered):
    altered = _ReportsNothingLost


@pytest.mark.parametrize("broken", [ForgetsPriority, StoresHalfABatch, CancelsOnlyOne, IgnoresRoom, ReportsNothingLost])
def test_a_broken_store_is_caught(broken: type[MemoryBroker]) -> None:
    with pytest.raises(AssertionError, match=r"differ\s+model: .*\s+subject: "):
        lockstep(memory(), memory(broken), shrink=False)
