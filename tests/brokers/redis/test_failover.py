"""A link finds the primary again when Sentinel or a Cluster has made another server the primary; and what durability waits for."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.conftest import Eventually, Starts

from offload.brokers.redis import connections
from offload.brokers.redis.address import Address
from offload.brokers.redis.connections import Link
from offload.errors import BrokerError, BrokerUnusable
from offload.testing.servers import Cluster, RedisServer, Sentinels, cluster, redis, sentinel, valkey

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("counting")]

MARKS = b"{offload}:marks"


@pytest.fixture
def sentinels(started: Starts[Sentinels]) -> Sentinels:
    return started(sentinel)


async def until_answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call answers once it does; each failure until then must be one that passes."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await call()
            except BrokerError as error:
                assert type(error) is BrokerError  # noqa: PT017 - a failover is nothing for which a person must act
            await asyncio.sleep(0.05)


async def test_the_sentinels_name_the_primary_and_after_a_failover_the_new_one(sentinels: Sentinels) -> None:
    link = Link(Address.parse(f"{sentinels.url}?durability=replicated&timeout=30"))
    await link.open()
    assert await link.call("add", 1) == 1
    waiting = asyncio.create_task(link.pop_marker(MARKS, 60))
    sentinels.master.kill()
    with pytest.raises(BrokerError):
        await waiting
    assert await link.call("add", 1, patient=True, confirm=False) == 2
    assert sentinels.current() is sentinels.replica
    sentinels.replica.ask("ZADD", MARKS.decode(), "0", "work")
    assert await until_answered(lambda: link.pop_marker(MARKS, 5))
    await link.close()


async def test_a_primary_that_was_told_to_be_a_replica_is_left(sentinels: Sentinels, eventually: Eventually) -> None:
    link = Link(Address.parse(sentinels.url))
    assert await link.call("add", 1) == 1
    sentinels.sentinels[0].ask("SENTINEL", "FAILOVER", sentinels.name)
    await eventually(lambda: sentinels.current() is sentinels.replica, 20)
    sentinels.master.ask("REPLICAOF", "127.0.0.1", str(sentinels.replica.port))  # as the sentinels will, but not in ten seconds
    assert await until_answered(lambda: link.call("add", 1)) == 2
    assert sentinels.replica.ask("GET", "{offload}:test") == b"2"
    await link.close()


async def test_any_one_sentinel_is_enough(sentinels: Sentinels) -> None:
    for server in sentinels.sentinels[:2]:
        server.kill()
    link = Link(Address.parse(sentinels.url))
    assert await link.call("add", 1) == 1
    sentinels.sentinels[2].kill()
    assert await link.call("add", 1) == 2  # connected as it is
    other = link.second()
    with pytest.raises(
        BrokerError, match=f"none could be asked: 127.0.0.1:{sentinels.sentinels[0].port}: no connection: .* check OFFLOAD_URL"
    ):
        await other.open()
    for each in (link, other):
        await each.close()


async def test_sentinels_that_know_no_such_primary_or_ask_for_a_password(sentinels: Sentinels) -> None:
    other = Link(Address.parse(sentinels.url.replace("mymaster", "theirs")))
    with pytest.raises(BrokerUnusable, match=r"the sentinels know no primary of that name .*theirs"):
        await other.open()
    for server in sentinels.sentinels:
        server.ask("ACL", "SETUSER", "default", "resetpass", ">watch")
    shut = Link(Address.parse(sentinels.url))
    with pytest.raises(BrokerUnusable, match="asks for a password"):
        await shut.open()
    link = Link(Address.parse(f"{sentinels.url}?sentinel_password=watch"))
    await link.open()
    for each in (other, shut, link):
        await each.close()


async def test_a_sentinel_is_no_server(shared_sentinel: Sentinels) -> None:
    link = Link(Address.parse(shared_sentinel.sentinels[0].url))
    with pytest.raises(BrokerUnusable, match=r"is a sentinel; use redis\+sentinel://"):
        await link.open()
    await link.close()


async def test_a_cluster_serves_an_app_from_one_node_and_after_its_death_from_its_replica(started: Starts[Cluster]) -> None:
    nodes = started(lambda: cluster(masters=3, replicas=3))
    slot = slot_of(nodes, "offload")
    owner = nodes.master_of(slot)
    seed = next(node for node in nodes.masters if node is not owner)
    links = [Link(Address.parse(f"redis+cluster://127.0.0.1:{node.port}?timeout=30")) for node in (seed, owner)]
    for link in links:
        await link.open()
        await link.call("add", 1)
        assert not await link.pop_marker(MARKS, 0.01)
    await links[0].command("WAIT", 1, 1000)
    owner.kill()
    for count, link in enumerate(links, 3):
        assert await link.call("add", 1, patient=True) == count
        assert not await until_answered(lambda link=link: link.pop_marker(MARKS, 0.01))
        await link.close()
    assert nodes.master_of(slot).ask("GET", "{offload}:test") == b"4"


async def test_a_slot_that_moves_is_followed(shared_cluster: Cluster) -> None:
    link = Link(Address.parse(f"{shared_cluster.url}?prefix=moving"))
    await link.open()
    slot = slot_of(shared_cluster, "moving")
    source = shared_cluster.master_of(slot)
    target = next(node for node in shared_cluster.masters if node is not source)
    ids = {node: text_of(node.ask("CLUSTER", "MYID")) for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[source])
    source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[target])
    with pytest.raises(BrokerError, match="the cluster is moving these keys to another node"):
        await link.call("add", 1)
    for node in (target, source):
        node.ask("CLUSTER", "SETSLOT", str(slot), "NODE", ids[target])
    assert await until_answered(lambda: link.call("add", 1)) == 1
    assert target.ask("GET", "{moving}:test") == b"1"
    await link.close()


async def test_a_node_of_a_cluster_is_refused_as_a_server_and_a_server_as_a_cluster(server: RedisServer, shared_cluster: Cluster) -> None:
    node = Link(Address.parse(shared_cluster.masters[0].url))
    with pytest.raises(BrokerUnusable, match=r"belongs to a cluster; use redis\+cluster://"):
        await node.open()
    alone = Link(Address.parse(server.url.replace("redis://", "redis+cluster://").removesuffix("/0")))
    with pytest.raises(BrokerUnusable, match="belongs to no cluster; use redis://"):
        await alone.open()
    for each in (node, alone):
        await each.close()


# --- durability


async def test_replicated_returns_when_replicas_have_it_and_says_so_where_they_have_not(
    shared_sentinel: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONFIRM", 0.2)
    link = Link(Address.parse(f"{shared_sentinel.master.url}?durability=replicated&prefix=replicated"))
    await link.open()
    for count in range(1, 21):
        assert await link.call("add", 1) == count
        assert shared_sentinel.replica.ask("GET", "{replicated}:test") == str(count).encode()
    assert sorted(await asyncio.gather(*[link.call("add", 1) for _ in range(200)])) == list(range(21, 221))
    unconfirmed = r"stored on the primary, but 0 of 1 replicas confirmed it within 0.2 seconds"
    with stopped(shared_sentinel.replica):
        with pytest.raises(BrokerError, match=unconfirmed):
            await link.call("add", 1)
        assert await link.call("add", 1, confirm=False) == 222
        other = link.second()  # repeats the same on a new connection, where nothing is left to write
        with pytest.raises(BrokerError, match=unconfirmed):
            await other.call("read")
    assert await until_answered(lambda: other.call("read")) == 222
    for each in (link, other):
        await each.close()


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """A server that keeps its connections and does nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_fsync_returns_when_the_disk_has_it(started: Starts[RedisServer]) -> None:
    server = started(lambda: valkey(durable=True))
    link = Link(Address.parse(f"{server.url}?durability=fsync"))
    await link.open()
    assert sorted(await asyncio.gather(*[link.call("add", 1) for _ in range(50)])) == list(range(1, 51))
    server.kill()
    server.start()
    assert await link.call("read", patient=True) == 50
    await link.close()


async def test_fsync_needs_a_server_that_can(server: RedisServer, started: Starts[RedisServer]) -> None:
    without = Link(Address.parse(f"{server.url}?durability=fsync"))
    with pytest.raises(BrokerUnusable, match="durability=fsync needs a server with `appendonly yes`"):
        await without.open()
    await without.close()
    old = started(lambda: redis(durable=True))
    link = Link(Address.parse(f"{old.url}?durability=fsync"))
    if tuple(int(part) for part in old.version.split(".")[:2]) >= (7, 2):
        await link.open()
    else:
        with pytest.raises(BrokerUnusable, match=r"durability=fsync needs Redis 7\.2 or Valkey"):
            await link.open()
    await link.close()


def slot_of(nodes: Cluster, prefix: str) -> int:
    slot = nodes.masters[0].ask("CLUSTER", "KEYSLOT", f"{{{prefix}}}:")
    assert isinstance(slot, int)
    return slot


def text_of(reply: object) -> str:
    assert isinstance(reply, bytes)
    return reply.decode()
