"""Statements that are prepared once for each connection and then run with no more ado than libpq needs.

A cursor of psycopg's works out anew, at every call, what is the same at each: where the values of a statement go, what to do about its
cache. A program that was idle until then has none of that code at hand, and pays 0.1 ms for it. Values and rows go through psycopg's
adapters all the same, waiting through its connection, and errors are its own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, LiteralString, TypeAlias, cast

from psycopg import AsyncConnection, InternalError, errors, pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.generators import execute

from offload.broker import Statement

Rows: TypeAlias = list[tuple[Any, ...]]

MOST = 500
"""The most statements kept for a connection; there are fewer, but for the sizes that their numbers come in. Others are left to psycopg."""

_GOOD = frozenset({pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK})
_PLACE = re.compile(r"%(?:\((\w+)\)s|%)")


@lru_cache(1024)
def numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    """SQL as the server takes it, its places for values numbered, and the names of the values in that order."""
    names: dict[str, int] = {}

    def place(found: re.Match[str]) -> str:
        name = found[1]
        return "%" if name is None else f"${names.setdefault(name, len(names) + 1)}"

    return _PLACE.sub(place, sql), tuple(names)


class Prepared:
    """The prepared statements of one connection in autocommit mode, which runs one at a time."""

    def __init__(self, connection: AsyncConnection[tuple[Any, ...]]) -> None:
        self._connection = connection
        self._adapters = Transformer(connection)
        self._names: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._count = 0

    async def rows(self, statement: Statement) -> Rows:
        """Run a statement in a transaction of its own; returns its rows. Raises psycopg's errors."""
        try:
            return await self._rows(statement)
        except errors.InvalidSqlStatementName:  # psycopg has the server forget all statements when it has rolled back
            self._names.clear()
            return await self._rows(statement)

    async def _rows(self, statement: Statement) -> Rows:
        sql, order = numbered(statement.sql)
        values, adapters = statement.values, self._adapters
        parameters = adapters.dump_sequence([values[name] for name in order], [PyFormat.AUTO] * len(order))
        types = adapters.types or ()
        name = self._names.get((statement.sql, types))
        if name is None:
            if len(self._names) >= MOST:
                cursor = await self._connection.execute(cast(LiteralString, statement.sql), values)
                return await cursor.fetchall() if cursor.description is not None else []
            self._count += 1
            name = b"offload_%d" % self._count
            self._connection.pgconn.send_prepare(name, sql.encode(adapters.encoding), types)
            await self._answer()
            self._names[statement.sql, types] = name
        self._connection.pgconn.send_query_prepared(name, parameters, adapters.formats)
        result = await self._answer()
        if result.status != pq.ExecStatus.TUPLES_OK:
            return []
        adapters.set_pgresult(result)
        rows = adapters.load_rows(0, result.ntuples, tuple)
        adapters.set_pgresult(None)  # it may be large, and the next one may be long in coming
        return rows

    async def _answer(self) -> pq.abc.PGresult:
        """What the server answers to what was sent last. psycopg waits for it, which has the server cancel what the caller gives up."""
        results = await self._connection.wait(execute(self._connection.pgconn))
        if not results:
            raise InternalError("the server did not answer")
        result = results[-1]
        if result.status not in _GOOD:
            raise errors.error_from_result(result, encoding=self._adapters.encoding)
        return result
