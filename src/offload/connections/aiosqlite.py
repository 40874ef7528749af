"""Connections of aiosqlite, which keeps one of sqlite3 in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiosqlite

from offload.broker import Cursor
from offload.connections.adapter import AsyncAdapter, Rows, Task
from offload.connections.sqlite import SqliteAdapter

T = TypeVar("T")


def adapter(connection: Any) -> AsyncAdapter | None:
    """The adapter of a connection of aiosqlite."""
    return AiosqliteAdapter(connection) if isinstance(connection, aiosqlite.Connection) else None


class AiosqliteAdapter(AsyncAdapter):
    """An operation runs in a thread, which has the statements awaited by the caller's loop."""

    dialect = "sqlite"
    kind = "an aiosqlite connection"
    library = "sqlite3"

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    def _inside(self) -> _InThread:
        return _InThread(self._connection, asyncio.get_running_loop())

    async def run(self, work: Task[T]) -> T:
        """Carry out an operation in the transaction that is open; see `SyncAdapter.run`."""
        return await asyncio.to_thread(self._inside().run, work)

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[None]:
        """A transaction, begun here if none is open."""
        inside = self._inside()
        await asyncio.to_thread(inside.begin)
        try:
            yield
        except BaseException:
            await self._connection.rollback()
            raise
        await self._connection.commit()


class _InThread(SqliteAdapter):
    """The connection as a thread beside the loop uses it."""

    kind = AiosqliteAdapter.kind

    def __init__(self, connection: aiosqlite.Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(connection)
        self._loop = loop

    def _awaited(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def plainly(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement."""
        return self._awaited(self._rows(sql, values))

    async def _rows(self, sql: str, values: Any) -> Rows:
        async with self._connection.execute(sql, values) as cursor:
            return Rows(list(await cursor.fetchall()), cursor.rowcount)
