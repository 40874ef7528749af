"""Finds the server that holds an app's keys now: the one named, the primary that sentinels name, or the node that owns their slot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from offload.brokers.redis.address import Address
from offload.brokers.redis.faults import Refusal
from offload.brokers.redis.wire import Cut, Refused, Wire, connect

Host: TypeAlias = tuple[str, int]
T = TypeVar("T")

MOST_HOPS = 3
"""Times that a cluster may point elsewhere before it counts as undecided."""


class Locator:
    """Where to look, which grows by what is learned: the nodes of a cluster at first named by the URL, later by the cluster."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._hosts: Sequence[Host] = address.hosts

    async def primary(self) -> Wire:
        """A new connection to it. Raises Cut, Refusal."""
        match self._address.topology:
            case "server":
                host, port = self._hosts[0] if self._hosts else ("", 0)
                return await connect(self._address, host, port)
            case "sentinel":
                return await self._named_by_sentinels()
            case "cluster":
                return await self._owner_in_cluster()

    async def _named_by_sentinels(self) -> Wire:
        host, port = await first(self._hosts, self._ask_sentinel)
        wire = await connect(self._address, host, port)
        with given_up(wire):
            if b"\r\nrole:master\r\n" not in await wire.send(("INFO", "replication")):
                raise Cut(f"the sentinels still name {host}:{port}, which is a replica now")
        return wire

    async def _ask_sentinel(self, host: Host) -> Host:
        sentinel = await connect(self._address, *host, credentials=(self._address.sentinel_user, self._address.sentinel_password))
        try:
            found = await sentinel.send(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.master or ""))
        finally:
            sentinel.abort("it has answered")
        if found is None:
            raise Refusal(f"ERR No such master with that name: {self._address.master}")
        return found[0].decode(), int(found[1])

    async def _owner_in_cluster(self) -> Wire:
        """Any node knows the owner of a slot, and says so to whoever asks for one of its keys elsewhere."""
        wire, host = await first(self._hosts, self._node)
        for _ in range(MOST_HOPS):
            with given_up(wire):
                elsewhere = await self._elsewhere(wire)
                if elsewhere is None:
                    await self._learn(wire, host)
                    return wire
            wire.abort("the keys are elsewhere")
            host = (elsewhere[0] or host[0], elsewhere[1])
            wire = await connect(self._address, *host)
        wire.abort("the keys are elsewhere")
        raise Cut("the nodes of the cluster do not agree who holds the keys; a failover may be under way")

    async def _node(self, host: Host) -> tuple[Wire, Host]:
        wire = await connect(self._address, *host)
        with given_up(wire):
            await wire.send(("PING",))  # one that still loads its data, or is frozen, knows nothing
        return wire, host

    async def _elsewhere(self, wire: Wire) -> Host | None:
        """The node that a node of the cluster names as the owner of the keys; None when it is that itself."""
        try:
            await wire.send(("EXISTS", self._address.key))
        except Refusal as refusal:
            if refusal.code == "MOVED":
                name, _, port = refusal.text.rpartition(" ")[2].rpartition(":")
                return name, int(port)
            if refusal.code != "ASK":  # which only the owner says, while it gives the keys away
                raise
        return None

    async def _learn(self, wire: Wire, asked: Host) -> None:
        """Remember all nodes, so that it is enough when any one of them is left."""
        found = {asked, *self._address.hosts}
        for _, _, *nodes in await wire.send(("CLUSTER", "SLOTS")):
            for name, port, *_ in nodes:
                found.add((name.decode() if name else asked[0], port))
        self._hosts = sorted(found)


@contextmanager
def given_up(wire: Wire) -> Generator[None]:
    """Close the connection when the block ends with an error."""
    try:
        yield
    except BaseException:
        wire.abort("it was of no use")
        raise


async def first(hosts: Sequence[Host], ask: Callable[[Host], Awaitable[T]]) -> T:
    """The first good answer of those who are all asked at once. Raises Refusal when all that answered refused, else Cut."""
    tasks: dict[asyncio.Future[T], Host] = {asyncio.ensure_future(ask(host)): host for host in hosts}
    failures: dict[Host, Exception] = {}
    winner: asyncio.Future[T] | None = None
    try:
        pending: set[asyncio.Future[T]] = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    winner = task
                    return task.result()
                if not isinstance(error, Cut | Refusal):
                    raise error
                failures[tasks[task]] = error
    finally:
        for task in tasks.keys() - {winner}:
            task.add_done_callback(_dropped)
            task.cancel()
    for host in hosts:
        if isinstance(refusal := failures[host], Refusal):
            raise refusal
    kind = Refused if all(isinstance(failure, Refused) for failure in failures.values()) else Cut
    raise kind("none could be asked: " + "; ".join(f"{host}:{port}: {failures[host, port]}" for host, port in hosts))


def _dropped(task: asyncio.Future[Any]) -> None:
    """Close what came too late."""
    if task.cancelled() or task.exception() is not None:
        return
    match task.result():
        case (Wire() as wire, _):
            wire.abort("another was quicker")
        case _:
            return
