"""Where the queues under chaos live: each engine so set up that what it accepted survives its own death."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from offload.testing import servers
from offload.testing.servers import PostgresServer, RedisServer, Server, ServerMissing

SERVERS = ("postgresql", "redis", "valkey")
ENGINES = ("sqlite", *SERVERS)
SOAK = bool(os.environ.get("OFFLOAD_SOAK"))
"""Whether the tests run at full counts."""


class Place(NamedTuple):
    """An empty queue: the engine, its URL, and the server that keeps it; None for a file."""

    engine: str
    url: str
    server: Server | None = None


class Places:
    """Makes places. PostgreSQL is started once, for its start costs a second, and gives each test a database; the others, for each test."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._postgres: PostgresServer | None = None

    def place(self, engine: str, folder: Path) -> Place:
        """An empty queue of its own. Raises ServerMissing."""
        match engine:
            case "sqlite":
                return Place(engine, f"sqlite:///{folder}/queue.db")
            case "postgresql":
                if self._postgres is None:
                    self._postgres = self._stack.enter_context(servers.postgres(durable=True))
                self._postgres.start()
                return Place(engine, self._postgres.database(), self._postgres)
            case _:
                start: Callable[..., RedisServer] = getattr(servers, engine)
                server = self._stack.enter_context(start(durable=True))
                return Place(engine, server.url, server)

    def close(self) -> None:
        """Stop all servers."""
        self._stack.close()


def missing(error: ServerMissing) -> NoReturn:
    """Skip a test for want of a server; never in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must not skip the tests of an engine: {error}")
    pytest.skip(str(error))
