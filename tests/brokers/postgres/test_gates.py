"""Orders and limits by key where several transactions meet: callers that stay open, processes at the same keys, the version before."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import PIPE
from time import monotonic
from typing import Any

import psycopg
import pytest
from tests.brokers.postgres.conftest import SOON, Ask, Caller, Opens, carried_out

from offload.broker import Work
from offload.brokers.postgres import PostgresBroker
from offload.brokers.postgres.migrating import SCHEMA
from offload.brokers.postgres.work import schema_script, statements
from offload.clock import SystemClock
from offload.errors import BrokerError
from offload.job import Done, Job, RateLimit, SlotLimit, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, claim_one, ids, info, job, record, rule, settle, state, tick_job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio


def keyed(clock: TestClock, id: str, key: str = "k", **fields: Any) -> Job:
    """A job of one order with one of two slots of another key."""
    return job(clock, id, order_by=key, limits=(SlotLimit(f"slots of {key}", 2),), **fields)


async def test_a_callers_long_transaction_blocks_nobody_of_its_key(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    await broker.enqueue([keyed(clock, "before")])
    assert carried_out(caller, broker.enqueue_on([keyed(clock, "long"), keyed(clock, "longer")])) == ["long", "longer"]
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        await broker.enqueue([keyed(clock, "meanwhile")])
        for expected in ("before", "meanwhile"):
            lease = await claim_one(session)
            assert lease.job.id == expected
            await settle(session, lease, Done())
        caller.commit()
        await broker.enqueue([keyed(clock, "after")])
        for expected in ("long", "longer", "after"):
            lease = await claim_one(session)
            assert lease.job.id == expected
            await settle(session, lease, Done())
    assert await broker.limits() == []


async def test_who_waits_to_be_let_in_is_told_so_and_let_in_by_the_next_who_comes(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    carried_out(caller, broker.enqueue_on([keyed(clock, f"j{n}") for n in range(3)]))
    caller.commit()
    assert [(await record(broker, f"j{n}")).reason for n in range(3)] == ["waits to be let in"] * 3
    assert await broker.counts() == {"default": {State.WAITING: 3}}
    async with broker.session(info()) as session:
        await asyncio.wait_for(session.wait(60), SOON)
        await session.maintain()
        assert (await state(broker, "j0"), (await record(broker, "j1")).reason) == (State.READY, "waits for a turn of k")
        assert ids(await claim(session)) == ["j0"]


async def test_who_waits_to_be_let_in_can_be_cancelled_deleted_and_debounced_and_expires(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    last = UniqueKey("u", "started", "debounce")
    wishes = [
        keyed(clock, "cancelled"),
        keyed(clock, "deleted"),
        keyed(clock, "expired", expires_in=5),
        keyed(clock, "debounced", unique=last),
    ]
    carried_out(caller, broker.enqueue_on(wishes))
    caller.commit()
    assert await broker.cancel(["cancelled"]) == {"cancelled"}
    assert await broker.delete(["deleted"]) == {"deleted"}
    await broker.enqueue([keyed(clock, "again", unique=last, delay=60)])
    assert await state(broker, "debounced") is State.SCHEDULED
    clock.advance(10)
    async with broker.session(info()) as session:
        await session.maintain()
        assert await claim(session) == []
        assert (await state(broker, "expired"), await broker.get(["deleted"])) == (State.EXPIRED, {})
        clock.advance(60)
        await session.maintain()
        assert ids(await claim(session)) == ["debounced"]


async def test_who_is_let_in_may_have_several_keys_as_long_as_can_be(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    chance = random.Random(1)  # what repeats itself takes less room than its length says
    limits = tuple(SlotLimit("".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(200)), 1) for _ in range(4))
    await broker.enqueue([job(clock, "holder", limits=limits[:1])])
    carried_out(caller, broker.enqueue_on([job(clock, "wide", limits=limits)]))
    caller.commit()
    await broker.enqueue([job(clock, "plain")])
    async with broker.session(info()) as session:
        holder, plain = await claim(session)
        assert ids([holder, plain]) == ["holder", "plain"]
        await settle(session, holder, Done())
        assert ids(await claim(session)) == ["wide"]


@pytest.mark.parametrize("delay", [None, 60])
async def test_a_debounce_by_a_caller_takes_the_job_from_its_gates_after_the_commit(
    broker: PostgresBroker, clock: TestClock, caller: Caller, delay: float | None
) -> None:
    last = UniqueKey("u", "started", "debounce")
    limits = (SlotLimit("k", 1),)
    await broker.enqueue([job(clock, "a", limits=limits, unique=last), job(clock, "b", limits=limits), job(clock, "c", limits=limits)])
    carried_out(caller, broker.enqueue_on([job(clock, "again", limits=limits, unique=last, payload=b'{"n":2}', delay=delay)]))
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        await broker.cancel(["c"])
        caller.commit()
        assert (await record(broker, "a")).payload == b'{"n":2}'
        await session.maintain()
        assert await state(broker, "a") is (State.READY if delay is None else State.SCHEDULED)
        lease = await claim_one(session)
        await settle(session, lease, Done())
        clock.advance(60)
        await session.maintain()
        assert [lease.job.id, *ids(await claim(session))] == (["a", "b"] if delay is None else ["b", "a"])


def locks_of_gates(ask: Ask, caller: Caller) -> int:
    [(count,)] = ask("select count(*) from pg_locks where locktype = 'advisory' and pid = %(pid)s", pid=caller.info.backend_pid)
    return count


async def test_a_debounce_by_a_caller_of_a_job_whose_time_is_to_come_locks_no_gates(
    broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask
) -> None:
    last = UniqueKey("u", "started", "debounce")
    await broker.enqueue([keyed(clock, "a", unique=last, delay=60)])
    carried_out(caller, broker.enqueue_on([keyed(clock, "again", unique=last, delay=90)]))
    assert locks_of_gates(ask, caller) == 0
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        await broker.enqueue([keyed(clock, "meanwhile")])
        assert ids(await claim(session)) == ["meanwhile"]
        caller.commit()
        clock.advance(60)
        await session.maintain()
        assert await state(broker, "a") is State.SCHEDULED
        clock.advance(30)
        await session.maintain()
        assert (await record(broker, "a")).reason == "waits for a turn of k"


async def test_a_caller_whose_changes_were_undone_locks_its_gates_anew(
    broker: PostgresBroker, clock: TestClock, caller: Caller, schema: str, ask: Ask
) -> None:
    schedule = rule(overlap="replace")
    await broker.enqueue([tick_job(clock, schedule, "before", order_by="k")])
    work = broker.enqueue_on([tick_job(clock, schedule, "after"), job(clock, "second", unique=UniqueKey("u"))])

    def overtaken() -> Work[list[str]]:
        """The first time that keys are taken, another has just taken one."""
        take_keys = statements(schema)["take_keys"]
        statement = next(work)
        try:
            while True:
                if statement.sql == take_keys:
                    ask("insert into uniques (key, n, holder, until) values ('u', 0, 'first', 'finished') on conflict do nothing")
                statement = work.send((yield statement))
        except StopIteration as end:
            return end.value

    assert carried_out(caller, overtaken()) == ["after", "first"]
    assert locks_of_gates(ask, caller) == 1
    caller.commit()
    assert await state(broker, "before") is State.CANCELLED


async def test_a_transaction_that_settles_gives_its_key_to_the_next_when_it_commits(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    await broker.enqueue([keyed(clock, "a"), keyed(clock, "b")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        assert carried_out(caller, broker.settle_on(session.id, lease, Done()))
        caller.rollback()
        assert await state(broker, "b") is State.WAITING
        assert carried_out(caller, broker.settle_on(session.id, lease, Done()))
        caller.commit()
        assert ids(await claim(session)) == ["b"]


async def test_a_transaction_that_does_not_see_what_others_commit_settles_no_job_with_keys(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    caller.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    await broker.enqueue([keyed(clock, "a")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        with pytest.raises(BrokerError, match="job a has order_by or limits: its transaction must be READ COMMITTED, not REPEATABLE READ"):
            carried_out(caller, broker.settle_on(session.id, lease, Done()))


async def test_a_worker_that_sleeps_wakes_up_when_the_next_token_comes(opens: Opens) -> None:
    clock = SystemClock()
    broker = await opens(by=clock)
    limit = RateLimit("k", 300_000)
    await broker.enqueue([Job(id=id, task="greet", enqueued_at=clock.now(), limits=(limit,)) for id in ("a", "b")])
    async with broker.session(info()) as session:
        begun = monotonic()
        assert ids(await claim(session)) == ["a"]
        while not (leases := await claim(session)):
            await asyncio.wait_for(session.wait(60), SOON)
        assert ids(leases) == ["b"]
        assert 0.25 < monotonic() - begun < 2.0


HAMMER = """
import asyncio, random, sys
from offload.brokers.postgres import PostgresBroker
from offload.clock import SystemClock
from offload.job import *

ROOM = {"async": 50, "thread": 0, "process": 0}

async def main(url, name, rounds):
    broker, chance = PostgresBroker.connect(url, SystemClock()), random.Random(name)
    await broker.open()
    keys = [f"key {n}" for n in range(12)]
    def wish(id):
        limits = tuple(SlotLimit(key, 2) for key in chance.sample(keys, chance.randrange(3)))
        order_by = chance.choice(keys) if chance.random() < 0.5 else None
        unique = UniqueKey(chance.choice(keys), on_conflict="skip") if chance.random() < 0.2 else None
        fair_by = chance.choice([None, "f", "g"])
        return Job(id=id, task="t", enqueued_at=broker.clock.now(), order_by=order_by, limits=limits, unique=unique, fair_by=fair_by)
    async def produce():
        for n in range(rounds):
            await broker.enqueue([wish(f"{name} {n} {i}") for i in range(5)])
            await broker.cancel([f"{name} {chance.randrange(n + 1)} {i}" for i in range(3)])
            await broker.delete([f"{name} {chance.randrange(n + 1)} {i}" for i in range(2)])
    async def consume(session, until):
        while not until.done() or (await broker.counts()).get("default", {}).keys() & {State.READY, State.WAITING, State.SCHEDULED}:
            leases = await session.fetch(None, 7, ROOM)
            outcomes = [Done(), Done(), Done(), Dead("d"), Release(), Retried(0)]
            await session.settle([(lease, chance.choice(outcomes)) for lease in leases])
            await session.maintain()
    worker = WorkerInfo(name=name, host="here", pid=1, tasks={"t": "async"})
    async with broker.session(worker) as one, broker.session(worker) as two:
        producing = asyncio.ensure_future(produce())
        await asyncio.gather(producing, consume(one, producing), consume(two, producing))
    await broker.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.mark.process
@pytest.mark.timeout(300)
async def test_processes_at_the_same_keys_get_on_and_leave_nothing_held(broker: PostgresBroker, url: str, ask: Ask) -> None:
    programs = [await asyncio.create_subprocess_exec(sys.executable, "-c", HAMMER, url, f"p{n}", "40", stderr=PIPE) for n in range(2)]
    for program in programs:
        _, said = await asyncio.wait_for(program.communicate(), 250)
        assert (program.returncode, said) == (0, b""), said.decode()
    counts = (await broker.counts())["default"]
    assert counts.keys() <= {State.SUCCEEDED, State.DEAD, State.CANCELLED}
    assert await broker.limits() == []
    for table in ("slots", "parked", "lanes", "arrivals", "uniques"):
        assert ask(f"select count(*) from {table}") == [(0,)], table
    print(f"{counts}; {ask('select deadlocks from pg_stat_database where datname = current_database()')[0][0]} deadlocks on the server")


async def test_jobs_of_the_version_before_stay_and_what_it_has_prepared_goes_on(
    server: PostgresServer, schema: str, opens: Opens, clock: TestClock, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    connection.execute(f'create schema "{schema}"'.encode())
    connection.execute(schema_script(schema))
    add = """with added as (
        insert into jobs (n, id, task, queue, rank, payload, enqueued_at, keep)
        values (nextval('places'), %s, 'greet', 'default', 0, '{}', 0, 60) returning n
    ) insert into ready (queue, rank, pos, n, ready_at) select 'default', 0, n, n, 0 from added"""
    look = "select n, id, state, claim, attempt, reason, errors, steps, progress from records where id = any(%s)"
    connection.execute(add.encode(), ["before"], prepare=True)
    assert [row[1:3] for row in connection.execute(look.encode(), [["before"]], prepare=True)] == [("before", "READY")]
    broker = await opens()
    assert (await broker.inspect()).schema == SCHEMA
    connection.execute(add.encode(), ["beside"], prepare=True)
    assert [row[1:3] for row in connection.execute(look.encode(), [["beside"]], prepare=True)] == [("beside", "READY")]
    await broker.enqueue([keyed(clock, "keyed"), keyed(clock, "later")])
    async with broker.session(info()) as session:
        assert ids(await claim(session)) == ["before", "beside", "keyed"]
