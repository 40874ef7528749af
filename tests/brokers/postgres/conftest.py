"""What the tests of the PostgreSQL engine alone need: one server for all of them, a schema for each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import psycopg
import pytest

from offload.broker import Work
from offload.brokers.postgres import PostgresBroker
from offload.clock import Clock
from offload.testing.clock import TestClock
from offload.testing.servers import PostgresServer

Ask: TypeAlias = Callable[..., list[tuple[Any, ...]]]
"""What the fixture `ask` gives."""
Opens: TypeAlias = Callable[..., Awaitable[PostgresBroker]]
"""What the fixture `opens` gives."""
Caller: TypeAlias = psycopg.Connection[tuple[Any, ...]]
"""A connection of a caller's own, on which statements begin a transaction."""
T = TypeVar("T")

SOON = 5.0
"""Seconds of real time; what waits for a lock waits for much longer."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def server(shared_postgres: Callable[[int | None], PostgresServer]) -> PostgresServer:
    return shared_postgres(None)


@pytest.fixture
def schema(server: PostgresServer, fresh_name: str) -> Iterator[str]:
    """The name of a schema of this test's own, which is dropped after it."""
    yield fresh_name
    server.ask(f'drop schema if exists "{fresh_name}" cascade')


@pytest.fixture
def url(server: PostgresServer, schema: str) -> str:
    return f"{server.url}?schema={schema}"


@pytest.fixture
async def opens(url: str, clock: TestClock) -> AsyncIterator[Opens]:
    """`await opens()`: one more open broker on the test's schema; at another URL or by another clock where given."""
    async with AsyncExitStack() as stack:

        async def opens(at: str = url, by: Clock = clock) -> PostgresBroker:
            broker = PostgresBroker.connect(at, by)
            await broker.open()
            stack.push_async_callback(broker.close)
            return broker

        yield opens


@pytest.fixture
async def broker(opens: Opens) -> PostgresBroker:
    return await opens()


class Crowd:
    """Runs coroutine functions at the same time, each in a thread and loop of its own with a client of its own."""

    def __init__(self, url: str, clock: TestClock) -> None:
        self._url = url
        self._clock = clock

    @asynccontextmanager
    async def client(self) -> AsyncIterator[PostgresBroker]:
        broker = PostgresBroker.connect(self._url, self._clock)
        await broker.open()
        try:
            yield broker
        finally:
            await broker.close()

    def run(self, *members: Callable[[PostgresBroker], Awaitable[T]]) -> list[T]:
        gate = threading.Barrier(len(members))

        async def member(act: Callable[[PostgresBroker], Awaitable[T]]) -> T:
            async with self.client() as broker:
                gate.wait()
                return await act(broker)

        with ThreadPoolExecutor(len(members)) as pool:
            return [future.result() for future in [pool.submit(asyncio.run, member(act)) for act in members]]


@pytest.fixture
def crowd(url: str, clock: TestClock) -> Crowd:
    return Crowd(url, clock)


@pytest.fixture
def connection(server: PostgresServer, schema: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection of no client's, in autocommit mode, whose tables are the test's."""
    with psycopg.connect(server.url, autocommit=True, options=f"-c search_path={schema}") as connection:
        yield connection


@pytest.fixture
def ask(connection: psycopg.Connection[tuple[Any, ...]]) -> Ask:
    """`ask(statement, **values)`: its rows."""

    def ask(statement: str, **values: Any) -> list[tuple[Any, ...]]:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    return ask


@pytest.fixture
def caller(server: PostgresServer, schema: str) -> Iterator[Caller]:
    with psycopg.connect(server.url, options=f"-c search_path={schema} -c lock_timeout=5s") as connection:
        yield connection


def carried_out(connection: Caller, work: Work[T]) -> T:
    """What an operation returns whose statements run on a caller's connection."""
    try:
        statement = next(work)
        while True:
            cursor = connection.execute(statement.sql.encode(), statement.values)
            statement = work.send(cursor.fetchall() if cursor.description else [])
    except StopIteration as end:
        return end.value
