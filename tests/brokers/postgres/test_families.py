"""Workflows and batches where several clients are at them at once, each on its own connections: nobody is missed or counted twice."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import psycopg
import pytest
from tests.brokers.postgres.conftest import SOON, Ask, Caller, Crowd, Opens, carried_out
from tests.conftest import Eventually

from offload.broker import Session
from offload.brokers.postgres import PostgresBroker
from offload.errors import BatchClosed, BrokerError
from offload.job import Dead, Done, Job, Lease, Outcome, State
from offload.records import Tally
from offload.testing.clock import TestClock
from offload.testing.contract.batches import part
from offload.testing.contract.families import FLOW, node, states, takes, tally
from offload.testing.contract.fixtures import PATIENCE, claim, claim_one, ids, info, job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio
WORKERS = 4


async def work(broker: PostgresBroker, limit: int, over: threading.Event, outcome: Outcome | None = None) -> list[str]:
    """Run what there is until all is `over`; each end adds to the list."""
    ran: list[str] = []
    async with broker.session(info()) as session:
        while True:
            finished = over.is_set()
            leases = await claim(session, limit)
            assert await session.settle([(lease, outcome or Done(b"1")) for lease in leases]) == []
            ran += ids(leases)
            if finished and not leases:
                return ran


async def overseen(broker: PostgresBroker, kind: str, id: str, over: threading.Event) -> list[str]:
    """Wait until a workflow or batch is finished, with the upkeep that it needs."""
    async with broker.session(info("overseer", "none")) as session, asyncio.timeout(PATIENCE):
        while (await found(broker, kind, id)).finished_at is None:
            await session.maintain()
            await asyncio.sleep(0.01)
    over.set()
    return []


async def found(broker: PostgresBroker, kind: str, id: str) -> Tally:
    (one,) = await broker.tallies("workflow" if kind == "workflow" else "batch", [id])
    return one


async def leased(session: Session) -> dict[str, Lease]:
    return {lease.job.id: lease for lease in await claim(session)}


async def test_of_two_who_end_the_last_two_parents_one_lets_the_child_go(
    broker: PostgresBroker, clock: TestClock, caller: Caller, server: PostgresServer, schema: str
) -> None:
    await broker.enqueue([node(clock, "a"), node(clock, "b"), node(clock, "c", takes("a", "x"), takes("b", "y"))])
    async with broker.session(info()) as session:
        leases = await leased(session)
        with psycopg.connect(server.url, options=f"-c search_path={schema}") as other, ThreadPoolExecutor(1) as pool:
            assert carried_out(caller, broker.settle_on(session.id, leases["a"], Done(b"1")))
            second = pool.submit(carried_out, other, broker.settle_on(session.id, leases["b"], Done(b"2")))
            await asyncio.sleep(0.2)
            assert not second.done(), "it waits for the row of the child"
            caller.commit()
            assert second.result(SOON)
            other.commit()
        lease = await claim_one(session)
        assert (lease.job.id, lease.inputs) == ("c", (b"1", b"2"))
    assert (await tally(broker)).succeeded == 2


@pytest.mark.parametrize("outcome", [Done(b"1"), Dead("no")], ids=["done", "dead"])
async def test_a_parent_that_ends_while_a_child_is_added_tells_it(
    broker: PostgresBroker, clock: TestClock, caller: Caller, outcome: Outcome
) -> None:
    await broker.enqueue([node(clock, "a")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        carried_out(caller, broker.enqueue_on([node(clock, "c", takes("a", "x"))]))
        settling = asyncio.ensure_future(session.settle([(lease, outcome)]))
        await asyncio.sleep(0.2)
        assert not settling.done(), "the parent stays where it is until its child is there"
        caller.commit()
        assert await asyncio.wait_for(settling, SOON) == []
        assert await states(broker, "c") == [State.READY if isinstance(outcome, Done) else State.CANCELLED]


async def test_children_are_told_also_where_the_database_is_stricter_by_default(
    server: PostgresServer, clock: TestClock, opens: Opens
) -> None:
    url = server.database()
    with psycopg.connect(url) as caller:
        caller.execute(f'alter database "{caller.info.dbname}" set default_transaction_isolation = serializable'.encode())
        caller.commit()
        broker = await opens(url)
        await test_a_parent_that_ends_while_a_child_is_added_tells_it(broker, clock, caller, Done(b"1"))


async def test_a_workflow_of_a_schema_of_version_3_goes_on(opens: Opens, broker: PostgresBroker, clock: TestClock, ask: Ask) -> None:
    await broker.enqueue([node(clock, "a", size=3), node(clock, "b"), node(clock, "c", takes("a", "x"), takes("b", "y"))])
    ask("drop function succeed_in_workflows; drop function count_in_workflows; alter table children drop column straight")
    ask("update store set version = 3")
    newer = await opens()
    async with newer.session(info()) as session:
        first, second = await claim(session)
        await session.settle([(first, Done(b"1"))])
        await session.settle([(second, Done(b"2"))])
        assert (await claim_one(session)).inputs == (b"1", b"2")


async def test_a_success_in_a_workflow_meets_a_cancel_under_way(
    server: PostgresServer, schema: str, broker: PostgresBroker, clock: TestClock, ask: Ask, eventually: Eventually
) -> None:
    await broker.enqueue([node(clock, "a", size=3), node(clock, "b"), node(clock, "c", takes("a", "x"), takes("b", "y"))])
    async with broker.session(info()) as session:
        leases = await leased(session)
        async with await psycopg.AsyncConnection.connect(server.url) as canceller:
            await canceller.execute(f'update "{schema}".running set cancel = true'.encode())
            settling = asyncio.create_task(session.settle([(leases["a"], Done(b"1"))]))
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%succeed_in_workflows%'"
            await eventually(lambda: ask(waiting) != [(0,)] or settling.done())
            assert not settling.done()
            await canceller.commit()
        assert await settling == []
        assert ask("select n, open from children c where open <> 1") == []
        await session.settle([(leases["b"], Done(b"2"))])
        assert (await claim_one(session)).inputs == (b"1", b"2")


async def test_a_success_in_a_workflow_that_meets_a_deadlock_is_recorded_all_the_same(
    server: PostgresServer, schema: str, broker: PostgresBroker, clock: TestClock, ask: Ask, eventually: Eventually
) -> None:
    await broker.enqueue([node(clock, "a", size=3), node(clock, "b"), node(clock, "c", "a", "b")])
    async with broker.session(info()) as session:
        leases = await leased(session)
        with psycopg.connect(server.url, options=f"-c search_path={schema} -c deadlock_timeout=1min") as other:
            other.execute("select from children for update")
            settling = asyncio.ensure_future(session.settle([(leases["a"], Done(b"1"))]))
            await eventually(lambda: ask("select 1 from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"))
            await asyncio.to_thread(
                other.execute, "select from running for update"
            )  # the server ends one of the two; this one is more patient
            assert not settling.done()
            other.commit()
            assert await asyncio.wait_for(settling, SOON) == []
        assert (await tally(broker)).succeeded == 1


async def test_a_child_that_is_added_while_its_parent_is_deleted_keeps_what_came_of_it(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    await broker.enqueue([node(clock, "p", size=9), node(clock, "q", queue="q")])
    async with broker.session(info()) as session:
        (lease,) = await claim(session, queues=["default"])
        await session.settle([(lease, Done(b"1"))])
        carried_out(caller, broker.enqueue_on([node(clock, "c", takes("p", "x"), "q", queue="c")]))
        deleting = asyncio.ensure_future(broker.delete(["p"]))
        await asyncio.sleep(0.2)
        assert not deleting.done()
        caller.commit()
        assert await asyncio.wait_for(deleting, SOON) == {"p"}
        await broker.enqueue([node(clock, "p")])
        (lease,) = await claim(session, queues=["default"])
        await session.settle([(lease, Done(b"2"))])
        assert await states(broker, "q", "c") == [State.READY, State.WAITING]
        (lease,) = await claim(session, queues=["q"])
        await session.settle([(lease, Done())])
        assert (await claim_one(session)).inputs == (b"2", None)


async def test_a_child_that_is_added_while_its_parent_ends_learns_of_it(broker: PostgresBroker, clock: TestClock, caller: Caller) -> None:
    await broker.enqueue([node(clock, "a")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        carried_out(caller, broker.settle_on(session.id, lease, Done(b"1")))
        adding = asyncio.ensure_future(broker.enqueue([node(clock, "c", takes("a", "x"))]))
        await asyncio.sleep(0.2)
        assert not adding.done()
        caller.commit()
        assert await asyncio.wait_for(adding, SOON) == ["c"]
        assert (await claim_one(session)).inputs == (b"1",)


async def test_a_parent_and_its_child_that_are_stored_at_the_same_time_find_each_other(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    await broker.enqueue([node(clock, "first", size=3)])
    carried_out(caller, broker.enqueue_on([node(clock, "c", "a")]))
    adding = asyncio.ensure_future(broker.enqueue([node(clock, "a")]))
    await asyncio.sleep(0.2)
    assert not adding.done()
    caller.commit()
    await asyncio.wait_for(adding, SOON)
    async with broker.session(info()) as session:
        await session.settle([(lease, Done()) for lease in await claim(session)])
        assert ids(await claim(session)) == ["c"]


async def test_a_job_of_a_workflow_ends_in_transactions_that_see_what_others_commit(
    broker: PostgresBroker, clock: TestClock, caller: Caller
) -> None:
    await broker.enqueue([node(clock, "a")])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        caller.execute("set transaction isolation level repeatable read")
        with pytest.raises(BrokerError, match="job a belongs to a workflow or batch: its transaction must be READ COMMITTED"):
            carried_out(caller, broker.settle_on(session.id, lease, Done()))
        caller.rollback()


async def test_what_is_counted_wrong_of_a_child_is_set_right_and_stops_nobody_else(
    broker: PostgresBroker, clock: TestClock, ask: Ask
) -> None:
    await broker.enqueue([node(clock, "a"), *(node(clock, f"c{n}", "a", "b") for n in range(2)), node(clock, "b")])
    ask("update children set failed = 1")
    async with broker.session(info()) as session:
        leases = await leased(session)
        await session.settle([(leases["a"], Done())])
        assert await states(broker, "c0", "c1") == [State.WAITING] * 2
        ask("update children set open = 7 where n = (select n from jobs where id = 'c1')")
        await session.settle([(leases["b"], Dead("no"))])
        assert await states(broker, "c0", "c1") == [State.CANCELLED] * 2
        ask("update children set failed = 3")
        assert await broker.retry(["b"]) == {"b"}
        assert await states(broker, "c0", "c1") == [State.WAITING] * 2
    assert ask("select open, failed from children") == [(1, 0)] * 2


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_layers_that_all_wait_for_each_other_run_to_the_end(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, limit: int
) -> None:
    depth, width = 6, 20 if limit > 1 else 6
    layers = [[f"l{depth - level}n{n}" for n in range(width)] for level in range(depth)]  # names that sort against their order
    jobs = [node(clock, id) for id in layers[0]]
    for above, layer in pairwise(layers):
        jobs += [node(clock, id, *above) for id in layer]
    await broker.enqueue(jobs)
    over = threading.Event()
    shares = crowd.run(*[lambda broker: work(broker, limit, over)] * WORKERS, lambda broker: overseen(broker, "workflow", FLOW, over))
    ran = [id for share in shares for id in share]
    assert sorted(ran) == sorted(job.id for job in jobs)
    assert (await tally(broker)).succeeded == depth * width


async def test_a_wide_join_of_which_many_end_the_parents_starts_once(crowd: Crowd, broker: PostgresBroker, clock: TestClock) -> None:
    parts = [f"p{n}" for n in range(2_000)]
    await broker.enqueue([node(clock, "join", *(takes(id, n) for n, id in enumerate(parts)), size=len(parts) + 1)])
    for start in range(0, len(parts), 1_000):
        await broker.enqueue([node(clock, id) for id in parts[start : start + 1_000]])
    over = threading.Event()
    shares = crowd.run(*[lambda broker: work(broker, 30, over)] * WORKERS, lambda broker: overseen(broker, "workflow", FLOW, over))
    assert sum(share.count("join") for share in shares) == 1
    assert (await tally(broker)).succeeded == len(parts) + 1


async def test_a_batch_to_which_its_jobs_add_others_is_counted_right(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, ask: Ask
) -> None:
    await broker.open_batch("batch", "", [job(clock, "done", batch="batch", callback="complete")])
    await broker.enqueue([part(clock, f"{n}") for n in range(100)])
    await broker.seal_batch("batch")
    over = threading.Event()

    async def grow(broker: PostgresBroker) -> list[str]:
        ran: list[str] = []
        async with broker.session(info()) as session:
            while not over.is_set() or await broker.counts() != {"default": {State.SUCCEEDED: 301, State.DEAD: 100}}:
                for lease in await claim(session, 5):
                    id = lease.job.id
                    more = tuple(part(clock, f"{id}.{n}") for n in range(3)) if "." not in id and id != "done" else ()
                    outcome = Dead("no") if id.endswith(".0") else Done(None, more)
                    assert await session.settle([(lease, outcome)]) == []
                    ran.append(id)
        return ran

    shares = crowd.run(*[grow] * WORKERS, lambda broker: overseen(broker, "batch", "batch", over))
    ran = [id for share in shares for id in share]
    assert len(ran) == len(set(ran)) == 401
    counted = await found(broker, "batch", "batch")
    assert (counted.total, counted.succeeded, counted.dead, counted.waiting) == (400, 300, 100, 0)
    assert ask("select count(*) from waiting") == [(0,)]


async def test_a_stop_that_races_with_ends_and_additions_leaves_nothing_alive(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock
) -> None:
    await broker.open_batch("batch", "", [job(clock, "done", batch="batch", callback="complete")])
    await broker.enqueue([part(clock, f"{n}") for n in range(500)])
    over, begun = threading.Event(), threading.Event()

    async def add(broker: PostgresBroker) -> list[str]:
        added: list[str] = []
        for n in range(10_000):
            batch: list[Job] = [part(clock, f"more {n} {k}") for k in range(random.randint(1, 5))]
            try:
                added += await broker.enqueue(batch)
            except BatchClosed:
                return added
            begun.set()
        raise AssertionError("nothing raced")

    async def stop(broker: PostgresBroker) -> list[str]:
        begun.wait(PATIENCE)
        assert await broker.stop("batch", "batch")
        return await overseen(broker, "batch", "batch", over)

    shares = crowd.run(*[lambda broker: work(broker, 10, over)] * 2, add, stop)
    counted = await found(broker, "batch", "batch")
    assert counted.total == 500 + len(shares[2])
    assert counted.succeeded + counted.cancelled == counted.total
    assert counted.succeeded == len([id for share in shares[:2] for id in share if id != "done"])
    assert await states(broker, "done") == [State.SUCCEEDED]


async def test_retries_that_race_with_failures_leave_nobody_waiting_for_nothing(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock
) -> None:
    roots = [f"r{n}" for n in range(8)]
    middle = [node(clock, f"m{n}", *roots) for n in range(8)]
    await broker.enqueue([*(node(clock, id) for id in roots), *middle, node(clock, "last", *(each.id for each in middle))])
    over = threading.Event()

    async def fail(broker: PostgresBroker) -> list[str]:
        async with broker.session(info()) as session:
            for _ in range(40):
                for lease in await claim(session, 2):
                    await session.settle([(lease, Dead("no") if random.random() < 0.7 else Done())])
        return []

    async def revive(broker: PostgresBroker) -> list[str]:
        for _ in range(60):
            await broker.retry(random.sample(roots, 4))
        return []

    crowd.run(fail, fail, revive, revive)
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        while (await tally(broker)).finished_at is None or (await tally(broker)).succeeded < 17:
            await broker.retry([*roots, *(each.id for each in middle), "last"])
            await session.settle([(lease, Done()) for lease in await claim(session)])
    over.set()
    counted = await tally(broker)
    assert (counted.total, counted.succeeded, counted.cancelled, counted.dead) == (17, 17, 0, 0)
