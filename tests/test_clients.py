"""One opened client per event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import ClassVar, Self

import pytest

from offload import BrokerError, Offload
from offload.brokers.memory import MemoryBroker
from offload.clients import Clients
from offload.clock import Clock, SystemClock
from offload.errors import BrokerUnusable
from offload.job import Job
from offload.portal import portal


class PerLoop(MemoryBroker):
    """A broker each of whose clients serves one loop, as those on sockets do."""

    opened: ClassVar[list[PerLoop]] = []
    closed: ClassVar[list[PerLoop]] = []
    faults: ClassVar[list[Exception]] = []
    gate: ClassVar[asyncio.Event | None] = None

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.loop: asyncio.AbstractEventLoop | None = None

    def client(self) -> Self:
        return type(self)(self.clock)

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()
        if self.gate is not None:
            await self.gate.wait()
        if self.faults:
            raise self.faults.pop()
        self.opened.append(self)

    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        assert self.loop is asyncio.get_running_loop()
        return await super().enqueue(jobs)

    async def close(self) -> None:
        assert self.loop is asyncio.get_running_loop()
        self.closed.append(self)


class Shared(PerLoop):
    """A broker whose one client serves every loop."""

    def client(self) -> Self:
        return self


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[PerLoop]:
    kind: type[PerLoop] = getattr(request, "param", PerLoop)
    for name in ("opened", "closed", "faults"):
        monkeypatch.setattr(PerLoop, name, [])
    monkeypatch.setattr("offload.clients.broker_class", lambda url: kind)
    return kind


@pytest.fixture
def clients(kind: type[PerLoop]) -> Clients:
    return Clients("memory://", SystemClock())


def test_a_loop_has_one_client_and_another_loop_another(clients: Clients) -> None:
    async def main() -> list[object]:
        return [await clients.client(), await clients.client(), await clients.store()]

    here = asyncio.run(main())
    there = portal.run(main)
    assert len(set(map(id, here))) == len(set(map(id, there))) == 1
    assert len({*map(id, here), *map(id, there)}) == len(PerLoop.opened) == 2


@pytest.mark.parametrize("kind", [Shared], indirect=True)
def test_a_client_for_all_loops_is_opened_once(clients: Clients) -> None:
    assert asyncio.run(clients.client()) is portal.run(clients.client) is clients.broker
    assert len(PerLoop.opened) == 1


def test_callers_at_the_same_time_share_one_opening(clients: Clients) -> None:
    async def main() -> None:
        PerLoop.gate = asyncio.Event()
        calls = [asyncio.create_task(clients.client()) for _ in range(5)]
        await asyncio.sleep(0)
        calls[0].cancel()  # its giving up must not end the opening for the others
        await asyncio.sleep(0)
        PerLoop.gate.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        assert len(set(map(id, done[1:]))) == 1

    try:
        asyncio.run(main())
    finally:
        PerLoop.gate = None
    assert len(PerLoop.opened) == 1


def test_an_opening_that_failed_is_tried_again_by_the_next_call(clients: Clients) -> None:
    PerLoop.faults.append(BrokerError("no server"))

    async def main() -> None:
        with pytest.raises(BrokerError, match="no server"):
            await clients.client()
        await clients.client()

    asyncio.run(main())
    assert len(PerLoop.opened) == 1


def test_a_producer_waits_for_a_broker_that_is_away_as_long_as_its_timeout_says(clients: Clients) -> None:
    PerLoop.faults += [BrokerError("no server")] * 3
    clients.broker.timeout = 60.0
    asyncio.run(clients.patient())
    assert PerLoop.faults == []
    assert len(PerLoop.opened) == 1


def test_a_producer_does_not_wait_for_what_a_person_must_change(clients: Clients) -> None:
    PerLoop.faults.append(BrokerUnusable("wrong password"))
    clients.broker.timeout = 60.0
    with pytest.raises(BrokerUnusable, match="wrong password"):
        asyncio.run(clients.patient())
    PerLoop.faults.append(BrokerError("no server"))
    clients.broker.timeout = 0.0
    with pytest.raises(BrokerError, match="no server"):
        asyncio.run(clients.patient())


def test_a_loop_that_ends_while_it_opens_leaves_no_one_waiting(clients: Clients) -> None:
    async def main() -> None:
        PerLoop.gate = asyncio.Event()
        waiting = asyncio.create_task(clients.client())
        await asyncio.sleep(0)
        waiting.cancel()

    try:
        asyncio.run(main())
    finally:
        PerLoop.gate = None
    asyncio.run(clients.client())
    assert len(PerLoop.opened) == 1


def test_the_client_of_a_closed_loop_is_dropped(clients: Clients) -> None:
    for _ in range(3):
        asyncio.run(clients.client())
    assert len(clients._openings) == 1
    assert len(clients._ready) == 1


def test_closing_closes_each_client_on_its_own_loop(clients: Clients) -> None:
    portal.run(clients.client)

    async def main() -> None:
        await clients.client()
        await clients.close()
        assert len(PerLoop.closed) == 2
        await clients.client()

    asyncio.run(main())
    assert len(PerLoop.opened) == 3


def test_closing_drops_the_client_of_a_loop_that_has_ended(clients: Clients) -> None:
    asyncio.run(clients.client())
    portal.run(clients.close)
    assert PerLoop.closed == []


@pytest.mark.usefixtures("kind")
def test_an_app_can_be_used_from_loop_after_loop() -> None:
    app = Offload("memory://")
    for _ in range(2):
        assert asyncio.run(app.aenqueue("x")).id
        assert app.enqueue("x").id


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_broker_and_clients_of_its_own() -> None:
    program = """
import asyncio, os
from offload import Offload
app = Offload("memory://")
app.enqueue("x")
before = app.broker
child = os.fork()
if child == 0:
    app.enqueue("x")
    asyncio.run(app.aenqueue("x"))
    os._exit(0 if app.broker is not before and sum(app.counts()["default"].values()) == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
app.enqueue("x")
assert app.broker is before and sum(app.counts()["default"].values()) == 2
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30)
