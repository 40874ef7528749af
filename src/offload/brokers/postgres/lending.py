"""Connections lent to tasks for transactions of their own: psycopg's, for threads and for coroutines."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from threading import BoundedSemaphore
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from offload.brokers.postgres.address import Address
from offload.brokers.postgres.connections import keywords, let_go, usable
from offload.brokers.postgres.errors import translated
from offload.brokers.postgres.work import T, Work

_AS_NEW = (
    "reset session authorization; reset all; discard temp; close all; unlisten *; "
    "select pg_advisory_unlock_all(); select exists (select from pg_prepared_statements where from_sql)"
)
"""Undoes what a task may have set in the server's session. Prepared statements stay, for the driver counts on its own; tells whether some
are the task's."""


class Lender:
    """Keeps connections that were lent before, for the next who asks; from any thread."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[psycopg.Connection[Any]] = []
        self._aidle: list[psycopg.AsyncConnection[Any]] = []
        self._closed = False
        self._left = weakref.finalize(self, _let_go, self._idle, self._aidle, os.getpid())  # a program may end without closing its app
        self._places = BoundedSemaphore(MOST_KEPT)
        self._aplaces = asyncio.Semaphore(MOST_KEPT)

    @contextmanager
    def lent(self) -> Generator[psycopg.Connection[Any]]:
        """A connection with a transaction begun, committed at the end. Only failures to connect are raised as ours."""
        with self._places:
            connection = self._taken()
            try:
                with connection.transaction():
                    yield connection
            finally:
                self._back(connection)

    def read(self, work: Work[T]) -> T:
        """Carry out statements that only read, on a connection made for it: those who ask may hold all that are lent."""
        with translated(self._address), psycopg.connect(self._address.dsn, autocommit=True, **self._keywords()) as connection:
            try:
                statement = next(work)
                while True:
                    statement = work.send(connection.execute(statement.sql.encode(), statement.values or None).fetchall())
            except StopIteration as end:
                return end.value

    def _taken(self) -> psycopg.Connection[Any]:
        while self._idle:
            connection = self._idle.pop()  # atomic under the interpreter lock
            if usable(connection.pgconn):
                return connection
            connection.close()
        with translated(self._address):
            return psycopg.connect(self._address.dsn, autocommit=True, **self._keywords())

    def _back(self, connection: psycopg.Connection[Any]) -> None:
        try:
            if self._kept(connection, len(self._idle)):
                cursor = connection.execute(_AS_NEW, prepare=False)
                while cursor.nextset():
                    pass
                if cursor.fetchone() == (False,) or self._address.pgbouncer:
                    self._idle.append(connection)
                    return
            if _at_a_statement(connection.pgconn):
                connection.cancel_safe(timeout=CANCEL_WITHIN)
        except psycopg.Error:
            pass  # it is closed, and the next who asks gets a new one
        connection.close()

    def _kept(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], idle: int) -> bool:
        """Whether a connection may be lent again; what the task set in the driver is undone."""
        if self._closed or idle >= MOST_KEPT or connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            return False
        connection.row_factory = tuple_row
        if isinstance(connection, psycopg.Connection):
            connection.cursor_factory, connection.server_cursor_factory = psycopg.Cursor, psycopg.ServerCursor
        else:
            connection.cursor_factory, connection.server_cursor_factory = psycopg.AsyncCursor, psycopg.AsyncServerCursor
        connection._adapters = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - made anew, from psycopg's own, when it is asked for
        return (connection.isolation_level, connection.read_only, connection.deferrable) == (None, None, None)

    @asynccontextmanager
    async def alent(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        """`lent` for coroutines of the client's event loop."""
        async with self._aplaces:
            connection = await self._ataken()
            try:
                async with connection.transaction():
                    yield connection
            finally:
                await self._aback(connection)

    async def _aback(self, connection: psycopg.AsyncConnection[Any]) -> None:
        try:
            if self._kept(connection, len(self._aidle)):
                cursor = await connection.execute(_AS_NEW, prepare=False)
                while cursor.nextset():
                    pass
                if await cursor.fetchone() == (False,) or self._address.pgbouncer:
                    self._aidle.append(connection)
                    return
            if _at_a_statement(connection.pgconn):
                await connection.cancel_safe(timeout=CANCEL_WITHIN)
        except psycopg.Error:
            pass  # as above
        await connection.close()

    async def _ataken(self) -> psycopg.AsyncConnection[Any]:
        while self._aidle:
            connection = self._aidle.pop()
            if usable(connection.pgconn):
                return connection
            await connection.close()
        with translated(self._address):
            return await psycopg.AsyncConnection.connect(self._address.dsn, autocommit=True, **self._keywords())

    def _keywords(self) -> dict[str, Any]:
        return keywords(self._address) | ({"prepare_threshold": None} if self._address.pgbouncer else {})

    def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        self._closed = True
        self._left()


def _at_a_statement(connection: pq.abc.PGconn) -> bool:
    """Whether the server is; closed like that, it would go on with it and hold its locks."""
    return connection.transaction_status == pq.TransactionStatus.ACTIVE


def _let_go(idle: list[psycopg.Connection[Any]], aidle: list[psycopg.AsyncConnection[Any]], opener: int) -> None:
    let_go([connection.pgconn for connection in (*idle, *aidle)], opener)


MOST_KEPT = 16
"""The most connections lent at once to each, threads and coroutines; who comes later waits."""
CANCEL_WITHIN = 5.0
"""Seconds for the server to take the request to end a statement."""
