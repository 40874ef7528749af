"""What tests of several files need."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import cache
from time import monotonic
from typing import Any, TypeAlias, TypeVar

import pytest

from offload import Offload
from offload.testing import servers
from offload.testing.servers import Cluster, PostgresServer, RedisServer, Sentinels, ServerMissing

Started = TypeVar("Started", bound=AbstractContextManager[Any])
Starts: TypeAlias = Callable[[Callable[[], Started]], Started]
"""What the fixtures `started` and `shared` give."""
Eventually: TypeAlias = Callable[..., Awaitable[Any]]
"""What the fixture `eventually` gives."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take turns between files that start processes, which mostly wait, and others, which mostly compute: all processors are used then."""
    scopes: dict[str, list[pytest.Item]] = {}
    for item in items:
        scopes.setdefault(item.nodeid.rpartition("::")[0], []).append(item)
    wait, compute = deque[list[pytest.Item]](), deque[list[pytest.Item]]()
    for scope in scopes.values():
        (wait if any(item.get_closest_marker("process") for item in scope) else compute).append(scope)
    items.clear()
    while wait or compute:
        for line in (wait, compute):
            items += line.popleft() if line else []


@pytest.fixture(scope="session")
def faketime() -> str:
    """The program that starts another one with a moved clock; `make test` installs it where it may."""
    program = shutil.which("faketime")
    if program is None and os.environ.get("CI"):
        pytest.fail("the package faketime is missing, and CI must not skip what needs it: apt-get install faketime")
    if program is None:
        pytest.skip("needs the package faketime: apt-get install faketime")
    return program


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition, within=10)`: its value once the condition, plain or async, holds; fails after `within` seconds."""

    async def eventually(condition: Callable[[], Any], within: float = 10.0) -> Any:
        deadline = monotonic() + within
        while True:
            met = condition()
            if inspect.isawaitable(met):
                met = await met
            if met:
                return met
            if monotonic() > deadline:
                what = inspect.getsource(condition).strip() if inspect.isfunction(condition) else repr(condition)
                pytest.fail(f"not within {within:g} s: {what}")
            await asyncio.sleep(0.01)

    return eventually


def _start(start: Callable[[], Started]) -> Started:
    try:
        return start()
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing}; CI must not skip what needs it")
        pytest.skip(str(missing))


@pytest.fixture
def started() -> Iterator[Starts[Any]]:
    """`started(lambda: postgres(durable=True))`: a server of this test's own, for tests that kill it.

    Where its program is missing the test is skipped, and fails in CI.
    """
    with ExitStack() as stack:
        yield lambda start: stack.enter_context(_start(start))


@pytest.fixture(scope="session")
def shared() -> Iterator[Starts[Any]]:
    """As `started`, for a server that all tests of a test process share: leave it running, use a database, schema or prefix of your own."""
    with ExitStack() as stack:
        yield lambda start: stack.enter_context(_start(start))


@pytest.fixture(scope="session")
def shared_postgres(shared: Starts[PostgresServer]) -> Callable[[int | None], PostgresServer]:
    """`shared_postgres(version)`; None is the newest."""
    return cache(lambda version: shared(lambda: servers.postgres(version=version)))


_ONE = bool(os.environ.get("OFFLOAD_ONE_SERVER"))
"""One version of each server is enough: for a second Python, where it is ours that may differ and not the server."""


def _oldest_and_newest() -> list[int | None]:
    found = servers.versions_of_postgres()
    if _ONE:
        return [None]
    return list(found if os.environ.get("OFFLOAD_SOAK") else dict.fromkeys((found[0], found[-1]))) if found else [None]


@pytest.fixture(scope="session", params=_oldest_and_newest(), ids=lambda version: f"postgres{version or ''}")
def each_postgres(request: pytest.FixtureRequest, shared_postgres: Callable[[int | None], PostgresServer]) -> PostgresServer:
    """The oldest PostgreSQL of this machine, and the newest; in a soak all."""
    return shared_postgres(request.param)


@pytest.fixture(scope="session")
def fresh_database(shared_postgres: Callable[[int | None], PostgresServer]) -> Callable[[], str]:
    """`fresh_database()`: the URL of a database of the newest PostgreSQL with our schema and nothing in it. A copy: to make one is slow."""

    @cache
    def original() -> str:
        with closing(Offload(shared_postgres(None).database("original"))) as app:
            app.migrate()
        return "original"

    return lambda: shared_postgres(None).database(like=original())


class Schemas:
    """Schemas of one server for one test after the other, emptied between them: to make one takes 100 ms, which thousands of tests feel."""

    EMPTY = """
        do $$ declare own text; begin
            perform set_config('lock_timeout', '10s', true);
            for own in select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = '{name}' and tablename <> 'store'
            loop execute 'delete from ' || own; end loop;
            update "{name}".store set pruned_at = null;
        end $$
    """

    def __init__(self) -> None:
        self._free: dict[str, list[str]] = {}

    @contextmanager
    def lent(self, server: PostgresServer) -> Iterator[str]:
        """The name of a schema that no other test has meanwhile: new, or as good as new."""
        free = self._free.setdefault(server.url, [])
        name = free.pop() if free else f"lent_{next(_numbers)}"
        yield name
        server.ask(self.EMPTY.format(name=name))
        free.append(name)


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    return Schemas()


@pytest.fixture(scope="session")
def shared_redis(shared: Starts[RedisServer]) -> RedisServer:
    return shared(servers.redis)


@pytest.fixture(scope="session")
def shared_valkey(shared: Starts[RedisServer]) -> RedisServer:
    return shared(servers.valkey)


@pytest.fixture(scope="session", params=["valkey"] if _ONE else ["valkey", "redis"])
def each_redis(request: pytest.FixtureRequest) -> RedisServer:
    """Valkey, and Redis itself."""
    return request.getfixturevalue(f"shared_{request.param}")


@pytest.fixture(scope="session")
def shared_cluster(shared: Starts[Cluster]) -> Cluster:
    return shared(servers.cluster)


@pytest.fixture(scope="session")
def shared_sentinel(shared: Starts[Sentinels]) -> Sentinels:
    return shared(servers.sentinel)


_numbers = itertools.count(1)


@pytest.fixture
def fresh_name() -> str:
    """A name that no other test of this test process has: for a schema, a prefix, a database."""
    return f"test_{next(_numbers)}"
