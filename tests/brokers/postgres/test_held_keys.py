"""Transactions of callers that stay open after they met a unique key: what waits for them, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tests.brokers.postgres.conftest import SOON, Ask, Caller, Opens, carried_out
from tests.conftest import Eventually

from offload.brokers.postgres import PostgresBroker, connections, locking
from offload.brokers.postgres.fetching import Fetching
from offload.brokers.postgres.session import PostgresSession
from offload.brokers.postgres.upkeep import rescue
from offload.errors import BrokerBusy, UniqueConflict
from offload.job import Conflict, Dead, Done, Job, Outcome, Pulse, Release, Retried, State, UniqueKey, Until
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import ROOM, claim, claim_one, ids, info, job, rule, settle, state, tick_job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio

BLOCKED = "select 1 from pg_stat_activity where application_name = 'offload' and cardinality(pg_blocking_pids(pid)) > 0"
WAITS_FOR_A_ROW = """select 1 from pg_stat_activity
    where application_name = 'offload' and wait_event in ('transactionid', 'tuple') and cardinality(pg_blocking_pids(pid)) > 0"""
KEY_IS_LOCKED = "select 1 from uniques where key = %(key)s and key not in (select key from uniques for update skip locked)"


@pytest.fixture
def callers(server: PostgresServer, schema: str) -> Iterator[Callable[[], Caller]]:
    """`callers()`: one more connection of a caller's own, on which statements begin a transaction."""
    opened: list[Caller] = []

    def callers() -> Caller:
        opened.append(psycopg.connect(server.url, options=f"-c search_path={schema} -c lock_timeout=5s -c deadlock_timeout=1min"))
        return opened[-1]

    yield callers
    for connection in opened:
        connection.close()


@pytest.fixture
def caller(callers: Callable[[], Caller]) -> Caller:
    return callers()


def met(broker: PostgresBroker, caller: Caller, wish: Job) -> str:
    """Enqueue in a caller's transaction; the id of the job that holds the key."""
    try:
        (id,) = carried_out(caller, broker.enqueue_on([wish]))
    except UniqueConflict as conflict:
        return conflict.job_id
    return id


def keyed(clock: TestClock, id: str, until: Until = "finished", conflict: Conflict = "skip", **fields: Any) -> Job:
    return job(clock, id, unique=UniqueKey("k", until, conflict), **fields)


@pytest.mark.parametrize("until", ["finished", "started", 60.0])
@pytest.mark.parametrize("conflict", ["skip", "raise"])
@pytest.mark.parametrize("end", [Done(), Dead("d")], ids=["done", "dead"])
async def test_a_settle_does_not_wait_for_who_met_the_key_and_gave_way(
    broker: PostgresBroker, clock: TestClock, caller: Caller, until: Until, conflict: Conflict, end: Outcome
) -> None:
    await broker.enqueue([keyed(clock, "holder", until)])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        if until == "started":
            await broker.enqueue([keyed(clock, "next", until)])
        assert met(broker, caller, keyed(clock, "second", until, conflict)) == ("next" if until == "started" else "holder")
        async with asyncio.timeout(SOON):
            await settle(session, lease, end)
    caller.commit()
    assert await state(broker, "second") is None


@pytest.mark.parametrize("conflict", ["skip", "raise"])
async def test_a_settle_does_not_wait_for_who_met_the_key_by_sql(
    broker: PostgresBroker, clock: TestClock, caller: Caller, schema: str, conflict: str
) -> None:
    await broker.enqueue([keyed(clock, "holder")])
    enqueue = f"select {schema}.enqueue('greet', unique_key => 'k', on_conflict => '{conflict}')".encode()
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        if conflict == "skip":
            assert caller.execute(enqueue).fetchone() == ("holder",)
        else:
            with pytest.raises(psycopg.errors.UniqueViolation, match="held by job holder"), caller.transaction():
                caller.execute(enqueue)
        async with asyncio.timeout(SOON):
            await settle(session, lease, Done())
    caller.commit()


@pytest.mark.parametrize("outcome", [Retried(5), Release()], ids=["retried", "released"])
async def test_an_attempt_that_keeps_its_key_is_settled_without_waiting_for_it(
    broker: PostgresBroker, clock: TestClock, caller: Caller, outcome: Outcome
) -> None:
    await broker.enqueue([keyed(clock, "holder")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        assert met(broker, caller, keyed(clock, "last", conflict="keep_last")) == "last"
        async with asyncio.timeout(SOON):
            await settle(session, lease, outcome)
    caller.commit()


@pytest.mark.parametrize("conflict", ["replace", "debounce"])
async def test_a_settle_does_not_wait_for_a_key_that_its_job_gave_up_when_it_started(
    broker: PostgresBroker, clock: TestClock, caller: Caller, conflict: Conflict
) -> None:
    await broker.enqueue([keyed(clock, "first", "started")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        await broker.enqueue([keyed(clock, "next", "started")])
        assert met(broker, caller, keyed(clock, "newer", "started", conflict, delay=0)) == "next"
        async with asyncio.timeout(SOON):
            await settle(session, lease, Done())
    caller.commit()


@pytest.mark.parametrize("by_sql", [False, True], ids=["python", "sql"])
async def test_a_job_whose_start_frees_the_key_sees_what_those_commit_who_gave_way_to_it(
    broker: PostgresBroker, clock: TestClock, callers: Callable[[], Caller], schema: str, by_sql: bool
) -> None:
    await broker.enqueue([keyed(clock, "holder", "started"), job(clock, "other")])
    enqueue = f"select {schema}.enqueue('greet', unique_key => 'k', unique_until => 'started')".encode()
    both = [callers(), callers()]
    for caller in both:  # neither waits for the other
        if by_sql:
            assert caller.execute(enqueue).fetchone() == ("holder",)
        else:
            assert met(broker, caller, keyed(clock, "second", "started")) == "holder"
    async with broker.session(info()) as session:
        assert ids(await claim(session)) == ["other"]
        both[0].commit()
        assert ids(await claim(session)) == []
        both[1].rollback()
        assert ids(await claim(session)) == ["holder"]
    assert await state(broker, "second") is None


async def test_a_key_that_was_given_up_meanwhile_is_taken(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    await broker.enqueue([keyed(clock, "holder")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        assert met(broker, caller, keyed(clock, "second")) == "holder"
        await settle(session, lease, Done())
        assert met(broker, caller, keyed(clock, "third")) == "third"
    caller.commit()
    assert await state(broker, "third") is State.READY
    assert await broker.enqueue([keyed(clock, "fourth")]) == ["third"]


async def test_a_key_whose_time_has_passed_is_taken_by_one_alone(
    broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask, eventually: Eventually
) -> None:
    await broker.enqueue([keyed(clock, "holder", 60.0)])
    clock.advance(61)
    assert met(broker, caller, keyed(clock, "caller", 60.0)) == "caller"
    rival = asyncio.ensure_future(broker.enqueue([keyed(clock, "rival", 60.0)]))
    await eventually(lambda: ask(BLOCKED))
    caller.commit()
    assert await rival == ["caller"]


async def test_while_a_settle_waits_for_a_successor_under_way_its_worker_claims_and_beats(
    broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask, eventually: Eventually
) -> None:
    await broker.enqueue([keyed(clock, "holder")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        assert met(broker, caller, keyed(clock, "last", conflict="keep_last")) == "last"
        settling = asyncio.ensure_future(session.settle([(lease, Done())]))
        await eventually(lambda: ask(BLOCKED))
        await broker.enqueue([job(clock, "other")])
        async with asyncio.timeout(SOON):
            await session.wait(SOON)
            others = await claim(session)
            assert ids(others) == ["other"]
            assert await session.retain([lease, *others]) == 0
            assert (await session.beat(Pulse())).alive
        assert not settling.done()
        caller.commit()
        assert await settling == []
        assert ids(await claim(session)) == ["last"]


def shut(broker: PostgresBroker, caller: Caller, gate: str) -> None:
    """Have a caller's transaction keep everybody from a gate."""
    caller.execute("select pg_advisory_xact_lock(%s)", [locking.lock_of(broker.opened.transaction(), gate)])


@pytest.mark.parametrize("outcome", [Retried(5), Retried(0), Release()], ids=["later", "again", "released"])
@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "meanwhile"])
async def test_the_end_of_a_cancelled_attempt_waits_for_its_key_and_has_no_gate_in_hand(
    broker: PostgresBroker,
    clock: TestClock,
    callers: Callable[[], Caller],
    ask: Ask,
    eventually: Eventually,
    outcome: Outcome,
    meanwhile: bool,
) -> None:
    await broker.enqueue([keyed(clock, "holder", order_by="o")])
    caller, keeper = callers(), callers()
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        if meanwhile:
            shut(broker, keeper, "turn of o")
        else:
            await broker.cancel(["holder"])
        assert met(broker, caller, keyed(clock, "last", conflict="keep_last")) == "last"
        settling = asyncio.ensure_future(session.settle([(lease, outcome)]))
        await eventually(lambda: ask(BLOCKED))
        if meanwhile:
            ask("update running set cancel = true")
            keeper.commit()
            await eventually(lambda: ask(WAITS_FOR_A_ROW))
        async with asyncio.timeout(SOON):
            await broker.enqueue([job(clock, "next", order_by="o")])
        assert not settling.done()
        caller.commit()
        assert await settling == []
        assert await state(broker, "holder") is State.CANCELLED
        assert sorted(ids(await claim(session))) == ["last", "next"]


async def test_a_rescue_of_a_cancelled_attempt_waits_for_its_key_and_has_no_gate_in_hand(
    opens: Opens, clock: TestClock, caller: Caller, ask: Ask, eventually: Eventually
) -> None:
    broker = await opens()
    await broker.enqueue([keyed(clock, "holder", order_by="o")])
    async with broker.session(info()) as frozen, broker.session(info()) as session:
        await claim_one(frozen)
        await broker.cancel(["holder"])
        assert met(broker, caller, keyed(clock, "last", conflict="keep_last")) == "last"
        assert isinstance(frozen, PostgresSession)
        [(beat,)] = ask("select beat from sessions where id = %(id)s", id=frozen.id)
        rescuing = asyncio.ensure_future(broker.opened.run(lambda tx: rescue(tx, frozen.id, beat)))
        await eventually(lambda: ask(WAITS_FOR_A_ROW))
        async with asyncio.timeout(SOON):
            await broker.enqueue([job(clock, "next", order_by="o")])
        assert not rescuing.done()
        caller.commit()
        assert [each.id for each in await rescuing] == ["holder"]
        assert sorted(ids(await claim(session))) == ["last", "next"]


async def test_upkeep_leaves_alone_what_a_caller_holds_and_comes_back_to_it(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    await broker.enqueue([keyed(clock, "holder", "started", expires_in=1), job(clock, "other", expires_in=1)])
    assert met(broker, caller, keyed(clock, "second", "started")) == "holder"
    clock.advance(2)
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        assert [each.id for each in (await session.maintain()).touched] == ["other"]
        caller.commit()
        assert [each.id for each in (await session.maintain()).touched] == ["holder"]


async def test_a_claim_waits_for_no_key_of_an_expired_jobs_successor(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    await broker.enqueue([keyed(clock, "holder", conflict="keep_last", expires_in=1)])
    await broker.enqueue([tick_job(clock, rule(), "tick", unique=UniqueKey("k", on_conflict="keep_last"))])
    clock.advance(2)
    await broker.enqueue([job(clock, "other")])
    caller.execute("select 1 from uniques where key = 'schedule:report' for update")
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        assert ids(await claim(session)) == ["other"]
        caller.commit()
        assert ids(await claim(session)) == ["tick"]
    assert await state(broker, "holder") is State.EXPIRED


async def test_a_job_whose_key_was_busy_for_a_moment_is_claimed_soon(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    await broker.enqueue([keyed(clock, "holder", "started")])
    assert met(broker, caller, keyed(clock, "second", "started")) == "holder"
    async with broker.session(info()) as session:
        assert await claim(session) == []
        caller.rollback()  # nothing is told to anybody
        async with asyncio.timeout(SOON / 5):
            while not (leases := await claim(session)):
                await session.wait(SOON)
        assert ids(leases) == ["holder"]


async def test_what_is_cancelled_together_waits_for_all_its_keys_before_it_takes_any(
    broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask, eventually: Eventually
) -> None:
    await broker.enqueue([keyed(clock, "holder", conflict="keep_last")])
    await broker.enqueue([keyed(clock, "last", conflict="keep_last"), job(clock, "other", unique=UniqueKey("a"))])
    caller.execute("select 1 from uniques where key = 'a' for update")
    cancelling = asyncio.ensure_future(broker.cancel(["holder", "last", "other"]))
    await eventually(lambda: ask(BLOCKED))
    caller.execute("select 1 from uniques where key = 'k' for update nowait")
    caller.commit()
    assert await cancelling == {"holder", "last", "other"}


async def test_a_claim_goes_with_care_where_jobs_keep_going_back_to_their_places(
    broker: PostgresBroker, clock: TestClock, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        assert isinstance(session, PostgresSession)
        step = session._claims.step

        async def busy(operation: Any) -> Any:
            ask("select nextval('returned')")
            return await step(operation)

        monkeypatch.setattr(session._claims, "step", busy)
        fetching = Fetching(session._claims, session.id, info(), set())
        assert ids(await fetching.fetch(["default"], 1, ROOM)) == ["a"]


async def test_who_waits_for_a_key_holds_up_nothing_that_does_not(
    opens: Opens, url: str, clock: TestClock, caller: Caller, ask: Ask, eventually: Eventually
) -> None:
    broker = await opens(f"{url}&timeout=3600")
    carried_out(caller, broker.enqueue_on([keyed(clock, "holder")]))  # and not committed
    stuck = [asyncio.ensure_future(broker.enqueue([keyed(clock, f"{n}")])) for n in range(10)]
    stuck += [asyncio.ensure_future(broker.enqueue([keyed(clock, f"r{n}", conflict="replace")])) for n in range(10)]

    async def blocked() -> bool:
        return bool(ask(BLOCKED))

    await eventually(blocked)
    async with asyncio.timeout(SOON):
        assert await broker.enqueue([job(clock, "plain")]) == ["plain"]
        assert (await broker.get(["plain"]))["plain"].state is State.READY
        assert await broker.counts() == {"default": {State.READY: 1}}
        async with broker.session(info()) as session:
            assert ids(await claim(session)) == ["plain"]
            await session.wait(0)  # which asks to be notified, by what the whole client shares
        assert await broker.finished(["plain"], 0) == {}
        assert not any(each.done() for each in stuck)
    caller.commit()
    assert {id for (id,) in await asyncio.gather(*stuck)} == {"holder"}


async def test_who_gives_up_waiting_for_a_key_leaves_nothing_waiting(
    opens: Opens, url: str, clock: TestClock, caller: Caller, ask: Ask, eventually: Eventually
) -> None:
    broker = await opens(f"{url}&timeout=0.3")
    carried_out(caller, broker.enqueue_on([keyed(clock, "holder")]))
    given_up = await asyncio.gather(*(broker.enqueue([keyed(clock, f"{n}", conflict="replace")]) for n in range(4)), return_exceptions=True)
    assert all("may hold the unique key" in str(error) for error in given_up), given_up

    async def nothing_waits() -> bool:
        return not ask(BLOCKED)

    async with asyncio.timeout(SOON):
        await eventually(nothing_waits)
        await broker.enqueue([job(clock, "other", unique=UniqueKey("other"))])
    caller.rollback()
    assert await broker.counts() == {"default": {State.READY: 1}}


async def test_a_key_that_time_has_freed_is_dropped_a_day_later(broker: PostgresBroker, clock: TestClock, ask: Ask) -> None:
    await broker.enqueue([job(clock, f"{n}", unique=UniqueKey(f"k{n}", 60 * (n + 1))) for n in range(2)])
    async with broker.session(info()) as session:
        await session.settle([(lease, Done()) for lease in await claim(session)])
        clock.advance(86_400 + 60)
        await session.beat(Pulse())
        await session.maintain()
        assert ask("select key from uniques") == [("k1",)]
        clock.advance(60)
        await session.beat(Pulse())
        await session.maintain()
        assert ask("select key from uniques") == []
        assert await broker.enqueue([job(clock, "again", unique=UniqueKey("k0", 60))]) == ["again"]


async def test_a_lock_that_others_hold_for_long_is_told_as_what_it_is(
    broker: PostgresBroker, clock: TestClock, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_PIN", "set lock_timeout = '50ms'")
    monkeypatch.setattr(connections, "LONGEST_STRIFE", 0.2)
    await broker.enqueue([job(clock, "a")])
    caller.execute("lock table jobs")
    async with asyncio.timeout(SOON):
        link = broker.opened.link()
        with pytest.raises(BrokerBusy, match="is one of them open for long"):
            await link.run(lambda tx: tx.do("rows_by_id", ids='["a"]'))
        with pytest.raises(BrokerBusy, match="lock timeout"):
            await link.step(lambda tx: tx.do("rows_by_id", ids='["a"]'))
