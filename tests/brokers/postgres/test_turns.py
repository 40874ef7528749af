"""Keys that take turns where several transactions meet: producers of one line, callers that stay open, claims between them."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from tests.brokers.postgres.conftest import SOON, Ask, Caller, Opens, carried_out

from offload.broker import Session
from offload.brokers.postgres import PostgresBroker
from offload.brokers.postgres.enqueueing import store
from offload.brokers.postgres.rows import ROUND_BITS
from offload.brokers.postgres.turns import SERVED_LONG_AGO
from offload.brokers.postgres.work import schema_script
from offload.job import Done, Job, Release, Retried, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, ids, info, job, record, settle, state
from offload.testing.contract.turns import fair, one_by_one
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio


def storing(connection: Caller, broker: PostgresBroker, *jobs: Job) -> None:
    """Store jobs as `enqueue` does, in a transaction that is not committed yet."""
    assert carried_out(connection, store(broker.opened.transaction(), jobs)) == [each.id for each in jobs]


def turns(ask: Ask) -> dict[str, list[int]]:
    """The rounds of the ready jobs of each key, as they stand, with their ids left out."""
    found: dict[str, list[int]] = {}
    for key, place in ask("select j.extra::json ->> 'fair_by', r.rank from ready r join jobs j on j.n = r.n order by j.n"):
        found.setdefault(key, []).append(place & ((1 << ROUND_BITS) - 1))
    return found


async def test_producers_of_one_key_at_once_are_given_a_round_each(opens: Opens, clock: TestClock, ask: Ask) -> None:
    brokers = [await opens() for _ in range(3)]

    async def produce(number: int, broker: PostgresBroker) -> None:
        for n in range(20):
            await broker.enqueue([fair(clock, f"{number} {n} {key} {i}", key) for i in range(2) for key in "ab"])

    await asyncio.gather(*(produce(number, brokers[number % 3]) for number in range(6)))
    given = turns(ask)
    ahead = sorted(sorted(rounds) for rounds in given.values())
    assert ahead == [list(range(1, 241)), list(range(2, 242))], "the second key begins with the round after the one being served"
    async with brokers[0].session(info()) as session:
        order = ids(await claim(session, 480))
    assert [{id.split()[2] for id in order[n : n + 2]} for n in range(1, 479, 2)] == [{"a", "b"}] * 239
    for producer in {id.split()[0] for id in order}:
        of_a = [tuple(map(int, (id.split()[1], id.split()[3]))) for id in order if id.split()[0] == producer and id.split()[2] == "a"]
        assert of_a == sorted(of_a), "each producer's jobs of a key keep their order"


async def test_a_callers_long_transaction_blocks_no_producer_and_no_claim_of_its_key(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    await broker.enqueue([fair(clock, "a1", "a")])
    assert carried_out(caller, broker.enqueue_on([fair(clock, "a2", "a"), fair(clock, "b1", "b")])) == ["a2", "b1"]
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        await broker.enqueue([fair(clock, "a3", "a"), fair(clock, "a4", "a")])
        assert ids(await claim(session, 2)) == ["a1", "a3"]
        caller.commit()
        assert (await record(broker, "a2")).reason == "waits to be let in"
        await broker.enqueue([fair(clock, "a5", "a")])
        assert await one_by_one(session) == ["a4", "a2", "b1", "a5"], "those of the caller come before who is stored after its commit"


async def test_what_a_caller_rolls_back_leaves_no_trace(broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask) -> None:
    carried_out(caller, broker.enqueue_on([fair(clock, "a1", "a")]))
    caller.rollback()
    storing(caller, broker, fair(clock, "a2", "a"))
    caller.rollback()
    await broker.enqueue([fair(clock, "a3", "a")])
    assert turns(ask) == {"a": [1]}


async def test_a_claim_does_not_wait_for_who_comes_into_the_line(
    broker: PostgresBroker, clock: TestClock, caller: Caller, ask: Ask
) -> None:
    await broker.enqueue([fair(clock, f"a{n}", "a") for n in range(3)])
    storing(caller, broker, fair(clock, "a3", "a"))
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        other = asyncio.ensure_future(broker.enqueue([fair(clock, "a4", "a")]))
        (a0,) = await claim(session, 1)
        await settle(session, a0, Done())
        await broker.enqueue([job(clock, "plain"), fair(clock, "elsewhere", "a", queue="other")])
        assert ids(await claim(session, 10, queues=["default"])) == ["plain", "a1", "a2"]
        assert not other.done(), "only who comes into the same line waits for the commit"
        caller.commit()
        await other
        assert ids(await claim(session, 10, queues=["default"])) == ["a3", "a4"]


async def test_a_newcomer_is_claimed_first_though_claims_took_more_while_it_came(
    broker: PostgresBroker, clock: TestClock, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offload.brokers.postgres.marks.monotonic", lambda: 1_000.0)  # no time to look below the marks again
    await broker.enqueue([fair(clock, f"a{n}", "a") for n in range(9)])
    async with broker.session(info()) as session:
        assert ids([lease for _ in range(3) for lease in await claim(session, 1)]) == ["a0", "a1", "a2"]
        storing(caller, broker, fair(clock, "b0", "b"))
        assert ids([lease for _ in range(3) for lease in await claim(session, 1)]) == ["a3", "a4", "a5"]
        caller.commit()
        assert ids(await claim(session, 2)) == ["b0", "a6"]


async def test_who_comes_from_a_callers_transaction_is_let_in_once_the_line_is_free(
    broker: PostgresBroker, clock: TestClock, caller: Caller, server: PostgresServer, schema: str
) -> None:
    await broker.enqueue([job(clock, "plain")])
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        with psycopg.connect(server.url, options=f"-c search_path={schema}") as producer:
            storing(producer, broker, fair(clock, "b1", "b", queue="other"))
            carried_out(caller, broker.enqueue_on([fair(clock, "b2", "b", queue="other"), fair(clock, "a1", "a")]))
            caller.commit()
            assert sorted(ids(await claim(session, 10))) == ["a1", "plain"]
            assert await state(broker, "b2") is State.WAITING
        assert ids(await claim(session, 10, queues=["other"])) == ["b1", "b2"]


async def test_debounces_of_a_caller_take_a_turn_after_its_commit(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    last = UniqueKey("u", "started", "debounce")
    await broker.enqueue([fair(clock, "a1", "a", unique=last), fair(clock, "a2", "a"), fair(clock, "b1", "b")])
    assert carried_out(caller, broker.enqueue_on([fair(clock, "again", "a", unique=last, payload=b'{"n":2}')])) == ["a1"]
    async with broker.session(info()) as session, asyncio.timeout(SOON):
        assert ids(await claim(session, 1)) == ["a2"]
        await broker.enqueue([fair(clock, "a3", "a")])
        caller.commit()
        assert await one_by_one(session) == ["b1", "a3", "a1"]


async def test_who_is_handed_back_stands_in_its_round_among_those_who_found_the_line_empty(
    broker: PostgresBroker, clock: TestClock, ask: Ask
) -> None:
    async with broker.session(info()) as session:
        for _ in range(3):
            await broker.enqueue([fair(clock, f"a{n}", "a") for n in range(3)])
            first, second, third = await claim(session)
            await broker.enqueue([fair(clock, f"b{n}", "b") for n in range(3)])
            await session.settle([(third, Release()), (second, Release())])
            expected = ["b0", "a1", "b1", "a2", "b2"]
            assert await one_by_one(session) == expected
            await settle(session, first, Done())
            await broker.delete([f"{key}{n}" for key in "ab" for n in range(3)])


async def test_outcomes_of_one_settle_come_into_the_line_in_their_order(broker: PostgresBroker, clock: TestClock) -> None:
    async with broker.session(info()) as session:
        await broker.enqueue([*(fair(clock, f"a{n}", "a") for n in range(4)), fair(clock, "b0", "b")])
        leases = {lease.job.id: lease for lease in await claim(session)}
        await session.settle([(leases["a3"], Release()), (leases["b0"], Retried(0)), (leases["a0"], Retried(0))])
        assert await one_by_one(session) == ["a3", "b0", "a0"], "b0 comes after the round of who was handed back before it"


async def test_keys_that_were_served_long_ago_are_forgotten(broker: PostgresBroker, clock: TestClock, ask: Ask) -> None:
    async def known(session: Session) -> set[str]:
        clock.advance(61)
        await session.maintain()
        return {key for (key,) in ask("select key from rounds")}

    async with broker.session(info()) as session:
        await broker.enqueue([fair(clock, "b0", "b"), *(fair(clock, f"a{n}", "a") for n in range(SERVED_LONG_AGO + 10))])
        assert len(await claim(session, SERVED_LONG_AGO + 5)) == SERVED_LONG_AGO + 5
        assert await known(session) == {"a", "b"}
        await broker.enqueue([fair(clock, "c0", "c")])
        assert await known(session) == {"a", "c"}
        await claim(session)
        await broker.enqueue([fair(clock, "d0", "d")])
        assert await known(session) == {"d"}, "nobody stood there, so nobody is owed anything"


async def test_priorities_of_the_version_before_are_kept(
    server: PostgresServer, schema: str, opens: Opens, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    connection.execute(f'create schema "{schema}"'.encode())
    connection.execute(schema_script(schema))
    for rank in (100, 0, -100, 7):
        connection.execute(
            b"""with added as (
                insert into jobs (n, id, task, queue, rank, payload, enqueued_at, keep)
                values (nextval('places'), %(id)s, 'greet', 'default', %(rank)s, '{}', 0, 60) returning n, rank
            ) insert into ready (queue, rank, pos, n, ready_at) select 'default', rank, n, n, 0 from added""",
            {"id": f"rank {rank}", "rank": rank},
        )
    broker = await opens()
    async with broker.session(info()) as session:
        leases = await claim(session)
    assert [(lease.job.id, lease.job.priority) for lease in leases] == [
        ("rank -100", 100), ("rank 0", 0), ("rank 7", -7), ("rank 100", -100),
    ]  # fmt: skip
