"""Connections of psycopg 3, sync and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar, cast

from psycopg import AsyncConnection, AsyncCursor, Connection
from psycopg import Cursor as PsycopgCursor
from psycopg.pq import PipelineStatus, TransactionStatus
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
        self._connection = self.source = connection

    @property
    def driver(self) -> Any:
        """The connection itself."""
        return self._connection

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement; rows are tuples, and values have names, whatever the connection's factories."""
        with PsycopgCursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(sql.encode(), values or None)
            return Rows(cursor.fetchall() if cursor.description else (), cursor.rowcount)

    def join(self) -> None:
        """Statements begin a transaction unless the connection is in autocommit mode."""
        _refuse(self._connection, "with connection.transaction():")

    @contextmanager
    def block(self) -> Generator[None]:
        """What the connection has done since its last commit belongs to it. In psycopg's own block it refuses to be committed by others."""
        if _begins(self._connection):
            with self._connection.transaction():
                yield
        else:
            with ended_by(self._connection.commit, self._connection.rollback), self._connection.transaction():
                yield


class AsyncPsycopgAdapter(AsyncAdapter):
    """An async connection of psycopg."""

    dialect = "postgresql"
    kind = "an async psycopg connection"

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = self.given = self.source = connection

    async def _execute(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        async with AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(sql.encode(), values or None)
            return await cursor.fetchall() if cursor.description else []

    async def _run(self, work: Task[T]) -> T:
        _refuse(self._connection, "async with connection.transaction():")
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
            async with self._connection.transaction():
                yield
        except BaseException:
            with suppress(Exception):  # a connection that is gone has rolled back; what went wrong is on its way
                await self._connection.rollback()
            raise
        await self._connection.commit()


def _refuse_pipeline(connection: Connection[Any] | AsyncConnection[Any]) -> None:
    if connection.info.pipeline_status is not PipelineStatus.OFF:
        raise BadDeclaration(
            "a psycopg connection in pipeline mode sends statements without waiting for their rows, which enqueueing needs: "
            "leave the block of connection.pipeline() before"
        )


def _refuse(connection: Connection[Any] | AsyncConnection[Any], block: str) -> None:
    _refuse_pipeline(connection)
    if connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        raise BadDeclaration(
            f"a psycopg connection in autocommit mode has no transaction that the job could join: enqueue inside `{block}`, "
            "or leave out connection= to enqueue at once"
        )


def _begins(connection: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Whether a block on this connection begins its transaction, rather than going on with what was done before."""
    _refuse_pipeline(connection)
    idle = connection.info.transaction_status is TransactionStatus.IDLE
    if not idle and not connection.closed and connection.autocommit:
        raise BadDeclaration(
            "current.transaction(connection) commits at its end, so it cannot stand inside a block of connection.transaction(); "
            "take that block away: this one is the transaction"
        )
    return idle
