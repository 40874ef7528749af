"""Connections of aiosqlite, which keeps one of sqlite3 in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeVar

import aiosqlite

from offload.broker import Cursor
from offload.connections.adapter import AsyncAdapter, Rows, Task
from offload.connections.sqlite import SqliteAdapter, autocommit_of, end

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
        self._connection = self.given = self.source = connection

    def _inside(self) -> _InThread:
        return _InThread(self._connection, asyncio.get_running_loop())

    async def _run(self, work: Task[T]) -> T:
        inside = self._inside()
        return await _in_thread(lambda: inside.run(work))

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[None]:
        """A transaction, begun here if none is open."""
        inside = self._inside()
        try:
            await _in_thread(inside.begin)
            await _in_thread(inside.mark)
            yield
            await _in_thread(inside.unmark)
            await self._end("commit")
        except BaseException:
            with suppress(Exception):  # a connection that is gone has rolled back; what went wrong is on its way
                await self._end("rollback")
            raise

    async def _end(self, how: Literal["commit", "rollback"]) -> None:
        """In the connection's own thread, the only one that may ask sqlite3 for its mode."""
        connection: Any = self._connection
        await connection._execute(end, connection._conn, how)  # noqa: SLF001


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

    def autocommit(self) -> bool:
        """As `SqliteAdapter.autocommit`, asked in the connection's own thread, the only one that may."""
        connection: Any = self._connection
        return self._awaited(connection._execute(autocommit_of, connection._conn))  # noqa: SLF001

    async def _rows(self, sql: str, values: Any) -> Rows:
        async with self._connection.execute(sql, values) as cursor:
            return Rows(list(await cursor.fetchall()), cursor.rowcount)


async def _in_thread(work: Callable[[], T]) -> T:
    """Do it in a thread. A cancellation that comes meanwhile is raised at its end: a rollback before that would miss what it does then."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait({thread})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if thread.cancelled() else thread.exception())
    return thread.result()
