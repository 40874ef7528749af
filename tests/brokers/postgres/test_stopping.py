"""Stops, retries and upkeep of one workflow that meet: it comes to the same as if one had come after the other."""

from __future__ import annotations

import asyncio

import pytest
from tests.brokers.postgres.conftest import SOON, Ask, Caller, Opens
from tests.brokers.postgres.test_moved import interrupted

from offload.brokers.postgres import PostgresBroker, control, families, tallies
from offload.brokers.postgres.work import Doubt, told
from offload.job import Done, State
from offload.testing.clock import TestClock
from offload.testing.contract.families import FLOW, node, states, tally
from offload.testing.contract.fixtures import claim_one, info, settle

pytestmark = pytest.mark.anyio


class Retries:
    """A retry by another client, which has to wait."""

    def __init__(self, broker: PostgresBroker, ask: Ask, id: str) -> None:
        self._broker = broker
        self._ask = ask
        self._id = id

    async def begin(self) -> None:
        self._task = asyncio.create_task(self._broker.retry([self._id]))
        async with asyncio.timeout(SOON):
            while not self._ask("select 1 from pg_locks where not granted"):  # noqa: ASYNC110 - the server rings no bell
                await asyncio.sleep(0.01)

    async def end(self) -> set[str]:
        return await self._task


async def test_a_retry_waits_for_whoever_goes_on_with_a_stop_just_then(
    opens: Opens, broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask
) -> None:
    await broker.enqueue([node(clock, f"j{n}", size=3) for n in range(3)])
    await broker.opened.change(lambda tx: tallies.begin_to_stop(tx, "workflow", FLOW))  # by a client that was killed then
    retries = Retries(await opens(), ask, "j1")
    await interrupted(caller, told(broker.opened.transaction(), tallies.go_on_stopping), retries.begin, "where stopping is not null and")
    assert await retries.end() == {"j1"}
    assert await states(broker, "j0", "j1", "j2") == [State.CANCELLED, State.READY, State.CANCELLED]


async def test_a_stop_that_begins_during_a_retry_comes_before_it(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    await broker.enqueue([node(clock, f"j{n}", size=3) for n in range(3)])
    await broker.cancel(["j1"])
    work = told(broker.opened.transaction(), lambda tx: control.retry(tx, ["j1"], None))
    with pytest.raises(Doubt):
        await interrupted(
            caller, work, lambda: broker.opened.change(lambda tx: tallies.begin_to_stop(tx, "workflow", FLOW)), "j.workflow and stopping"
        )
    caller.rollback()
    assert await broker.retry(["j1"]) == {"j1"}
    assert await states(broker, "j0", "j1", "j2") == [State.CANCELLED, State.READY, State.CANCELLED]
    assert not (await tally(broker)).stopped


async def test_a_retry_waits_for_whoever_tells_children_just_then(
    monkeypatch: pytest.MonkeyPatch, opens: Opens, broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask
) -> None:
    names = [f"c{n}" for n in range(5)]
    other = await opens()
    await broker.enqueue([node(clock, "p", size=6), *(node(clock, name, "p") for name in names)])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        assert await broker.stop("workflow", FLOW)
        monkeypatch.setattr(families, "MOST_LINKS", 2)
        await settle(session, lease, Done())
        retries = Retries(other, ask, "c0")
        await interrupted(caller, told(broker.opened.transaction(), families.pay_owed), retries.begin, "skip locked")
        assert await retries.end() == {"c0"}
        while (await session.maintain()).wait == 0:
            pass
        assert await states(broker, *names) == [State.READY, *[State.CANCELLED] * 4]
