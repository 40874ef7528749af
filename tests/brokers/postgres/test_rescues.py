"""What a rescue does where another transaction holds what the dead session held: a worker that froze just before a commit, for one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.brokers.postgres.conftest import Opens
from tests.conftest import Eventually

from offload.brokers.postgres import locking
from offload.brokers.postgres.session import PostgresSession
from offload.connections import SyncAdapter, adapter_of
from offload.job import Done, Isolation, Pulse, State
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim_one, info, job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio
ROOM: Mapping[Isolation, int] = {"async": 10, "thread": 10, "process": 10}


async def found_dead(session: PostgresSession, clock: TestClock) -> None:
    """Have a session see that the others beat no more."""
    for _ in range(10):
        if (await session.beat(Pulse())).rescue:
            return
        clock.advance(timedelta(seconds=3))
    raise AssertionError("nobody is dead")


def sync(connection: Any) -> SyncAdapter:
    adapter = adapter_of(connection)
    assert isinstance(adapter, SyncAdapter)
    return adapter


async def test_a_lease_locked_by_a_commit_that_does_not_come_keeps_nothing_else_from_rescue(opens: Opens, clock: TestClock) -> None:
    broker = await opens()
    async with broker.session(info()) as frozen, broker.session(info()) as well:
        await broker.enqueue([job(clock, id=id) for id in ("a", "b", "c")])
        leases = await frozen.fetch(None, 3, ROOM)
        await broker.enqueue([job(clock, id="mine")])
        mine = await claim_one(well)
        await broker.enqueue([job(clock, id="later", run_at=clock.now() + timedelta(seconds=1))])
        with pytest.raises(psycopg.OperationalError), broker.transaction() as connection:
            assert sync(connection).run(broker.settle_on(frozen.id, leases[0], Done()))
            await found_dead(well, clock)
            assert sorted(each.id for each in (await well.maintain()).touched) == ["b", "c"]
            found = await broker.get(["a", "b", "c", "later"])
            assert {id: record.state for id, record in found.items()} == {
                "a": State.RUNNING,
                "b": State.READY,
                "c": State.READY,
                "later": State.READY,
            }
            assert not (await frozen.beat(Pulse())).alive, "its session is over though a lease is still to be rescued"
            assert await well.settle([(mine, Done())]) == []
            connection.execute("select pg_terminate_backend(pg_backend_pid())")
        await found_dead(well, clock)
        assert [each.id for each in (await well.maintain()).touched] == ["a"]
        assert len(await broker.sessions()) == 1
        assert len(await well.fetch(None, 10, ROOM)) == 4


async def test_a_rescue_that_waits_for_a_gate_holds_up_neither_settles_nor_upkeep(
    opens: Opens, clock: TestClock, connection: psycopg.Connection[Any], server: PostgresServer, eventually: Eventually
) -> None:
    broker = await opens()
    async with broker.session(info()) as frozen, broker.session(info()) as well:
        await broker.enqueue([job(clock, id="lost", order_by="k")])
        gates = locking.gates_of([(await claim_one(frozen)).job])
        await broker.enqueue([job(clock, id="mine")])
        mine = await claim_one(well)
        await broker.enqueue([job(clock, id="later", run_at=clock.now() + timedelta(seconds=1))])
        await found_dead(well, clock)
        with connection.transaction():
            for gate in gates:
                connection.execute("select pg_advisory_xact_lock(%s)", [locking.lock_of(broker.opened.transaction(), gate)])
            upkeep = asyncio.create_task(well.maintain())
            waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%pg_advisory_xact_lock%'"
            await eventually(lambda: server.ask(waits) == [["1"]] or upkeep.done())
            assert await well.settle([(mine, Done())]) == []
            assert not upkeep.done(), "the settle has waited for the rescue"
            await upkeep
            assert (await broker.get(["later"]))["later"].state is State.READY
        await found_dead(well, clock)
        assert [each.id for each in (await well.maintain()).touched] == ["lost"]


async def test_the_limit_on_an_idle_transaction_ends_with_it_and_is_never_raised(
    opens: Opens, clock: TestClock, server: PostgresServer
) -> None:
    broker = await opens()
    show = "show idle_in_transaction_session_timeout"
    for theirs, inside in [("0", "10s"), ("1min", "10s"), ("2500ms", "2500ms"), ("10s", "10s")]:
        async with broker.session(info()) as session:
            await broker.enqueue([job(clock)])
            lease = await claim_one(session)
            with psycopg.connect(server.url, options=f"-c idle_in_transaction_session_timeout={theirs}") as caller:
                assert sync(caller).run(broker.settle_on(session.id, lease, Done()))
                assert caller.execute(show).fetchone() == (inside,)
                caller.commit()
                assert caller.execute(show).fetchone() == (theirs,)
