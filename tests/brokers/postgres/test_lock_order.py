"""Those who end jobs of one workflow at once, and add to it, lock what they share in one order: the server finds no deadlock among them."""

from __future__ import annotations

import threading
import time

import pytest
from tests.brokers.postgres.conftest import Ask, Crowd

from offload.brokers.postgres import PostgresBroker
from offload.job import Done, Job, Outcome, State
from offload.testing.clock import TestClock
from offload.testing.contract.families import node, states, takes, tally
from offload.testing.contract.fixtures import claim, info, job

pytestmark = pytest.mark.anyio
WORKERS = 4
REPORTED = 1.2
"""Seconds after which the server has counted what it found."""


class Deadlocks:
    """Those that the server found in the meantime."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._before = self._number()

    def _number(self) -> int:
        ((number,),) = self._ask("select deadlocks from pg_stat_database where datname = current_database()")
        return int(number)

    def found(self) -> int:
        time.sleep(REPORTED)
        return self._number() - self._before


@pytest.fixture
def deadlocks(ask: Ask) -> Deadlocks:
    return Deadlocks(ask)


async def drain(broker: PostgresBroker, at_once: int, outcome: dict[str, Outcome]) -> int:
    """Settle all there is, so many at once; by id, what is not named succeeds. Returns how many."""
    number = 0
    async with broker.session(info()) as session:
        while leases := await claim(session, at_once):
            assert await session.settle([(lease, outcome.get(lease.job.id, Done(b"1"))) for lease in leases]) == []
            number += len(leases)
    return number


@pytest.mark.parametrize("at_once", [1, 5])
async def test_jobs_that_add_others_while_more_parents_of_a_join_end(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, deadlocks: Deadlocks, at_once: int
) -> None:
    parts = [f"p{n}" for n in range(120)]
    added: list[tuple[Job, ...]] = [(node(clock, f"x{n}"), node(clock, f"y{n}", parts[n - 1], f"x{n}")) for n in range(120)]
    outcome: dict[str, Outcome] = {id: Done(b"1", added[n]) for n, id in enumerate(parts) if n % 2}
    joins = [node(clock, f"join{n}", *parts[n::3], takes("p0", "x")) for n in range(3)]
    await broker.enqueue([*(node(clock, id, size=len(parts) + 3) for id in parts), *joins])
    shares = crowd.run(*[lambda broker: drain(broker, at_once, outcome)] * WORKERS)
    await drain(broker, 1_000, {})
    shown = await tally(broker)
    assert (shown.total, shown.succeeded) == (243, 243), shares
    assert deadlocks.found() == 0


async def test_parents_of_a_join_that_expire_while_others_of_it_end(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, deadlocks: Deadlocks
) -> None:
    late, parts = [f"e{n}" for n in range(60)], [f"p{n}" for n in range(200)]
    expiring = [node(clock, id, queue="none", expires_in=1 + n) for n, id in enumerate(late)]
    await broker.enqueue([*(node(clock, id) for id in parts), *expiring, node(clock, "join", *parts, *late, queue="none", fails="run")])
    over = threading.Event()

    async def settle(broker: PostgresBroker) -> None:
        async with broker.session(info()) as session:
            while leases := await claim(session, 1, ["default"]):
                assert await session.settle([(lease, Done()) for lease in leases]) == []
        over.set()

    async def expire(broker: PostgresBroker) -> None:
        async with broker.session(info("overseer", "none")) as session:
            while not over.is_set():
                clock.advance(1)
                await session.maintain()

    crowd.run(settle, settle, expire)
    clock.advance(100)
    async with broker.session(info("overseer", "none")) as session:
        while (await tally(broker)).expired < len(late):
            await session.maintain()
    assert await states(broker, "join") == [State.READY]
    assert deadlocks.found() == 0


async def test_a_job_that_adds_is_refused_while_its_siblings_end(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, deadlocks: Deadlocks
) -> None:
    parts = [f"p{n}" for n in range(80)]
    outcome: dict[str, Outcome] = {id: Done(b"1", (node(clock, f"x{n}"), node(clock, "taken"))) for n, id in enumerate(parts) if n % 2}
    await broker.enqueue([job(clock, "taken", queue="none"), *(node(clock, id) for id in parts), node(clock, "join", *parts, fails="run")])
    crowd.run(*[lambda broker: drain(broker, 2, outcome)] * WORKERS)
    await drain(broker, 1_000, {})
    shown = await tally(broker)
    assert (shown.total, shown.dead, shown.succeeded) == (81, 40, 41)
    assert deadlocks.found() == 0


async def test_a_workflow_is_stopped_and_revived_while_its_jobs_end(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, deadlocks: Deadlocks
) -> None:
    parts = [f"p{n}" for n in range(200)]
    children = [node(clock, f"c{n}", parts[n], parts[n - 1], fails="run" if n % 3 else "cancel") for n in range(200)]
    await broker.enqueue([*(node(clock, id) for id in parts), *children, node(clock, "join", *(each.id for each in children))])
    over = threading.Event()

    async def settle(broker: PostgresBroker) -> None:
        async with broker.session(info()) as session:
            while not over.is_set():
                leases = await claim(session, 3)
                assert await session.settle([(lease, Done()) for lease in leases]) == []
                await session.maintain()

    async def stop(broker: PostgresBroker) -> None:
        for n in range(40):
            await broker.stop("workflow", "flow")
            await broker.retry(parts[5 * n : 5 * n + 5])
        over.set()

    crowd.run(settle, settle, stop)
    async with broker.session(info()) as session:
        while (await session.maintain()).wait == 0:
            pass
    shown = await tally(broker)
    assert shown.total == 401
    assert deadlocks.found() == 0
