"""Connections of psycopg 3, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from offload.broker import Cursor
from offload.connections.adapter import RELEASE, SAVEPOINT, UNDO, AsyncAdapter, Rows, SyncAdapter, Task, ended_by
from offload.errors import BadDeclaration

T = TypeVar("T")


def adapter(connection: Any) -> SyncAdapter | AsyncAdapter | None:
    """The adapter of a connection of psycopg."""
    if isinstance(connection, Connection):
        return PsycopgAdapter(cast("Connection[Any]", connection))
    if isinstance(connection, AsyncConnection):
        return AsyncPsycopgAdapter(cast("AsyncConnection[Any]", connection))
    return None


class PsycopgAdapter(SyncAdapter):
    """A sync connection of psycopg."""

    dialect = "postgresql"
    kind = "a psycopg connection"

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement; rows are tuples whatever the connection's row factory."""
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(sql.encode(), values or None)
            return Rows(cursor.fetchall() if cursor.description else (), cursor.rowcount)

    def join(self) -> None:
        """Statements begin a transaction unless the connection is in autocommit mode."""
        _refuse_autocommit(self._connection, "with connection.transaction():")

    @contextmanager
    def block(self) -> Generator[None]:
        """What the connection has done since its last commit belongs to it."""
        if _begins(self._connection):
            with self._connection.transaction():
                yield
        else:
            with ended_by(self._connection.commit, self._connection.rollback):
                yield


class AsyncPsycopgAdapter(AsyncAdapter):
    """An async connection of psycopg. Operations of several coroutines go one after the other, for a savepoint belongs to one of them."""

    dialect = "postgresql"
    kind = "an async psycopg connection"

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    async def _execute(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(sql.encode(), values or None)
            return await cursor.fetchall() if cursor.description else []

    async def run(self, work: Task[T]) -> T:
        """Carry out an operation in the transaction that is open; see `SyncAdapter.run`."""
        _refuse_autocommit(self._connection, "async with connection.transaction():")
        async with _turns.setdefault(self._connection, asyncio.Lock()):
            await self._execute(SAVEPOINT)
            try:
                result = await self._carried_out(work)
            except BaseException:
                with suppress(Exception):  # a connection that is gone; the error that says so is on its way
                    await self._execute(UNDO)
                    await self._execute(RELEASE)
                raise
            await self._execute(RELEASE)
            return result

    async def _carried_out(self, work: Task[T]) -> T:
        assert not callable(work), "PostgreSQL's operations can be awaited"
        try:
            statement = next(work)
            while True:
                try:
                    rows = await self._execute(statement.sql, statement.values)
                except Exception as error:  # noqa: BLE001 - the operation's own to handle
                    statement = work.throw(error)
                else:
                    statement = work.send(rows)
        except StopIteration as end:
            return end.value

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[None]:
        """What the connection has done since its last commit belongs to it."""
        if _begins(self._connection):
            async with self._connection.transaction():
                yield
            return
        try:
            yield
        except BaseException:
            with suppress(Exception):  # a connection that is gone has rolled back; what went wrong is on its way
                await self._connection.rollback()
            raise
        await self._connection.commit()


_turns: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()


def _refuse_autocommit(connection: Connection[Any] | AsyncConnection[Any], block: str) -> None:
    if connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        raise BadDeclaration(
            f"a psycopg connection in autocommit mode has no transaction that the job could join: enqueue inside `{block}`, "
            "or leave out connection= to enqueue at once"
        )


def _begins(connection: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Whether a block on this connection begins its transaction, rather than going on with what was done before."""
    idle = connection.info.transaction_status is TransactionStatus.IDLE
    if not idle and connection.autocommit:
        raise BadDeclaration(
            "current.transaction(connection) commits at its end, so it cannot stand inside a block of connection.transaction(); "
            "take that block away: this one is the transaction"
        )
    return idle
