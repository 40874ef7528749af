"""A database that stalls, passwords that need care, and connections that tasks have used."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from tests.brokers.postgres.conftest import Ask, Opens

from offload.brokers.postgres.address import address
from offload.brokers.postgres.database import MOST_LINKS
from offload.errors import BadDeclaration, BrokerError
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import job
from offload.testing.servers import PostgresServer


@pytest.mark.anyio
async def test_enqueues_that_give_up_leave_no_storm_of_connections(
    server: PostgresServer, schema: str, url: str, opens: Opens, clock: TestClock, ask: Ask
) -> None:
    broker = await opens(f"{url}&timeout=0.2")
    blocker = await psycopg.AsyncConnection.connect(server.url)
    async with blocker:
        await blocker.execute(f'lock table "{schema}".jobs in access exclusive mode'.encode())
        for round in range(3):
            calls = [broker.enqueue([job(clock, id=f"{round}-{n}")]) for n in range(10)]
            refused = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(error, BrokerError) for error in refused)
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like %(tables)s"
        assert ask(waiting, tables=f'%"{schema}"%')[0][0] <= MOST_LINKS
        await blocker.rollback()
    await broker.enqueue([job(clock, id="later")])
    assert "later" in await broker.get(["later"])


@pytest.mark.parametrize("password", ["pa#ss", "pa?ss", "pa/ss", "pa[ss", "100%zz"])
def test_a_password_that_must_be_encoded_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(BadDeclaration, match="percent-encoded") as refused:
        address(f"postgresql://shop:{password}@localhost/shop")
    assert password not in str(refused.value)


@pytest.mark.anyio
async def test_what_a_task_sets_on_a_lent_connection_does_not_reach_the_next(opens: Opens) -> None:
    broker = await opens()
    async with broker.atransaction() as connection:
        await connection.execute("set search_path to nowhere")
        connection.row_factory = dict_row
        first = connection.pgconn.backend_pid
    async with broker.atransaction() as connection:
        row = await (await connection.execute("show search_path")).fetchone()
        assert row == ('"$user", public',)
        assert connection.pgconn.backend_pid == first


@pytest.mark.anyio
async def test_what_a_task_leaves_on_a_lent_connection_is_gone_for_the_next(opens: Opens) -> None:
    broker = await opens()
    left = (
        "select (select count(*) from pg_cursors where is_holdable), (select count(*) from pg_listening_channels()),"
        " (select count(*) from pg_prepared_statements where from_sql)"
    )
    async with broker.atransaction() as connection:
        await connection.execute("declare held cursor with hold for select 1")
        await connection.execute("listen something")
        connection.cursor_factory = psycopg.AsyncClientCursor
        connection.adapters.register_loader("int4", TextLoader)
        first = connection.pgconn.backend_pid
    async with broker.atransaction() as connection:
        assert await (await connection.execute(left)).fetchone() == (0, 0, 0)
        assert await (await connection.execute("select 1")).fetchone() == (1,)
        assert (connection.cursor_factory, connection.pgconn.backend_pid) == (psycopg.AsyncCursor, first)
        await connection.execute("prepare mine as select 1")
    with broker.transaction() as connection:
        connection.execute("declare held cursor with hold for select 1")
        connection.cursor_factory = psycopg.ClientCursor
        connection.adapters.register_loader("int4", TextLoader)
        first = connection.pgconn.backend_pid
    with broker.transaction() as connection:
        assert connection.execute(left).fetchone() == (0, 0, 0)
        assert connection.execute("select 1").fetchone() == (1,)
        assert (connection.cursor_factory, connection.pgconn.backend_pid) == (psycopg.Cursor, first)
        connection.execute("prepare mine as select 1")
    async with broker.atransaction() as connection:
        assert await (await connection.execute(left)).fetchone() == (0, 0, 0)
    with broker.transaction() as connection:
        assert connection.execute(left).fetchone() == (0, 0, 0)
