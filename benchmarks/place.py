"""Where the jobs of a measurement live: in memory, in a file, or on a private server that the benchmark starts."""

from __future__ import annotations

import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from part import Engine

from offload.testing import servers
from offload.testing.servers import PostgresServer, RedisServer

SERVED: tuple[Engine, ...] = ("postgresql", "redis", "redis-always", "valkey")
"""The engines that need a server."""
FROM_CLIENT = re.compile(rb"^\+[\d.]+ \[\d+ (?!lua\])", re.MULTILINE)
"""The beginning of what MONITOR says of a command that no script has called."""
STATEMENT = re.compile(rb" LOG:  (?:statement|execute [^:]*):")


class Place(ABC):
    """The engine's side of a measurement."""

    version: str = ""
    """What server it is; empty where there is none."""

    @abstractmethod
    def fresh(self) -> AbstractContextManager[str]:
        """The URL of a place without jobs, for one measurement."""

    def commands(self, seconds: float) -> int | None:
        """Wait so many seconds. Returns how many commands clients have sent meanwhile; None where there is no server to count them."""
        time.sleep(seconds)


class InMemory(Place):
    @contextmanager
    def fresh(self) -> Iterator[str]:
        yield "memory://"


class InFile(Place):
    """SQLite, in a folder on the disk that is to be measured."""

    def __init__(self, folder: Path, synchronous: str) -> None:
        self._folder = folder
        self._synchronous = synchronous

    @contextmanager
    def fresh(self) -> Iterator[str]:
        with TemporaryDirectory(dir=self._folder, prefix="offload-benchmark-") as folder:
            yield f"sqlite:///{folder}/jobs.db?synchronous={self._synchronous}"


class OnPostgres(Place):
    """A database of its own for each measurement."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._made = 0
        self.version = f"PostgreSQL {server.version}"

    @contextmanager
    def fresh(self) -> Iterator[str]:
        self._made += 1
        name = f"benchmark_{self._made}"
        yield self._server.database(name)
        self._server.ask(f"drop database {name} with (force)")

    def commands(self, seconds: float) -> int:
        self._log("all")
        with self._server.log.open("rb") as log:
            log.seek(0, 2)
            time.sleep(seconds)
            sent = len(STATEMENT.findall(log.read()))
        self._log("none")
        return sent

    def _log(self, statements: str) -> None:
        self._server.ask(f"alter system set log_statement = '{statements}'")
        self._server.ask("select pg_reload_conf()")
        while self._server.ask("show log_statement") != [[statements]]:
            time.sleep(0.01)


class OnRedis(Place):
    """The whole server for each measurement: it is emptied in between."""

    def __init__(self, name: str, server: RedisServer) -> None:
        self._server = server
        self.version = f"{name} {server.version}"

    @contextmanager
    def fresh(self) -> Iterator[str]:
        self._server.ask("FLUSHALL")
        yield self._server.url

    def commands(self, seconds: float) -> int:
        said, deadline = b"", time.monotonic() + seconds
        with socket.create_connection(("127.0.0.1", self._server.port)) as connection:
            connection.sendall(b"MONITOR\r\n")
            while (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                try:
                    said += connection.recv(1 << 16)
                except TimeoutError:
                    break
        return len(FROM_CLIENT.findall(said))


def place_of(engine: Engine, folder: Path, stack: ExitStack) -> Place:
    """The place for an engine; a server that it needs is stopped with `stack`. Raises ServerMissing."""
    match engine:
        case "memory":
            return InMemory()
        case "sqlite-full" | "sqlite-normal":
            return InFile(folder, engine.removeprefix("sqlite-"))
        case "postgresql":
            return OnPostgres(stack.enter_context(servers.postgres(durable=True)))
        case "redis" | "redis-always":
            return OnRedis("Redis", stack.enter_context(servers.redis(durable=engine == "redis-always")))
        case "valkey":
            return OnRedis("Valkey", stack.enter_context(servers.valkey()))
