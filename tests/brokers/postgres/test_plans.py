"""What hot statements cost does not grow with jobs that wait, are scheduled, or have finished; with statistics and without.

The very statements that a session sends are explained as they run. Buffers are compared, not times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
import pytest
from tests.brokers.postgres.conftest import Ask, Opens

from offload.broker import Session, Work
from offload.brokers.postgres import PostgresBroker, families, gating, reading, tallies
from offload.brokers.postgres.connections import SETTINGS
from offload.brokers.postgres.control import delete, retry
from offload.brokers.postgres.database import Database
from offload.brokers.postgres.enqueueing import open_batch, store
from offload.brokers.postgres.rows import jobs_by_id
from offload.brokers.postgres.session import PostgresSession
from offload.brokers.postgres.work import Operation, Transaction, told
from offload.job import Dead, Done, Job, Outcome, Retried, SlotLimit
from offload.records import Filter
from offload.testing.clock import TestClock
from offload.testing.contract.batches import part
from offload.testing.contract.families import node as kin
from offload.testing.contract.families import takes
from offload.testing.contract.fixtures import ROOM, claim, info, job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio
T = TypeVar("T")

LARGE = {
    "jobs", "ready", "scheduled", "waiting", "running", "done", "expiring", "uniques", "errors", "steps",
    "parked", "slots", "lanes", "rounds", "links", "children", "tallies",
}  # fmt: skip
LINE = 1_200
BATCH = 100

FILL = """
insert into jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due)
select nextval('places'), 'old-' || i, 'greet', 'default', 0, '{"n":1}', %(now)s, 60,
    case when i %% 3 = 0 then %(now)s + 1000000000000 + i end
from generate_series(1, 3 * %(count)s) as i;
"""
SPREAD = (
    "insert into scheduled (due, n) select due, n from jobs where due is not null",
    """insert into done (n, state, claim, attempt, crashes, finished_at, forget_at)
        select n, case when n % 9 = 0 then 'DEAD' else 'SUCCEEDED' end, 1, 1, 0, enqueued_at, enqueued_at + 1000000000000 + n
        from jobs where due is null and n % 2 = 0""",
    "insert into waiting (n, behind) select n, 'old-1' from jobs where due is null and n % 2 = 1",
    "insert into uniques (key, n, holder, until) select 'key-' || n, n, id, 'finished' from jobs where due is null and n % 4 = 0",
    "insert into expiring (expires_at, n) select due + 1000000000000, n from jobs where due is not null and n % 4 = 0",
    "insert into errors (n, claim, failure) select n, 1, '{}' from jobs where due is null and n % 8 = 0",
    """insert into parked (n, lane, seat, claim, attempt, crashes)
        select n, 'slot of old-' || n % 100, n, 0, 0, 0 from jobs where due is null and n % 2 = 1""",
    "insert into slots (gate, n, cost) select 'slot of old-' || n % 1000, n, 1 from jobs where due is null and n % 2 = 0",
    "insert into rounds (queue, rank, key, round) select 'default', 0, id, n from jobs where due is null",
    "insert into lanes (id, gate, seat) select 'lane ' || n, 'slot of far-' || n % 100, n from jobs where due is null and n % 8 = 1",
    """update jobs set batch = 'batch-' || n % 100, workflow = case when n % 2 = 0 then 'flow' else 'flow-' || n % 100 end
        where due is null""",
    "insert into children (n, open, failed, brave, felled) select n, 2, 0, false, false from jobs where due is null and n % 2 = 1",
    """insert into links (child, place, parent, workflow, wanted)
        select c.n, place, 'old-' || c.n + place, j.workflow, true
        from children c join jobs j on j.n = c.n, generate_series(0, 1) as place""",
    """insert into tallies (kind, id, n, created_at, name, touched_at, keep, total, succeeded, dead, cancelled, expired, size, sealed,
            stopped, abandoned, forget_at, abandon_at, callbacks)
        select case when n % 2 = 0 then 'workflow' else 'batch' end, id, n, enqueued_at, '', enqueued_at, 0, 1, 0, 0, 0, 0, 1, false, false,
            false, case when n % 4 < 2 then enqueued_at + 1000000000000 end, case when n % 4 > 1 then enqueued_at + 1000000000000 end, '{}'
        from jobs where due is null""",
)


def fill(ask: Ask, clock: TestClock, count: int, analyzed: str) -> None:
    """Three times `count` jobs: scheduled, finished, and waiting ones. Nothing is vacuumed, or analyzed by itself."""
    for table in sorted(LARGE):
        ask(f"alter table {table} set (autovacuum_enabled = false)")
    if count:
        ask(FILL, now=round(clock.now().timestamp()) * 1_000_000, count=count)
        for statement in SPREAD:
            if analyzed == "before there were workflows" and "workflow" in statement:
                ask("analyze")
                analyzed = "never"
            ask(statement)
    if analyzed == "at last":
        ask("analyze")


@dataclass
class Explained:
    """What one statement did."""

    sql: str
    plan: dict[str, Any]

    @property
    def buffers(self) -> int:
        return self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"]

    def nodes(self) -> Iterator[dict[str, Any]]:
        waiting = [self.plan]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    def check(self) -> None:
        """Whatever it reads of large tables it finds by an index, and it sorts no more than it was asked for."""
        for node in self.nodes():
            assert not (node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE), (node, self.sql)
            if node["Node Type"] in ("Sort", "Incremental Sort"):
                assert node["Actual Rows"] <= 2_000, (node, self.sql)


@dataclass
class ExplainingLink:
    """Stands in for a session's connection: explains each statement as it runs, then runs it."""

    connection: psycopg.Connection[tuple[Any, ...]]
    database: Database
    seen: list[Explained] = field(default_factory=list[Explained])

    async def step(self, operation: Operation[T]) -> T:
        return self._carried_out(operation)

    async def run(self, operation: Operation[T]) -> T:
        with self.connection.transaction():
            return self._carried_out(operation)

    def _carried_out(self, operation: Operation[T]) -> T:
        work = told(self.database.transaction(), operation)
        try:
            statement = next(work)
            while True:
                statement = work.send(self._execute(statement.sql, dict(statement.values)))
        except StopIteration as end:
            return end.value

    def _execute(self, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        with self.connection.transaction(force_rollback=True):
            [[[plan]]] = self.connection.execute(f"explain (analyze, buffers, format json) {sql}".encode(), values).fetchall()
        self.seen.append(Explained(sql, plan["Plan"]))
        cursor = self.connection.execute(sql.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def cost(self) -> int:
        """The buffers that were touched since this was last asked. Fails where a plan is not what it should be."""
        seen, self.seen = self.seen, []
        assert seen
        for each in seen:
            each.check()
        return sum(each.buffers for each in seen)


@contextmanager
def explaining(session: Session, broker: PostgresBroker, connection: psycopg.Connection[tuple[Any, ...]]) -> Iterator[ExplainingLink]:
    assert isinstance(session, PostgresSession)
    for name, value in SETTINGS.items():
        connection.execute("select set_config(%s, %s, false)", [name, value])
    link = ExplainingLink(connection, broker.opened)
    own, claims = session._link, session._claims
    session._link = session._claims = session._fetching._link = link  # type: ignore[assignment]
    try:
        yield link
    finally:
        session._link, session._claims = own, claims
        session._fetching._link = claims


async def costs(broker: PostgresBroker, clock: TestClock, connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, int]:
    """Buffers touched by each of the hot operations."""
    await broker.enqueue([job(clock, keep=60) for _ in range(LINE - 200)])
    await broker.enqueue([job(clock, keep=0) for _ in range(200)])
    await broker.enqueue([job(clock, delay=1) for _ in range(500)])
    found: dict[str, int] = {}
    async with broker.session(info()) as session:
        await claim(session, BATCH)  # the first goes with care, as it does not know the queues yet
        with explaining(session, broker, connection) as link:
            leases = await claim(session, BATCH)
            assert len(leases) == BATCH
            found["claim"] = link.cost()
            assert await session.settle([(lease, Done(b"1")) for lease in leases]) == []
            found["settle"] = link.cost()
            mixed: list[Outcome] = [Retried(0), Retried(60), Done()]
            leases = await claim(session, BATCH)
            link.cost()
            assert await session.settle([(lease, mixed[n % 3]) for n, lease in enumerate(leases)]) == []
            found["settle mixed"] = link.cost()
            leases = await claim(session, BATCH, room={"async": BATCH // 2, "thread": 0, "process": 0})
            assert len(leases) == BATCH // 2
            found["claim with care"] = link.cost()
            clock.advance(1)
            await session.maintain()
            found["promote"] = link.cost()
            await session.fetch(["default"], LINE, {"async": LINE, "thread": 0, "process": 0})
            link.cost()
            await session.maintain()
            found["nothing to maintain"] = link.cost()
            limits = [(SlotLimit(f"k{n}", 1),) for n in range(BATCH)] * 3
            await broker.enqueue([job(clock, queue="keyed", limits=each, keep=0) for each in limits])
            leases = await session.fetch(["keyed"], BATCH, ROOM)
            assert len(leases) == BATCH
            found["claim keyed"] = link.cost()
            assert await session.settle([(lease, Done()) for lease in leases]) == []
            assert len(link.seen) == 3  # the locks of gates, the heirs, and all that is written
            found["settle keyed"] = link.cost()
            leases = await session.fetch(["keyed"], BATCH, ROOM)
            link.cost()
            assert await session.settle([(lease, Retried(60)) for lease in leases]) == []
            found["settle keyed with care"] = link.cost()
            await broker.enqueue([job(clock, queue="fair", fair_by=f"t{n % 10}", keep=0) for n in range(BATCH)])
            turns = [job(clock, queue="fair", fair_by=f"t{n % 20}", keep=0) for n in range(BATCH)]
            await link.run(lambda tx: store(tx, turns))
            found["enqueue in turn"] = link.cost()
            leases = await session.fetch(["fair"], BATCH, ROOM)
            assert len(leases) == BATCH
            found["claim in turn"] = link.cost()
            assert await session.settle([(lease, Retried(0)) for lease in leases]) == []
            found["retry in turn"] = link.cost()
            found |= await costs_of_families(broker, session, clock, link)
    return found


async def costs_of_families(broker: PostgresBroker, session: Session, clock: TestClock, link: ExplainingLink) -> dict[str, int]:
    """The same of what is done for workflows and batches."""
    found: dict[str, int] = {}
    parts = [f"p{n}" for n in range(2 * BATCH)]
    children = [kin(clock, f"c{n}", takes(parts[n], "x"), queue="flow") for n in range(BATCH)]
    jobs = [*(kin(clock, id, queue="flow") for id in parts), *children, kin(clock, "join", *parts, "c0", queue="flow")]
    await link.run(lambda tx: store(tx, jobs))
    found["enqueue workflow"] = link.cost()
    leases = await session.fetch(["flow"], BATCH, ROOM)
    link.cost()
    assert await session.settle([(lease, Done(b"1")) for lease in leases]) == []
    found["settle in workflow"] = link.cost()
    leases = await session.fetch(["flow"], 2 * BATCH, ROOM)
    assert len([lease for lease in leases if lease.inputs == (b"1",)]) == BATCH
    found["claim with inputs"] = link.cost()
    mixed: list[Outcome] = [Dead("no"), Retried(0), Done()]
    assert await session.settle([(lease, mixed[n % 3]) for n, lease in enumerate(leases)]) == []
    found["settle mixed in workflow"] = link.cost()
    await link.run(lambda tx: retry(tx, ["p100", "c0", "join"], None))
    found["retry in workflow"] = link.cost()
    more = [kin(clock, f"d{n}", parts[n], "c0", queue="flow") for n in range(BATCH)]
    await link.run(lambda tx: store(tx, more))
    found["enqueue with parents that are there"] = link.cost()
    await link.run(lambda tx: delete(tx, parts[:10]))
    found["delete in workflow"] = link.cost()
    await link.run(lambda tx: open_batch(tx, "batch", "", [job(clock, "on end", queue="batch", batch="batch", callback="complete")]))
    await link.run(lambda tx: store(tx, [part(clock, f"b{n}", queue="batch") for n in range(BATCH)]))
    found["enqueue in batch"] = link.cost()
    leases = await session.fetch(["batch"], BATCH // 2, ROOM)
    link.cost()
    assert await session.settle([(lease, Done(b"1")) for lease in leases]) == []
    found["settle in batch"] = link.cost()
    await link.run(lambda tx: tallies.begin_to_stop(tx, "batch", "batch"))
    await link.run(tallies.go_on_stopping)
    found["stop"] = link.cost()
    await session.maintain()
    found["nothing to maintain of workflows"] = link.cost()

    def ask_for_parents(tx: Transaction) -> Work[tuple[tuple[str, ...], int]]:
        (row,) = (yield from jobs_by_id(tx, ["d50"])).values()
        return (yield from families.open_parents(tx, row))

    await link.run(ask_for_parents)
    found["parents that are waited for"] = link.cost()
    return found


def compare(few: dict[str, int], many: dict[str, int]) -> None:
    print(few, many)
    assert many["claim"] <= 1.5 * few["claim"], (few, many)
    for name, cost in many.items():
        assert cost <= 2 * few[name] + 20, (name, few, many)


@pytest.mark.parametrize("analyzed", ["never", "before there were workflows", "at last"])
@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_200)])])
async def test_cost_does_not_grow(
    opens: Opens, ask: Ask, clock: TestClock, connection: psycopg.Connection[tuple[Any, ...]], analyzed: str, count: int, schema: str
) -> None:
    found: list[dict[str, int]] = []
    for number in (0, count):
        broker = await opens()
        fill(ask, clock, number, analyzed)
        found.append(await costs(broker, clock, connection))
        await broker.close()
        connection.execute("discard all")
        connection.execute(f"set search_path = {schema}".encode())
        ask(f"drop schema {schema} cascade")
    compare(*found)


async def test_claims_do_not_wade_through_what_a_held_snapshot_keeps(
    broker: PostgresBroker, clock: TestClock, server: PostgresServer, schema: str, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    async def least_cost(session: Session) -> int:
        """Of three claims: one now and then looks at the whole line."""
        found: list[int] = []
        with explaining(session, broker, connection) as link:
            for _ in range(3):
                leases = await session.fetch(["default"], 10, ROOM)
                assert len(leases) == 10
                found.append(link.cost())
                await session.settle([(lease, Done()) for lease in leases])
                link.seen.clear()
        return min(found)

    with psycopg.connect(server.url, options=f"-c search_path={schema}") as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1 from jobs")
        async with broker.session(info()) as session:
            await broker.enqueue([job(clock, keep=0) for _ in range(1_000)])
            first = await least_cost(session)
            for _ in range(8):
                await broker.enqueue([job(clock, keep=0) for _ in range(1_000)])
                for _ in range(10):
                    leases = await session.fetch(["default"], BATCH, ROOM)
                    await session.settle([(lease, Done()) for lease in leases])
            last = await least_cost(session)
        assert last <= 1.5 * first, (first, last)


async def test_lines_where_keys_take_turns_cost_the_same_however_often_they_were_empty_under_a_held_snapshot(
    broker: PostgresBroker, clock: TestClock, server: PostgresServer, schema: str, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    def fair(count: int) -> list[Job]:
        return [job(clock, fair_by=f"t{n % 10}", keep=0) for n in range(count)]

    async def least_costs(session: PostgresSession) -> list[int]:
        """Of three enqueues and of three claims: one now and then looks at the whole line."""
        enqueues: list[int] = []
        claims: list[int] = []
        for _ in range(2):  # as if time had passed: marks there stay behind what was taken a moment ago
            session._fetching._marks.swept(["default"], 0.0)
        with explaining(session, broker, connection) as link:
            for _ in range(3):
                jobs = fair(10)
                await link.run(lambda tx, jobs=jobs: store(tx, jobs))
                enqueues.append(link.cost())
                leases = await session.fetch(["default"], 10, ROOM)
                assert (len(leases), len(link.seen)) == (10, 1), "they are claimed as they stand"
                claims.append(link.cost())
                await session.settle([(lease, Done()) for lease in leases])
                link.seen.clear()
        return [min(enqueues), min(claims)]

    with psycopg.connect(server.url, options=f"-c search_path={schema}") as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1 from jobs")
        async with broker.session(info()) as session:
            assert isinstance(session, PostgresSession)
            await broker.enqueue(fair(1_000))
            while leases := await session.fetch(["default"], BATCH, ROOM):
                await session.settle([(lease, Done()) for lease in leases])
            first = await least_costs(session)
            for _ in range(8):
                await broker.enqueue(fair(1_000))
                while leases := await session.fetch(["default"], BATCH, ROOM):
                    await session.settle([(lease, Done()) for lease in leases])
            last = await least_costs(session)
        assert all(after <= 1.5 * before for before, after in zip(first, last, strict=True)), (first, last)


async def test_a_rare_state_and_the_newest_jobs_are_found_without_reading_all(
    broker: PostgresBroker, ask: Ask, clock: TestClock, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    fill(ask, clock, 20_000, "never")
    ask("vacuum analyze jobs")
    clock.advance(60)
    await broker.enqueue([job(clock, f"new-{n}") for n in range(60)])
    link = ExplainingLink(connection, broker.opened)
    found = await link.run(lambda tx: reading.find(tx, Filter(), 50, None))
    assert [record.id for record in found] == [f"new-{n}" for n in reversed(range(10, 60))]
    [newest] = [each for each in link.seen if "as latest" in each.sql]
    size = ask("select pg_relation_size('jobs') / 8192")[0][0]
    assert newest.buffers < size / 2, (newest.buffers, size)


async def test_declaring_limits_costs_the_same_however_many_wait_and_as_many_statements_however_many_they_are(
    broker: PostgresBroker, clock: TestClock, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    waiting = (SlotLimit("k", 1),)
    await broker.enqueue([job(clock, limits=waiting) for _ in range(10)])
    async with broker.session(info()) as session:
        with explaining(session, broker, connection) as link:

            async def declared(name: str, number: int) -> list[int]:
                limits = [SlotLimit(f"{name} {n}", 3, f"{name} {n}") for n in range(number)]
                assert await link.run(lambda tx: gating.declare(tx, limits)) == []
                seen = [
                    each.buffers for each in link.seen if "offload.rules" in each.sql or '".rules' in each.sql or "recursive" in each.sql
                ]
                link.cost()
                return seen

            few = await declared("first", 1)
            assert len(await declared("many", 30)) == len(few)
            for _ in range(3):
                await broker.enqueue([job(clock, limits=waiting) for _ in range(1_000)])
            assert (await declared("last", 1))[-1] <= few[-1] + 10


async def test_of_what_workers_declare_no_more_is_read_than_jobs_name(
    broker: PostgresBroker, clock: TestClock, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    limits = [SlotLimit(f"tenant {n}", 3, f"tenant {n}") for n in range(50)]
    async with broker.session(info()) as session:
        with explaining(session, broker, connection) as link:
            await link.run(lambda tx: gating.declare(tx, limits))
            link.cost()
            jobs = [job(clock, limits=(limits[7],)) for _ in range(8)]
            await link.run(lambda tx: store(tx, jobs))
            leases = await claim(session)
            assert len(leases) == 3
            assert await session.settle([(leases[0], Done()), (leases[1], Retried(60))]) == []
            found = [node for each in link.seen for node in each.nodes() if node.get("Relation Name") == "rules"]
            assert found
            assert {node["Actual Rows"] for node in found} <= {0, 1}
