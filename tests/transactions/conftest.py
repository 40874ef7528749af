"""Databases, apps and connections of these tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.transactions import program
from tests.transactions.kinds import KINDS, Kind

from offload import Handle, Offload, Worker
from offload.portal import portal


def url_of(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    fresh: Callable[[], str] = request.getfixturevalue("fresh_database")
    return fresh()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of connections run for every kind of them, others on both engines."""
    if any(marker.args[0] == "kind" for marker in metafunc.definition.iter_markers("parametrize")):
        return
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS, ids=lambda kind: kind.name)
    elif "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ["sqlite", "postgresql"])


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """The database of the kind of connection, where there is one."""
    return request.getfixturevalue("kind").engine


@pytest.fixture
def url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(engine, request, tmp_path)


class Shop:
    """The program's app on a database of its own, with a table of the user's beside the jobs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.app: Offload = program.app
        self.app.migrate()
        program.sql(url, "create table marks (n integer primary key)")

    def marks(self) -> list[int]:
        """What the user's table holds."""
        return sorted(row[0] for row in program.sql(self.url, "select n from marks"))

    def jobs(self) -> list[int]:
        """The numbers of all jobs of `note`."""
        return sorted(program.note.arguments.decode(record.payload)[1]["n"] for record in self.app.find(task="program.note", limit=10_000))

    def drain(self) -> int:
        """Run what is ready."""

        async def work() -> int:
            return await Worker(self.app).drain()

        return portal.run(work)

    @contextmanager
    def working(self) -> Iterator[None]:
        """A worker beside the block."""

        async def started() -> Worker:
            return await Worker(self.app).__aenter__()

        async def left(worker: Worker) -> None:
            await worker.__aexit__(None, None, None)

        worker = portal.run(started)
        try:
            yield
        finally:
            portal.run(left, worker)

    def ran(self, handle: Handle[Any]) -> Any:
        """The record of a job, once all is run."""
        self.drain()
        return handle.record()


@pytest.fixture
def shop(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("OFFLOAD_URL", url)
    program.ran.clear()
    with program.app.testing(url):
        yield Shop(url)


class Hand:
    """A connection of one kind in a test's hand; what is awaited is awaited here."""

    def __init__(self, kind: Kind, url: str, stack: ExitStack) -> None:
        self.kind = kind
        self._runner = stack.enter_context(asyncio.Runner()) if kind.is_async else None
        if self._runner is not None:
            exits = AsyncExitStack()
            self.connection = self.wait(exits.enter_async_context(kind.opened(url)))
            stack.callback(lambda: self.wait(exits.aclose()))
        else:
            self.connection = stack.enter_context(kind.opened(url))
        self.begin()

    def wait(self, given: Any) -> Any:
        """What it gives, once awaited where that is the kind."""
        if self._runner is None or not asyncio.iscoroutine(given):
            return given if self._runner is None or given is None else self._runner.run(_awaited(given))
        return self._runner.run(given)

    def begin(self) -> None:
        self.kind.begin(self.connection)

    def insert(self, n: int) -> None:
        self.wait(self.kind.insert(self.connection, n))

    def commit(self) -> None:
        self.wait(self.kind.commit(self.connection))

    def rollback(self) -> None:
        self.wait(self.kind.rollback(self.connection))

    def enqueue(self, n: int, **using: Any) -> Handle[Any]:
        bound = program.note.using(connection=self.connection, **using)
        return self.wait(bound.aenqueue(n)) if self.kind.is_async else bound.enqueue(n)

    def enqueue_many(self, numbers: range) -> list[Handle[Any]]:
        drafts = [program.note.job(n) for n in numbers]
        if self.kind.is_async:
            return self.wait(program.app.aenqueue_many(drafts, connection=self.connection))
        return program.app.enqueue_many(drafts, connection=self.connection)


async def _awaited(given: Any) -> Any:
    return await given


@pytest.fixture
def hand(kind: Kind, shop: Shop) -> Iterator[Hand]:
    with ExitStack() as stack:
        yield Hand(kind, shop.url, stack)
