"""Connections lent to tasks for transactions of their own: psycopg's, for threads and for coroutines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from offload.brokers.postgres.address import Address
from offload.brokers.postgres.connections import keywords, usable
from offload.brokers.postgres.errors import translated


class Lender:
    """Keeps connections that were lent before, for the next who asks; from any thread."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[psycopg.Connection[Any]] = []
        self._aidle: list[psycopg.AsyncConnection[Any]] = []
        self._closed = False

    @contextmanager
    def lent(self) -> Generator[psycopg.Connection[Any]]:
        """A connection with a transaction begun, committed at the end. Only failures to connect are raised as ours."""
        connection = self._taken()
        try:
            with connection.transaction():
                yield connection
        finally:
            self._back(connection)

    def _taken(self) -> psycopg.Connection[Any]:
        while self._idle:
            connection = self._idle.pop()  # atomic under the interpreter lock
            if usable(connection.pgconn):
                return connection
        with translated(self._address):
            return psycopg.connect(self._address.dsn, autocommit=True, **self._keywords())

    def _back(self, connection: psycopg.Connection[Any]) -> None:
        if self._closed or connection.closed or len(self._idle) >= MOST_KEPT:
            connection.close()
        else:
            self._idle.append(connection)

    @asynccontextmanager
    async def alent(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        """`lent` for coroutines of the client's event loop."""
        connection = await self._ataken()
        try:
            async with connection.transaction():
                yield connection
        finally:
            if self._closed or connection.closed or len(self._aidle) >= MOST_KEPT:
                await connection.close()
            else:
                self._aidle.append(connection)

    async def _ataken(self) -> psycopg.AsyncConnection[Any]:
        while self._aidle:
            connection = self._aidle.pop()
            if usable(connection.pgconn):
                return connection
        with translated(self._address):
            return await psycopg.AsyncConnection.connect(self._address.dsn, autocommit=True, **self._keywords())

    def _keywords(self) -> dict[str, Any]:
        return keywords(self._address) | ({"prepare_threshold": None} if self._address.pgbouncer else {})

    def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        while self._aidle:
            idle = self._aidle.pop()  # held by a name, or it would complain of its end before it is closed
            idle.pgconn.finish()


MOST_KEPT = 16
"""The most idle connections kept for each, threads and coroutines."""
