"""Makes the schema, and brings an older one up to date.

The rule for every migration: a worker of the version before goes on working while it runs and after it. So a migration adds tables,
indexes and columns with defaults; what an older version reads or writes is neither renamed nor removed nor given another meaning
until the version after next. An older version meets a newer schema only when it starts: then it refuses.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from offload.brokers._sql import script
from offload.brokers.postgres.address import Address
from offload.brokers.postgres.work import PACKAGE, schema_script
from offload.errors import BrokerUnusable, SchemaTooNew

SCHEMA = 4
"""The version of the schema that this version of Offload works with."""
MIGRATIONS: dict[int, str] = {
    2: script(PACKAGE, "gates_schema.sql"),
    3: script(PACKAGE, "families_schema.sql"),
    4: script(PACKAGE, "children_schema.sql"),
}
"""By the version that it leads to, what turns the one before into it, written for the schema `offload`."""
FUNCTIONS = (script(PACKAGE, "functions.sql"), script(PACKAGE, "succeeding.sql"))
"""What is made anew for each version."""
LOCK = 0x0FF10AD
"""The advisory lock under which schemas are made, together with the hash of the schema's name."""

Connection = AsyncConnection[tuple[Any, ...]]


class Unprepared(BrokerUnusable):
    """The schema is missing or older, and may not be made."""


async def version_of(connection: Connection, address: Address) -> int:
    """The version of the schema; 0 where there is none. Raises SchemaTooNew."""
    # Not by `to_regclass`: it may remember that there was none before another process, for which this one waited, made it.
    there = "select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = %s and c.relname = 'store'"
    if await (await connection.execute(there, [address.schema])).fetchone() is None:
        return 0
    row = await (await connection.execute(sql.SQL("select version from {}").format(sql.Identifier(address.schema, "store")))).fetchone()
    version = 0 if row is None else int(row[0])
    if version > SCHEMA:
        raise SchemaTooNew(
            f"{address.place}: the schema {address.schema!r} has version {version}, and this version of Offload knows {SCHEMA}; "
            "upgrade Offload here"
        )
    return version


async def prepare(connection: Connection, address: Address) -> None:
    """Have the schema at hand: made or brought up to date where that is allowed. Raises Unprepared, SchemaTooNew."""
    version = await version_of(connection, address)
    if version == SCHEMA:
        return
    if not address.migrate:
        state = f"has version {version} where {SCHEMA} is needed" if version else "is not there"
        unused = "" if version else "nothing was ever enqueued here, and no worker ran: "
        raise Unprepared(
            f"{address.place}: {unused}the schema {address.schema!r} {state} and may not be made here "
            "(migrate=false, or a command that only looks); is this the right database? `offload migrate` makes it"
        )
    await migrate(connection, address)


async def migrate(connection: Connection, address: Address) -> tuple[int, int]:
    """Bring the schema to this version. Returns (from, to). Any number of processes may do so at the same time."""
    async with connection.transaction():
        await connection.execute("set transaction isolation level read committed")  # what others made is to be seen once the lock is had
        await connection.execute("select pg_advisory_xact_lock(%s, hashtext(%s))", [LOCK, address.schema])
        await connection.execute("set local lock_timeout = '60s'")
        version = await version_of(connection, address)
        if version == 0:
            await _create(connection, address)
        missing = [MIGRATIONS[step] for step in range(max(version, 1) + 1, SCHEMA + 1)]
        if version != SCHEMA:
            for each in (*missing, *FUNCTIONS):
                await connection.execute(schema_script(address.schema, each), prepare=False)
            store = sql.Identifier(address.schema, "store")
            await connection.execute(sql.SQL("update {} set version = %s").format(store), [SCHEMA])
    return (version, SCHEMA)


async def _create(connection: Connection, address: Address) -> None:
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(address.schema)))
    except psycopg.errors.UniqueViolation:  # one that does not know of the lock made it just now
        pass
    except psycopg.errors.InsufficientPrivilege:
        found = await (await connection.execute("select 1 from pg_namespace where nspname = %s", [address.schema])).fetchone()
        if found is None:
            raise
    await connection.execute(schema_script(address.schema), prepare=False)
