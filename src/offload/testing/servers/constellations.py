"""Several Redis or Valkey servers that belong together: a cluster, and a master with its replica under three sentinels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from offload.testing.servers.keyvalue import RedisServer, valkey
from offload.testing.servers.process import START_WITHIN, ServerFailed
from offload.testing.servers.wire import Reply

SLOTS = 16_384
QUICK_REPLICAS = ("--repl-diskless-sync-delay", "0")
"""A replica follows at once; servers wait 5 s for others by default."""


class StartsOne(Protocol):
    """`redis` or `valkey`."""

    def __call__(self, *, arguments: Sequence[str] = (), durable: bool = False) -> RedisServer: ...


class Constellation:
    """Servers that are stopped together; each of them can be killed and started alone."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers

    def stop(self) -> None:
        """Stop all."""
        for server in reversed(self.servers):
            server.stop()

    def start(self) -> None:
        """Start all that do not run, on their ports and data, and wait until each answers."""
        for server in self.servers:
            server.start()

    def close(self) -> None:
        """End all and remove their folders."""
        for server in self.servers:
            server.kill()  # a master that is asked to stop waits for its replicas
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Cluster(Constellation):
    """A cluster: `masters`, and `replicas`, each following the master of its place; `nodes` are both."""

    def __init__(self, masters: list[RedisServer], replicas: list[RedisServer]) -> None:
        super().__init__([*masters, *replicas])
        self.masters = masters
        self.replicas = replicas
        self.nodes = self.servers

    @property
    def url(self) -> str:
        """`redis+cluster://127.0.0.1:PORT,127.0.0.1:PORT,...`, the masters."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.masters)}"

    def master_of(self, slot: int) -> RedisServer:
        """The node that now holds a hash slot, as the first running node knows it. Raises ServerFailed when none does."""
        for line in text(next(node for node in self.nodes if node.running).ask("CLUSTER", "NODES")).splitlines():
            _, address, flags, _, _, _, _, state, *slots = line.split()
            if "master" in flags and "fail" not in flags and state == "connected" and any(_holds(share, slot) for share in slots):
                port = int(address.partition("@")[0].rpartition(":")[2])
                return next(node for node in self.nodes if node.port == port)
        raise ServerFailed(f"no node of the cluster holds slot {slot} now")

    def join(self) -> None:
        """Give each master its share of the slots, make all know each other, and wait until every node calls the cluster whole."""
        first = self.masters[0]
        shares = [SLOTS * place // len(self.masters) for place in range(len(self.masters) + 1)]
        for node, (low, high) in zip(self.masters, pairwise(shares), strict=True):
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(low), str(high - 1))
        for place, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(place + 1))
            first.ask("CLUSTER", "MEET", "127.0.0.1", str(node.port), str(node.bus_port))
        self._wait("cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}")
        for place, node in enumerate(self.replicas):
            master = self.masters[place % len(self.masters)]
            until(lambda node=node, master=master: follow(node, master), f"{node} is told to follow {master}")
            until(lambda node=node: "master_link_status:up" in text(node.ask("INFO", "replication")), f"{node} follows {master}")

    def _wait(self, *facts: str) -> None:
        for node in self.nodes:
            until(lambda node=node: set(facts) <= set(text(node.ask("CLUSTER", "INFO")).splitlines()), f"{node} says {facts}")


class SentinelServer(RedisServer):
    name: ClassVar[str] = "sentinel"

    def __init__(self, program: Path, watched: str) -> None:
        super().__init__(program)
        self._watched = watched

    def command(self) -> list[str]:
        settings = self.folder / "sentinel.conf"
        if not self.version:  # later a sentinel finds there what it has learnt
            settings.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n{self._watched}")
        return [str(self.program), str(settings), "--sentinel"]


class Sentinels(Constellation):
    """Three sentinels that watch `master` and `replica` under the `name`.

    Half a second after the master is gone they begin to put the replica in its place, which takes about two seconds.
    """

    name = "mymaster"

    def __init__(self, master: RedisServer, replica: RedisServer, sentinels: list[RedisServer]) -> None:
        super().__init__([master, replica, *sentinels])
        self.master = master
        self.replica = replica
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        """`redis+sentinel://127.0.0.1:PORT,127.0.0.1:PORT,127.0.0.1:PORT/mymaster`, the sentinels."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{node.port}' for node in self.sentinels)}/{self.name}"

    def current(self) -> RedisServer:
        """The server that the sentinels now call the master: `master` or `replica`."""
        answer = next(node for node in self.sentinels if node.running).ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        assert isinstance(answer, list), answer
        port = int(text(answer[1]))
        return next(node for node in (self.master, self.replica) if node.port == port)


def cluster(masters: int = 3, replicas: int = 0, *, durable: bool = False, server: StartsOne = valkey) -> Cluster:
    """Start a cluster of `masters`, at least three, and so many `replicas`, given to the masters in turn.

    `server` is `valkey` or `redis`. A master that is gone is noticed after a second, and its replica, if it has one, takes its place.
    Raises ServerMissing, and ServerFailed when the nodes do not come together.
    """
    arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *QUICK_REPLICAS)
    nodes: list[RedisServer] = []
    try:
        nodes.extend(server(arguments=arguments, durable=durable) for _ in range(masters + replicas))
        together = Cluster(nodes[:masters], nodes[masters:])
        together.join()
    except BaseException:
        Constellation(nodes).close()
        raise
    return together


def sentinel(*, durable: bool = False, server: StartsOne = valkey) -> Sentinels:
    """Start a master, its replica and three sentinels; `server` is `valkey` or `redis`.

    Raises ServerMissing, and ServerFailed when they do not find each other.
    """
    started: list[RedisServer] = []
    try:
        started.append(master := server(arguments=QUICK_REPLICAS, durable=durable))
        started.append(replica := server(arguments=(*QUICK_REPLICAS, "--replicaof", "127.0.0.1", str(master.port)), durable=durable))
        until(lambda: "master_link_status:up" in text(replica.ask("INFO", "replication")), "the replica follows the master")
        watched = "".join(f"sentinel {line}\n" for line in watch(Sentinels.name, master.port))
        for _ in range(3):
            started.append(node := SentinelServer(master.program, watched))
            node.start()
        for node in started[2:]:
            until(lambda node=node: _knows_all(node), f"{node} knows the replica and two other sentinels")
    except BaseException:
        Constellation(started).close()
        raise
    return Sentinels(master, replica, started[2:])


def follow(node: RedisServer, master: RedisServer) -> bool:
    """Make a node of a cluster the replica of another, which it has to know already. Raises OSError while it does not."""
    return node.ask("CLUSTER", "REPLICATE", text(master.ask("CLUSTER", "MYID"))) == b"OK"


def _holds(share: str, slot: int) -> bool:
    """Whether a share of slots, such as `0-5460` or `7`, has this one; `[7->-id]` is one on its way."""
    low, _, high = share.partition("-")
    return not share.startswith("[") and int(low) <= slot <= int(high or low)


def watch(name: str, port: int) -> list[str]:
    """What a sentinel is told: which master, how many must agree, and the patience in milliseconds."""
    return [f"monitor {name} 127.0.0.1 {port} 2", f"down-after-milliseconds {name} 500", f"failover-timeout {name} 3000"]


def _knows_all(node: RedisServer) -> bool:
    reply = node.ask("SENTINEL", "MASTER", Sentinels.name)
    assert isinstance(reply, list), reply
    words = [text(word) for word in reply]
    facts = dict(zip(words[::2], words[1::2], strict=True))
    return facts["num-slaves"] == "1" and facts["num-other-sentinels"] == "2"


def text(reply: Reply) -> str:
    """A reply that is a text."""
    assert isinstance(reply, bytes), reply
    return reply.decode()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds; an error of a server that is not ready counts as not yet. Raises ServerFailed."""
    deadline = time.monotonic() + START_WITHIN
    refused: OSError | None = None
    while True:
        try:
            if condition():
                return
        except OSError as error:
            refused = error
        if time.monotonic() > deadline:
            raise ServerFailed(f"not within {START_WITHIN:g} s: {what}" + (f" ({refused})" if refused else "")) from refused
        time.sleep(0.02)
