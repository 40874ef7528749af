"""Jobs that another transaction moves into a lane between the look of one who cancels or deletes them and the moment when he takes them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable

import pytest
from tests.brokers.postgres.conftest import Ask, Caller, Crowd

from offload.broker import Work
from offload.brokers.postgres import PostgresBroker
from offload.brokers.postgres.cancelling import cancel
from offload.brokers.postgres.control import delete
from offload.brokers.postgres.work import Operation, T, told
from offload.job import Done, Job, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.families import node, states
from offload.testing.contract.fixtures import claim, ids, info, job, settle
from offload.testing.contract.keyed import run

pytestmark = pytest.mark.anyio
OPERATIONS: dict[str, Callable[[str], Operation[set[str]]]] = {
    "cancel": lambda id: lambda tx: cancel(tx, [id]),
    "delete": lambda id: lambda tx: delete(tx, [id]),
}


async def interrupted(connection: Caller, work: Work[T], meanwhile: Callable[[], Awaitable[object]], after: str = "records where id") -> T:
    """What an operation returns on a connection of its own, when something else happens after its first look, a statement with `after`."""
    answer = None
    try:
        statement = next(work)
        while True:
            cursor = await asyncio.to_thread(connection.execute, statement.sql.encode(), statement.values)
            answer = cursor.fetchall() if cursor.description else []
            if after in statement.sql:
                act, meanwhile = meanwhile, nothing
                await act()
            statement = work.send(answer)
    except StopIteration as end:
        connection.commit()
        return end.value


async def nothing() -> None:
    """Nothing happens."""


def successor(clock: TestClock) -> list[Job]:
    key = UniqueKey("u", "finished", "keep_last")
    return [job(clock, "p", unique=key), job(clock, "c", order_by="k", unique=key)]


def child(clock: TestClock) -> list[Job]:
    return [node(clock, "p"), node(clock, "c", "p", order_by="k")]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("pair", [child, successor])
async def test_who_comes_into_a_lane_just_then_is_found_there(
    broker: PostgresBroker, clock: TestClock, caller: Caller, name: str, pair: Callable[[TestClock], list[Job]]
) -> None:
    await broker.enqueue([job(clock, "holds", order_by="k"), *pair(clock), job(clock, "next", order_by="k")])
    async with broker.session(info()) as session:
        leases = {lease.job.id: lease for lease in await claim(session)}
        tx = broker.opened.transaction()
        work = told(tx, OPERATIONS[name]("c"))
        assert await interrupted(caller, work, lambda: settle(session, leases["p"], Done())) == {"c"}
        assert await states(broker, "c") == [State.CANCELLED if name == "cancel" else None]
        await settle(session, leases["holds"], Done())
        assert await run(session) == ["next"]
        assert await broker.limits() == []


async def test_who_was_cancelled_or_deleted_does_not_run_and_blocks_no_key(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, ask: Ask
) -> None:
    pairs = 150
    over = threading.Event()
    for n in range(pairs):
        key = f"k{n % 5}"
        await broker.enqueue([node(clock, f"p{n}", order_by=key), node(clock, f"c{n}", f"p{n}", order_by=key), job(clock, order_by=key)])

    async def work(broker: PostgresBroker) -> list[str]:
        ran: list[str] = []
        async with broker.session(info()) as session:
            while True:
                finished = over.is_set()
                leases = await claim(session, 3)
                assert await session.settle([(lease, Done()) for lease in leases]) == []
                ran += ids(leases)
                if finished and not leases:
                    return ran

    async def interfere(broker: PostgresBroker) -> list[str]:
        gone: list[str] = []
        for n in range(pairs):
            unstarted = [id for id, each in (await broker.get([f"c{n}"])).items() if each.state is State.WAITING]
            if random.random() < 0.5:
                await broker.delete(unstarted)  # it may have run meanwhile, and be deleted all the same
            elif await broker.cancel(unstarted):
                gone += [id for id, each in (await broker.get(unstarted)).items() if each.state is State.CANCELLED]
        over.set()
        return gone

    *shares, gone = crowd.run(work, work, interfere)
    assert not {id for share in shares for id in share} & set(gone)
    async with broker.session(info()) as session:
        while await run(session):
            pass
    assert ask("select (select count(*) from parked) + (select count(*) from waiting) + (select count(*) from slots)") == [(0,)]
    assert await broker.limits() == []
