"""Workflows and batches as SQLite keeps them: what they cost others, how much is done at once, older files and older programs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from offload.brokers.sqlite import SqliteBroker, file, tallies
from offload.errors import BatchClosed, ParentNotFound
from offload.job import KEEP_UNSUCCESSFUL, Dead, Done, Job, Membership, Parent, State
from offload.testing.clock import TestClock
from offload.testing.contract.families import node, states, takes
from offload.testing.contract.fixtures import claim, claim_one, info, job, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
async def statements(broker: SqliteBroker) -> AsyncIterator[list[str]]:
    """What the writer runs, with its values, from when the test begins."""
    ran: list[str] = []
    broker.opened.database.writing.connection.set_trace_callback(ran.append)
    yield ran
    broker.opened.database.writing.connection.set_trace_callback(None)


async def test_jobs_without_a_workflow_pay_nothing_for_those_of_others(
    broker: SqliteBroker, clock: TestClock, statements: list[str]
) -> None:
    async with broker.session(info()) as session:
        statements.clear()
        await broker.enqueue([job(clock, f"{n}") for n in range(256)])
        assert len(statements) == 5  # begin, numbers, jobs, ready, commit
        leases = await claim(session, 256)
        statements.clear()
        await session.settle([(lease, Done()) for lease in leases])
        assert len(statements) == 4  # begin, done, running, commit


async def test_the_parents_of_a_join_end_by_as_many_statements_as_one(
    broker: SqliteBroker, clock: TestClock, statements: list[str]
) -> None:
    await broker.enqueue([node(clock, "join", *(f"{n}" for n in range(300)), size=301)])
    await broker.enqueue([node(clock, f"{n}") for n in range(300)])
    async with broker.session(info()) as session:
        leases = await claim(session)
        ran: list[int] = []
        for some in (leases[:1], leases[1:299]):
            statements.clear()
            await session.settle([(lease, Done()) for lease in some])
            ran.append(len(statements))
        assert ran == [8, 8]


async def test_one_operation_tells_a_thousand_children_and_upkeep_the_others(broker: SqliteBroker, clock: TestClock) -> None:
    for start in range(0, 2_500, 500):
        await broker.enqueue([node(clock, f"c{n}", "a", size=2_501) for n in range(start, start + 500)])
    await broker.enqueue([node(clock, "a")])
    async with broker.session(info()) as session:
        await settle(session, await claim_one(session), Dead("no"))
        fallen = [(await broker.tallies("workflow"))[0].cancelled]
        for _ in range(2):
            assert (await session.maintain()).wait == 0 or len(fallen) == 2
            fallen.append((await broker.tallies("workflow"))[0].cancelled)
        assert fallen == [1_000, 2_000, 2_500]
        assert (await session.maintain()).wait > 0


async def test_who_is_retried_before_all_have_heard_of_its_end_is_waited_for_again(broker: SqliteBroker, clock: TestClock) -> None:
    for start in range(0, 2_500, 500):
        await broker.enqueue([node(clock, f"c{n}", "a", size=2_501) for n in range(start, start + 500)])
    await broker.enqueue([node(clock, "a")])
    async with broker.session(info()) as session:
        await settle(session, await claim_one(session), Dead("no"))
        assert await broker.retry(["a"]) == {"a"}
        for _ in range(4):
            await session.maintain()
        (shown,) = await broker.tallies("workflow")
        assert (shown.cancelled, shown.dead, shown.waiting) == (0, 0, 2_501)
        assert await states(broker, "c0", "c999", "c1000", "c2499") == [State.WAITING] * 4


async def test_a_refused_workflow_leaves_nothing_for_calls_of_the_same_moment(broker: SqliteBroker, clock: TestClock) -> None:
    await broker.open_batch("b", "", [])
    calls: list[Sequence[Job]] = [
        [node(clock, "a", size=2, batch="b")],
        [node(clock, "x", "ghost", flow="other", batch="b")],
        [node(clock, "c", "a")],
        [job(clock, "y", batch="none")],
    ]
    answers = await asyncio.gather(*map(broker.enqueue, calls), return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, ParentNotFound, list, BatchClosed]
    assert [(each.id, each.total) for each in await broker.tallies("workflow")] == [("flow", 2)]
    assert [(each.id, each.total) for each in await broker.tallies("batch")] == [("b", 1)]


async def test_a_workflow_joins_a_transaction_of_the_caller(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for end in ("rollback", "commit"):
            connection.execute("begin")
            assert broker.enqueue_on([node(clock, "a", size=2), node(clock, "c", Parent("a", (("x",),)))])(connection.execute) == ["a", "c"]
            connection.execute(end)
        async with broker.session(info()) as session:
            lease = await claim_one(session)
            connection.execute("begin")
            assert broker.settle_on(session.id, lease, Done(b"1", (node(clock, "b"), node(clock, "d", "b"))))(connection.execute)
            connection.execute("commit")
            assert await states(broker, "a", "b", "c", "d") == [State.SUCCEEDED, State.READY, State.READY, State.WAITING]
            assert {each.job.id: each.inputs for each in await claim(session)} == {"c": (b"1",), "b": ()}
            (shown,) = await broker.tallies("workflow")
            assert (shown.total, shown.succeeded, shown.running) == (4, 1, 2)


async def test_a_file_of_an_older_version_keeps_its_jobs_and_serves_its_programs(
    path: Path, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, closing(file.connect(path, "full")) as connection:
        patched.setattr(file, "SCHEMA", 2)
        connection.execute("pragma journal_mode=wal")
        file.migrate(connection, 0)
        _store(connection, 1)
        patched.undo()
        broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
        await broker.open()
        _store(connection, 4)
        await broker.enqueue([job(clock, "new", workflow=Membership("f"))])
        async with broker.session(info()) as session:
            assert [lease.job.id for lease in await claim(session)] == ["ready1", "ready4", "new"]
        assert {id: record.state for id, record in (await broker.get(["waits1", "waits4", "ended1", "ended4"])).items()} == {
            "waits1": State.WAITING,
            "waits4": State.WAITING,
            "ended1": State.SUCCEEDED,
            "ended4": State.SUCCEEDED,
        }
        await broker.close()


async def test_who_is_retried_while_its_workflow_is_being_forgotten_has_the_results_of_its_parents(
    broker: SqliteBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.enqueue([node(clock, "a", size=2), node(clock, "c", takes("a", "x"))])
    monkeypatch.setattr(tallies, "PIECE", 1)
    async with broker.session(info()) as session:
        await settle(session, await claim_one(session), Done(b"1"))
        await settle(session, await claim_one(session), Dead("no"))
        clock.advance(KEEP_UNSUCCESSFUL + 1)
        while await states(broker, "a") != [None]:
            await session.maintain()
        assert await broker.retry(["c"]) == {"c"}
        assert (await claim_one(session)).inputs == (b"1",)


async def test_a_workflow_of_a_file_of_version_3_goes_on(path: Path, clock: TestClock) -> None:
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    await broker.enqueue([node(clock, "a", size=3), node(clock, "b"), node(clock, "c", takes("a", "x"), takes("b", "y"))])
    async with broker.session(info()) as session:
        await session.settle([(lease, Done(b"1")) for lease in await claim(session) if lease.job.id == "a"])
    await broker.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            update links set fate = 1, input = '1' where parent = 'a';
            drop table children; drop index links_parent; create index links_parent on links (parent, flow, child); pragma user_version = 3;
        """)
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    async with broker.session(info()) as session:
        await settle(session, await claim_one(session), Done(b"2"))
        assert (await claim_one(session)).inputs == (b"1", b"2")
    await broker.close()


def _store(connection: sqlite3.Connection, n: int) -> None:
    """Three jobs, by statements of version 2: one that is ready, one behind another, one that has ended."""
    for at, id in enumerate(("ready", "waits", "ended"), start=n):
        connection.execute(
            "insert into jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due, extra)"
            " values (?, ?, 'greet', 'default', 0, '{}', 0, 60, null, null)",
            (at, f"{id}{n}"),
        )
    connection.execute(
        "insert into ready (queue, rank, pos, n, claim, attempt, crashes, ready_at) values ('default', 0, ?, ?, 0, 0, 0, 0)", (n, n)
    )
    connection.execute("insert into waiting (n, behind) values (?, 'x')", (n + 1,))
    connection.execute(
        "insert into done (n, state, claim, attempt, crashes, finished_at, forget_at) values (?, 'SUCCEEDED', 1, 1, 0, 0, ?)",
        (n + 2, 1 << 62),
    )
    connection.execute("update store set next = next + 3")
