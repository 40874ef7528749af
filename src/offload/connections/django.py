"""Connections of Django: `django.db.connection`, and those of `django.db.connections`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from offload.broker import Cursor
from offload.connections.adapter import Rows, SyncAdapter
from offload.connections.sqlite import SqliteAdapter
from offload.errors import BadDeclaration

db: Any = import_module("django.db")  # Django says nothing of its types
base: Any = import_module("django.db.backends.base.base")


def adapter(connection: Any) -> SyncAdapter | None:
    """The adapter of a Django connection. `django.db.connection` stands for the calling thread's."""
    if not hasattr(connection, "alias") or not hasattr(connection, "vendor"):
        return None
    wrapper: Any = db.connections[connection.alias]
    if isinstance(connection, base.BaseDatabaseWrapper) and connection is not wrapper:
        raise BadDeclaration(
            f"this Django connection is not the one that django.db.connections[{connection.alias!r}] has for this thread, and whose "
            "transaction.atomic() the job could join: give that one"
        )
    match wrapper.vendor:
        case "postgresql":
            return DjangoAdapter(wrapper)
        case "sqlite":
            return DjangoOnSqlite(wrapper)
        case other:
            raise BadDeclaration(
                f"Offload keeps no jobs in {other}; a Django connection that a job can join is one to PostgreSQL or SQLite"
            )


def _refuse_autocommit(connection: Any) -> None:
    """Outside of `atomic` Django commits each statement at once, where ATOMIC_REQUESTS does not open a block for each request."""
    if not connection.in_atomic_block and connection.get_autocommit():
        raise BadDeclaration(
            "a Django connection outside of transaction.atomic() has no transaction that the job could join: "
            "enqueue inside `with transaction.atomic():`, or leave out connection= to enqueue at once"
        )


@contextmanager
def _atomic(connection: Any) -> Generator[None]:
    """Durable: an outer `atomic` would only make a savepoint of it, and the job would end before its rows were committed.

    Where Django has decided to roll back, as `set_rollback` or a failed block within asks for, it does so without an error.
    """
    with db.transaction.atomic(using=connection.alias, durable=True):
        yield
        connection.validate_no_broken_transaction()


class DjangoAdapter(SyncAdapter):
    """A Django connection to PostgreSQL, whatever its driver."""

    dialect = "postgresql"
    kind = "a Django connection to PostgreSQL"

    def __init__(self, connection: Any) -> None:
        self._connection = self.source = connection

    @property
    def driver(self) -> Any:
        """The connection of psycopg or psycopg2, opened by now."""
        self._connection.ensure_connection()
        return self._connection.connection

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return Rows(cursor.fetchall() if cursor.description else (), cursor.rowcount)

    def join(self) -> None:
        """An `atomic` block must be open."""
        _refuse_autocommit(self._connection)

    @contextmanager
    def block(self) -> Generator[None]:
        """The outermost `atomic` block."""
        with _atomic(self._connection):
            yield


class DjangoOnSqlite(SqliteAdapter):
    """A Django connection to SQLite. Statements go to the connection of sqlite3 beneath, whose marks for values are SQLite's own."""

    kind = "a Django connection to SQLite"

    @property
    def driver(self) -> Any:
        """The connection of sqlite3, opened by now."""
        self._connection.ensure_connection()
        return self._connection.connection

    def plainly(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement, unless Django is going to roll the transaction back, in which case its own cursors refuse, too."""
        self._connection.validate_no_broken_transaction()
        return super().plainly(sql, values)

    def join(self) -> None:
        """An `atomic` block must be open."""
        _refuse_autocommit(self._connection)

    @contextmanager
    def block(self) -> Generator[None]:
        """The outermost `atomic` block."""
        with _atomic(self._connection):
            yield
