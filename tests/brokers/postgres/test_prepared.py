"""Statements that run past psycopg's cursors do what they would through one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from tests.conftest import Eventually, Starts

from offload.broker import Statement, Work
from offload.brokers.postgres import prepared
from offload.brokers.postgres.address import address
from offload.brokers.postgres.connections import Connection, Link, connected
from offload.brokers.postgres.prepared import Prepared, numbered
from offload.brokers.postgres.tallies import settle_up
from offload.brokers.postgres.work import Transaction
from offload.errors import BrokerError
from offload.testing.servers import PostgresServer, postgres

pytestmark = pytest.mark.anyio

KINDS: list[Any] = [
    "",
    "word",
    "ünï ✓",
    "100 %",
    None,
    True,
    False,
    0,
    -1,
    32_767,
    32_768,
    -(2**31),
    2**31,
    2**62,
    10**30,
    0.5,
    float("inf"),
]
TYPE = "select pg_typeof(v)::text, v"


@pytest.fixture
async def connection(server: PostgresServer) -> AsyncIterator[Connection]:
    async with await connected(address(server.url)) as connection:
        yield connection


@pytest.fixture
def statements(connection: Connection) -> Prepared:
    return Prepared(connection)


async def test_places_are_numbered_by_name_and_double_percent_signs_are_single() -> None:
    assert numbered("select %(b)s, %(a)s, %(b)s, 7 %% 2") == ("select $1, $2, $1, 7 % 2", ("b", "a"))
    assert numbered("commit") == ("commit", ())


@pytest.mark.parametrize("value", KINDS, ids=repr)
async def test_values_come_back_as_they_do_through_a_cursor(connection: Connection, statements: Prepared, value: Any) -> None:
    sql = TYPE + ", '%%' || %(word)s::text, array[1, 2], null, '{\"a\": 1}'::json from (select %(value)s as v) as given"
    values = {"value": value, "word": "end", "unused": object()}
    cursor = await connection.execute(sql.encode(), values)
    assert await statements.rows(Statement(sql, values)) == await cursor.fetchall()


async def test_values_of_other_types_may_follow(statements: Prepared) -> None:
    sql = TYPE + " from (select %(value)s as v) as given"
    found = [(await statements.rows(Statement(sql, {"value": value})))[0][0] for value in [*KINDS, *KINDS]]
    assert found[: len(KINDS)] == found[len(KINDS) :]
    assert {"text", "smallint", "integer", "bigint", "numeric", "boolean", "double precision"} == set(found)


async def test_no_rows_and_many_rows(statements: Prepared) -> None:
    assert await statements.rows(Statement("create temporary table numbers (n integer)")) == []
    assert await statements.rows(Statement("insert into numbers select generate_series(1, 50000)")) == []
    assert await statements.rows(Statement("select n from numbers where n > %(n)s", {"n": 50_000})) == []
    assert len(await statements.rows(Statement("select n from numbers"))) == 50_000
    long = "x" * 20_000_000
    assert await statements.rows(Statement("select %(long)s::text", {"long": long})) == [(long,)]


async def test_more_statements_than_are_kept_run_as_well(statements: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MOST", 2)
    for n in range(5):
        assert await statements.rows(Statement(f"select {n}, %(n)s::integer", {"n": n})) == [(n, n)]
    assert await statements.rows(Statement("set statement_timeout to 0")) == []


@pytest.mark.parametrize(
    ("sql", "value", "error"),
    [
        ("select %(value)s::text", "a\0b", psycopg.DataError),
        ("selec", "", errors.SyntaxError),
        ("select %(value)s::integer", "word", errors.InvalidTextRepresentation),
        ("select 1 / %(value)s::integer", 0, errors.DivisionByZero),
        ("select * from nowhere", "", errors.UndefinedTable),
    ],
)
async def test_errors_are_those_of_a_cursor_and_leave_the_connection_in_order(
    connection: Connection, statements: Prepared, sql: str, value: Any, error: type[Exception]
) -> None:
    for _ in range(2):
        with pytest.raises(error) as ours:
            await statements.rows(Statement(sql, {"value": value}))
        with pytest.raises(error) as psycopgs:
            await connection.execute(sql.encode(), {"value": value})
        assert (type(ours.value), str(ours.value)) == (type(psycopgs.value), str(psycopgs.value))
        assert await statements.rows(Statement("select 1")) == [(1,)]


async def test_statements_that_the_server_has_forgotten_are_prepared_again(connection: Connection, statements: Prepared) -> None:
    one, two = Statement("select 1"), Statement("select 2")
    assert (await statements.rows(one), await statements.rows(two)) == ([(1,)], [(2,)])
    await connection.execute("begin")
    await connection.execute("rollback")  # psycopg has all statements forgotten
    await connection.execute("select 3")
    assert (await statements.rows(one), await statements.rows(two)) == ([(1,)], [(2,)])


async def test_what_its_caller_gives_up_is_cancelled_on_the_server(
    server: PostgresServer, connection: Connection, statements: Prepared, eventually: Eventually
) -> None:
    running = f"select count(*) from pg_stat_activity where pid = {connection.pgconn.backend_pid} and state = 'active'"
    call = asyncio.create_task(statements.rows(Statement("select pg_sleep(60)")))
    await eventually(lambda: server.ask(running) == [["1"]])
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await eventually(lambda: server.ask(running) == [["0"]])
    assert await statements.rows(Statement("select 1")) == [(1,)]


async def test_a_connection_that_ends_meanwhile_says_why(server: PostgresServer, connection: Connection, statements: Prepared) -> None:
    end = Statement("select pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(errors.AdminShutdown):
        await statements.rows(end)
    with pytest.raises(psycopg.OperationalError):
        await statements.rows(end)


class Ask:
    """One statement on a connection that is opened again when it broke."""

    def __init__(self, url: str, sql: str) -> None:
        self.link = Link(address(url), lambda: Transaction({"ask": sql}, "channel", 0, settle_up))

    async def __call__(self) -> list[tuple[Any, ...]]:
        def operation(tx: Transaction) -> Work[list[tuple[Any, ...]]]:
            return tx.rows("ask")

        return await self.link.step(operation)


async def test_statements_are_prepared_anew_on_a_server_that_was_started_again(started: Starts[PostgresServer]) -> None:
    server = started(postgres)
    ask = Ask(server.url, "select 1")
    assert await ask() == [(1,)]
    for end in (server.stop, server.kill):
        end()
        with pytest.raises(BrokerError):
            await ask()
        server.start()
        assert await ask() == [(1,)]
    await ask.link.close()


async def test_rows_of_another_shape_than_when_it_was_prepared_fail_once(server: PostgresServer, schema: str) -> None:
    server.ask(f'create schema "{schema}"')
    server.ask(f'create table "{schema}".things as select 1 as n')
    ask = Ask(server.url, f'select * from "{schema}".things')
    assert await ask() == [(1,)]
    server.ask(f'alter table "{schema}".things add column m integer default 2')
    with pytest.raises(BrokerError, match="cached plan"):
        await ask()
    assert await ask() == [(1, 2)]
    await ask.link.close()
