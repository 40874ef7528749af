"""What `doctor` says about servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from offload.brokers.redis.address import Address
from offload.brokers.redis.connections import Link
from offload.brokers.redis.notes import Note, memory, notes, persistence, replication
from offload.testing.servers import RedisServer, valkey

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def noted(url: str) -> AsyncIterator[Sequence[Note]]:
    link = Link(Address.parse(url))
    yield await notes(link)
    await link.close()


def texts(found: Sequence[Note]) -> str:
    return "\n".join(f"{severity}: {text}; {advice}" for severity, text, advice in found)


async def test_a_server_that_keeps_nothing_on_disk(server: RedisServer) -> None:
    async with noted(server.url) as found:
        assert [severity for severity, _, _ in found] == ["warning"]
        assert "the server keeps nothing on disk: a restart loses every job; set appendonly yes" in texts(found)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, "info: every write is on disk before it is answered"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "info: a crash of the server can lose the last second"),
        ({"appendonly": "yes", "appendfsync": "no"}, "warning: the system decides when writes reach the disk"),
        ({"save": "3600 1"}, "warning: the server saves snapshots only: a crash loses all that came after the last"),
        ({"maxmemory-policy": "allkeys-lru"}, "warning: maxmemory-policy is allkeys-lru: when memory is short the server throws keys away"),
        ({"maxmemory-policy": "volatile-ttl", "maxmemory": "100mb"}, "error: maxmemory-policy is volatile-ttl"),
        ({"maxmemory": "1mb"}, "of 1 MiB of memory are in use; raise maxmemory"),
    ],
)
async def test_settings(settings: dict[str, str], expected: str) -> None:
    arguments = [word for name, value in settings.items() for word in (f"--{name}", *value.split())]
    with valkey(arguments=arguments) as server:
        async with noted(server.url) as found:
            assert expected in texts(found)


async def test_a_server_that_does_not_tell_its_settings() -> None:
    with valkey(durable=True, arguments=["--rename-command", "CONFIG", ""]) as server:
        async with noted(server.url) as found:
            assert "how soon they are on disk the server does not tell" in texts(found)


def test_a_server_without_a_file_that_does_not_tell_whether_it_saves() -> None:
    assert "warning: the server writes no append-only file" in texts(list(persistence({}, {"appendfsync": None, "save": None})))


def test_replicas() -> None:
    alone, followed = {"connected_slaves": "0"}, {"connected_slaves": "2"}
    server = Address.parse("redis://cache")
    assert texts(list(replication(server, alone))) == ""
    assert "2 replicas follow after a moment: a failover can lose jobs" in texts(list(replication(server, followed)))
    replicated = Address.parse("redis://cache?durability=replicated:2")
    assert texts(list(replication(replicated, followed))) == ""
    assert "error: durability asks for 2 replicas, but 0 are connected" in texts(list(replication(replicated, alone)))
    watched = Address.parse("redis+sentinel://cache/mymaster")
    assert "warning: the primary has no replica now" in texts(list(replication(watched, alone)))


def test_memory_that_is_nearly_used_up_is_a_warning_and_none_left_an_error() -> None:
    limit = {"maxmemory": str(100 * 1_048_576), "maxmemory_policy": "noeviction"}
    severities = [[severity for severity, _, _ in memory(limit | {"used_memory": str(used * 1_048_576)})] for used in (79, 80, 99, 100)]
    assert severities == [[], ["warning"], ["warning"], ["error"]]
