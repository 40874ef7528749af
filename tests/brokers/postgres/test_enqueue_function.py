"""The SQL function `enqueue`: what it stores, whom it wakes, and what it refuses."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace
from tests.brokers.postgres.conftest import Ask, Opens
from tests.conftest import Eventually

from offload.brokers.postgres import PostgresBroker, wake
from offload.clock import SystemClock
from offload.errors import IdConflict
from offload.job import Done, Job, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.batches import part
from offload.testing.contract.families import node
from offload.testing.contract.fixtures import PATIENCE, claim, ids, info, job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def broker(opens: Opens) -> PostgresBroker:
    """By the machine's clock, as the function goes by the server's."""
    return await opens(by=SystemClock())


RICH = """select enqueue('greet', '{"text": "two  blanks, a \\" and \\\\", "n": [1, 2.5, null], "deep": {"a b": "ä\\n"}}', id => 'x',
    queue => 'mail', priority => 7, delay => '1 hour', unique_key => 'k', unique_until => 'started', on_conflict => 'raise',
    expires_in => '2 hours', keep => '90 seconds', timeout => '1.5 seconds')"""


async def test_it_stores_what_python_would(broker: PostgresBroker, ask: Ask) -> None:
    assert ask(RICH) == [("x",)]
    shown = (await broker.get(["x"]))["x"]
    assert abs(datetime.now(UTC) - shown.enqueued_at) < timedelta(seconds=5)
    assert shown.run_at == shown.enqueued_at + timedelta(hours=1)
    twin = Job(
        id="y",
        task="greet",
        payload='{"n":[1,2.5,null],"deep":{"a b":"ä\\n"},"text":"two  blanks, a \\" and \\\\"}'.encode(),
        enqueued_at=shown.enqueued_at,
        queue="mail",
        priority=7,
        run_at=shown.run_at,
        expires_at=shown.enqueued_at + timedelta(hours=2),
        timeout=1.5,
        unique=UniqueKey("k2", "started", "raise"),
        keep=90.0,
    )
    assert await broker.enqueue([twin]) == ["y"]
    stored = (await broker.get(["y"]))["y"]
    assert replace(shown, id="y", unique=twin.unique) == stored
    columns = "task, queue, rank, payload, enqueued_at, keep, pos, due"
    assert len(set(ask(f"select {columns} from jobs"))) == 1
    assert ask("select until, frees_at, successor from uniques where key = 'k'") == ask(
        "select until, frees_at, successor from uniques where key = 'k2'"
    )
    assert len(ask("select expires_at from expiring group by expires_at")) == 1


async def test_by_default_a_job_is_ready_and_runs(broker: PostgresBroker, ask: Ask) -> None:
    [[id]] = ask("select enqueue('greet')")
    assert id[14] == "7"  # a UUID of version 7, as Python makes them
    async with broker.session(info()) as session:
        (lease,) = await claim(session)
        assert (lease.job.id, lease.job.payload, lease.job.queue, lease.job.priority, lease.job.keep) == (id, b"{}", "default", 0, 86_400)
        assert await session.settle([(lease, Done(b"1"))]) == []


async def test_ids_ascend_with_time(ask: Ask, broker: PostgresBroker) -> None:
    found = [id for _ in range(5) for (id,) in [*ask("select enqueue('greet')"), *ask("select pg_sleep(0.002)::text")] if id]
    assert found == sorted(found)
    assert len(set(found)) == 5


async def test_a_job_due_already_is_ready(broker: PostgresBroker, ask: Ask) -> None:
    ask("select enqueue('greet', run_at => now() - interval '1 minute')")
    assert await broker.counts() == {"default": {State.READY: 1}}


async def test_it_rolls_back_with_its_transaction(broker: PostgresBroker, server: PostgresServer, schema: str) -> None:
    with psycopg.connect(server.url, options=f"-c search_path={schema}") as connection:
        connection.execute("select enqueue('greet', unique_key => 'k')")
        connection.rollback()
        connection.execute("select enqueue('greet', id => 'kept', unique_key => 'k')")
    assert await broker.counts() == {"default": {State.READY: 1}}
    assert list(await broker.get(["kept"])) == ["kept"]


async def test_a_trigger_may_enqueue(broker: PostgresBroker, ask: Ask, schema: str) -> None:
    ask("create table orders (id bigint generated always as identity, email text)")
    ask(
        f"create function confirm() returns trigger language plpgsql as $$ begin perform {schema}.enqueue('greet', "
        "jsonb_build_object('order_id', new.id), id => 'order-' || new.id); return new; end $$"
    )
    ask("create trigger confirm after insert on orders for each row execute function confirm()")
    ask("insert into orders (email) values ('a'), ('b')")
    async with broker.session(info()) as session:
        assert [(lease.job.id, lease.job.payload) for lease in await claim(session)] == [
            ("order-1", b'{"order_id":1}'),
            ("order-2", b'{"order_id":2}'),
        ]


async def test_it_wakes_workers(broker: PostgresBroker, ask: Ask, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    monkeypatch.setattr(wake, "POLL", 3_600.0)
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        assert await claim(session) == []
        waiting = asyncio.ensure_future(session.wait(3_600))
        await eventually(lambda: ask("select 1 from sleepers where what = 'work'"))
        await asyncio.sleep(0.2)
        ask("select enqueue('greet', id => 'a')")
        await waiting
        assert ids(await claim(session)) == ["a"]


async def test_the_same_id_is_stored_once(broker: PostgresBroker, ask: Ask) -> None:
    again = "select enqueue('greet', '{\"n\": 1}', id => 'a')"
    assert ask(again) == ask(again) == [("a",)]
    now = SystemClock().now()
    assert await broker.enqueue([Job(id="a", task="greet", payload=b'{"n":1}', enqueued_at=now)]) == ["a"]
    with pytest.raises(IdConflict):
        await broker.enqueue([Job(id="a", task="greet", payload=b'{"n":2}', enqueued_at=now)])
    with pytest.raises(psycopg.errors.UniqueViolation, match="job id 'a' was already used with another task or payload"):
        ask("select enqueue('other', '{\"n\": 1}', id => 'a')")
    assert await broker.counts() == {"default": {State.READY: 1}}


async def test_a_job_of_a_workflow_or_batch_is_another_job(broker: PostgresBroker, clock: TestClock, ask: Ask) -> None:
    await broker.open_batch("batch", "", [job(clock, "called", batch="batch", callback="success")])
    await broker.enqueue([node(clock, "a"), part(clock, "b")])
    for id in ("a", "b", "called"):
        with pytest.raises(psycopg.errors.UniqueViolation, match=f"job id '{id}' was already used .* or in a workflow or batch"):
            ask("select enqueue('greet', '{}', id => %(id)s)", id=id)


async def test_a_key_is_kept_between_both_worlds(broker: PostgresBroker, ask: Ask) -> None:
    ask("select enqueue('greet', id => 'a', unique_key => 'k')")
    now = SystemClock().now()
    assert await broker.enqueue([Job(id="b", task="greet", enqueued_at=now, unique=UniqueKey("k"))]) == ["a"]
    assert ask("select enqueue('greet', id => 'c', unique_key => 'k')") == [("a",)]
    with pytest.raises(psycopg.errors.UniqueViolation, match="unique key 'k' is held by job a"):
        ask("select enqueue('greet', id => 'c', unique_key => 'k', on_conflict => 'raise')")
    async with broker.session(info()) as session:
        await session.settle([(lease, Done()) for lease in await claim(session)])
    assert ask("select enqueue('greet', id => 'c', unique_key => 'k')") == [("c",)]


async def test_a_key_for_a_time_frees_itself(broker: PostgresBroker, ask: Ask) -> None:
    ask("select enqueue('greet', id => 'a', unique_key => 'k', unique_until => '2 seconds')")
    assert ask("select enqueue('greet', id => 'b', unique_key => 'k', unique_until => '1 hour')") == [("a",)]
    ask("select pg_sleep(2.1)")  # by the server's own clock, which nobody can move
    assert ask("select enqueue('greet', id => 'c', unique_key => 'k', unique_until => '1 hour')") == [("c",)]
    assert ask("select holder from uniques") == [("c",)]


@pytest.mark.parametrize("same", ["id => 'one'", "unique_key => 'k'", "id => 'one', unique_key => 'k'"])
async def test_two_at_once_store_one(
    broker: PostgresBroker, server: PostgresServer, schema: str, ask: Ask, same: str, eventually: Eventually
) -> None:
    with (
        psycopg.connect(server.url, options=f"-c search_path={schema}") as first,
        psycopg.connect(server.url, options=f"-c search_path={schema}") as second,
    ):
        [[id]] = first.execute(f"select enqueue('greet', {same})".encode()).fetchall()
        other = asyncio.create_task(asyncio.to_thread(lambda: second.execute(f"select enqueue('greet', {same})".encode()).fetchall()))
        await eventually(lambda: ask("select 1 from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"))
        first.commit()
        assert await other == [(id,)]
        second.commit()
    assert await broker.counts() == {"default": {State.READY: 1}}
    assert len(ask("select key from uniques")) == ("unique_key" in same)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("''", "task must be a name that is not empty"),
        ("'t', '[1]'", "payload must be a JSON object of the arguments by name"),
        ("'t', null", "payload must be a JSON object"),
        ("'t', jsonb_build_object('a', repeat('x', 262144))", "of at most 262144"),
        ("'t', queue => 'a b'", "queue must be a name without white space"),
        ("'t', priority => 101", "priority must be from -100 to 100"),
        ("'t', delay => '1 s', run_at => now()", "a job has one time"),
        ("'t', unique_key => repeat('k', 201)", "unique_key has 201 characters"),
        ("'t', unique_key => ''", "leave it out"),
        ("'t', unique_key => 'k', on_conflict => 'replace'", "other ways need Python"),
        (
            "'t', unique_key => 'k', unique_until => 'later'",
            "unique_until is 'finished', 'started' or an interval such as '5 minutes', not 'later'",
        ),
        ("'t', unique_key => 'k', unique_until => '-5 minutes'", "not '-5 minutes'"),
        ("'t', unique_key => 'k', unique_until => '90000000000 s'", "unique_until is 'finished', 'started' or an interval"),
        ("'t', unique_until => 'started'", "give unique_key too"),
        ("'t', delay => '-1 s'", "delay must not be negative"),
        ("'t', run_at => 'infinity'", "between the years 1970 and 9999"),
        ("'t', run_at => '-infinity'", "between the years 1970 and 9999"),
        ("'t', keep => null", "cannot be null"),
        ("'t', keep => '9000 years'", "keep is from 0 to 1000 years"),
        ("'t', keep => '-1 day'", "keep is from 0 to 1000 years"),
        ("'t', id => repeat('x', 201)", "have at most 200 characters"),
        ("'t', queue => repeat('x', 201)", "have at most 200 characters"),
        ("repeat('x', 201)", "have at most 200 characters"),
        ("'t', expires_in => '9000 years'", "between the years 1970 and 9999"),
        ("'t', run_at => '20000-01-01Z'", "between the years 1970 and 9999"),
        ("'t', run_at => '1869-01-01Z'", "between the years 1970 and 9999"),
        ("'t', timeout => '0 s'", "timeout must be a positive interval"),
    ],
)
async def test_what_cannot_work_is_refused(broker: PostgresBroker, ask: Ask, arguments: str, said: str) -> None:
    with pytest.raises(psycopg.Error, match=said) as raised:
        ask(f"select enqueue({arguments})")
    assert raised.value.sqlstate == ("54000" if "262144" in said else "22023"), "program_limit_exceeded, or invalid_parameter_value"
    assert await broker.counts() == {}


async def test_it_takes_part_in_schemas_of_any_name(opens: Opens, server: PostgresServer) -> None:
    broker = await opens(f"{server.url}?schema=a%20%22b", SystemClock())
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("""select "a ""b".enqueue('greet', id => 'a')""")
        assert list(await broker.get(["a"])) == ["a"]
        connection.execute("""drop schema "a ""b" cascade""")


async def test_the_guide_says_what_works(opens: Opens, server: PostgresServer, fresh_name: str) -> None:
    url = server.database(f"guide_{fresh_name}")
    broker = await opens(url, SystemClock())
    page = Path("docs/guides/enqueue-from-sql.md").read_text()
    statements = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(statements) >= 5
    with psycopg.connect(url, autocommit=True) as connection:

        def run(statement: str) -> list[tuple[Any, ...]]:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

        run("create table orders (id bigint, email text)")
        run("create table users (id bigint, subscribed boolean)")
        run("insert into users values (1, true), (2, false), (3, true)")
        run(f"create role {fresh_name}")
        for statement in statements:
            run(statement.replace("to shop", f"to {fresh_name}"))
        run("insert into orders values (4712, 'grace@example.com')")
        run(f"set role {fresh_name}")
        run("select offload.enqueue('greet', id => 'granted')")
        run("reset role")
        run(f"drop owned by {fresh_name}")
        run(f"drop role {fresh_name}")
        taken = {name for (names,) in run("select proargnames from pg_proc where proname = 'enqueue'") for name in names}
    assert await broker.counts() == {"default": {State.READY: 4}, "mail": {State.READY: 2}}
    assert {"confirm-4711", "confirm-4712", "granted"} == (await broker.get(["confirm-4711", "confirm-4712", "granted"])).keys()
    table = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert table == taken, "the guide's table is of other arguments than the function takes"


async def test_the_same_arguments_in_another_order_are_the_same_job(broker: PostgresBroker, ask: Ask) -> None:
    payload = b'{"user_id":7,"at":{"zone":"UTC","day":1}}'  # in the order of Python's parameters, which is not jsonb's
    await broker.enqueue([Job(id="x", task="greet", payload=payload, enqueued_at=datetime.now(UTC))])
    assert ask("""select enqueue('greet', '{"at": {"day": 1, "zone": "UTC"}, "user_id": 7}', id => 'x')""") == [("x",)]
    with pytest.raises(psycopg.errors.UniqueViolation, match="another task or payload"):
        ask("""select enqueue('greet', '{"at": {"day": 2, "zone": "UTC"}, "user_id": 7}', id => 'x')""")
