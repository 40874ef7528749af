"""What the tests of the Redis engine alone need: one Valkey for all of them, emptied before each."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import pytest
from tests.conftest import Starts

from offload.broker import Session
from offload.brokers.redis import RedisBroker, connections
from offload.brokers.redis.address import Address
from offload.brokers.redis.connections import Link
from offload.testing.clock import TestClock
from offload.testing.servers import RedisServer, valkey

Rung: TypeAlias = Callable[..., list[bool]]
"""Which of some sessions are to wake up."""

SCRIPT = """
local key, operation = KEYS[1] .. 'test', ARGV[1]
if operation == 'add' then return redis.call('INCRBY', key, ARGV[2]) end
if operation == 'read' then return tonumber(redis.call('GET', key) or '0') end
return redis.error_reply('ERR no operation ' .. operation)
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def running(shared: Starts[RedisServer]) -> RedisServer:
    return shared(valkey)


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.ask("FLUSHALL")
    running.ask("SCRIPT", "FLUSH")
    return running


@pytest.fixture
async def link(server: RedisServer) -> AsyncIterator[Link]:
    link = Link(Address.parse(server.url))
    await link.open()
    yield link
    await link.close()


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
async def broker(each_redis: RedisServer, fresh_name: str, clock: TestClock) -> AsyncIterator[RedisBroker]:
    """An open broker under a prefix of the test's own, on each kind of server."""
    broker = RedisBroker.connect(f"{each_redis.url}?prefix={fresh_name}", clock)
    await broker.open()
    yield broker
    await broker.close()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that counts, instead of the engine's: `add n`, `read`."""
    text = SCRIPT
    monkeypatch.setattr(connections, "script", lambda: (text, hashlib.sha1(text.encode()).hexdigest()))


@pytest.fixture
def rung(each_redis: RedisServer, fresh_name: str) -> Rung:
    def rung(*sessions: Session) -> list[bool]:
        return [each_redis.ask("EXISTS", f"{{{fresh_name}}}:bell:{session.id}") == 1 for session in sessions]

    return rung


def words(reply: object) -> list[bytes]:
    assert isinstance(reply, list)
    return [word for word in reply if isinstance(word, bytes)]


def stored(server: RedisServer, prefix: str) -> dict[str, list[bytes]]:
    """All that lies under a prefix but for the numbers given out."""
    read = {b"hash": ("HGETALL",), b"zset": ("ZRANGE", "0", "-1", "WITHSCORES"), b"string": ("GET",), b"set": ("SMEMBERS",)}
    found: dict[str, list[bytes]] = {}
    for key in words(server.ask("KEYS", f"{{{prefix}}}:*")):
        name = key.decode()
        kind = server.ask("TYPE", name)
        command, *rest = read[kind if isinstance(kind, bytes) else str(kind).encode()]
        value = server.ask(command, name, *rest)
        found[name.partition(":")[2]] = sorted(words(value)) if isinstance(value, list) else [str(value).encode()]
    return {name: value for name, value in found.items() if name != "sequence"}


def calls(server: RedisServer) -> int:
    """The commands that were called so far, those of scripts too."""
    told = server.ask("INFO", "commandstats")
    assert isinstance(told, bytes)
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in told.decode().splitlines() if "calls=" in line)
