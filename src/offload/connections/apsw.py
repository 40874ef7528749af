"""Connections of apsw."""

from __future__ import annotations

from typing import Any

import apsw

from offload.broker import Cursor
from offload.connections.adapter import Rows, SyncAdapter
from offload.connections.sqlite import SqliteAdapter


def adapter(connection: Any) -> SyncAdapter | None:
    """The adapter of a connection of apsw."""
    return ApswAdapter(connection) if isinstance(connection, apsw.Connection) else None


class ApswAdapter(SqliteAdapter):
    """A connection of apsw, which commits each statement at once unless a transaction was begun."""

    kind = "an apsw connection"
    library = "apsw"
    advice = 'call connection.execute("begin immediate") before; `with connection:` is a savepoint, which will do as well'

    def plainly(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement."""
        rows = self._connection.execute(sql, values).fetchall()
        return Rows(rows, self._connection.changes())

    def commit(self) -> None:
        """Commit."""
        self._connection.execute("commit")

    def rollback(self) -> None:
        """Roll back."""
        self._connection.execute("rollback")
