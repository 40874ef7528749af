"""Sessions and connections of SQLAlchemy 2, sync and async, to PostgreSQL by any driver and to SQLite."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.orm import Session, scoped_session

from offload.broker import Cursor, Dialect
from offload.connections.adapter import AsyncAdapter, Rows, SyncAdapter, Task, ended_by
from offload.connections.sqlite import SqliteAdapter
from offload.errors import BadDeclaration

T = TypeVar("T")

ASYNC = "sqlalchemy.ext.asyncio"
INSTEAD = {
    "Engine": "with engine.begin() as connection: ...",
    "AsyncEngine": "async with engine.begin() as connection: ...",
    "sessionmaker": "with Session.begin() as session: ...",
    "async_sessionmaker": "async with Session.begin() as session: ...",
}


def adapter(connection: Any) -> SyncAdapter | AsyncAdapter | None:
    """The adapter of a session or connection of SQLAlchemy."""
    name = type(connection).__name__
    if isinstance(connection, Session | scoped_session | Connection):
        return _sync_adapter(cast(Any, connection), f"a {name} of SQLAlchemy")
    if any(each.__module__.startswith(ASYNC) and hasattr(each, "run_sync") for each in type(connection).__mro__):
        return AsyncSqlalchemyAdapter(connection, f"an {name} of SQLAlchemy")
    if name == "async_scoped_session":
        return AsyncSqlalchemyAdapter(connection(), "an AsyncSession of SQLAlchemy")
    if name in INSTEAD:
        raise BadDeclaration(
            f"connection= takes a session or a connection, whose transaction the job joins, not the {name}: {INSTEAD[name]}"
        )
    return None


def _sync_adapter(given: Any, kind: str) -> SqlalchemyAdapter | SqlalchemyOnSqlite:
    """The adapter of a sync session or connection, by its database."""
    dialect = _dialect(given, kind)
    return SqlalchemyOnSqlite(given, kind) if dialect == "sqlite" else SqlalchemyAdapter(given, kind)


def _dialect(given: Any, kind: str) -> Dialect:
    name: str = (given if isinstance(given, Connection) else given.get_bind()).dialect.name
    if name not in ("postgresql", "sqlite"):
        raise BadDeclaration(f"Offload keeps no jobs in {name}; {kind} that a job can join is one to PostgreSQL or SQLite")
    return name


def _connection(given: Any) -> Connection:
    return given if isinstance(given, Connection) else given.connection()


class SqlalchemyAdapter(SyncAdapter):
    """A session or connection to PostgreSQL, whatever its driver."""

    dialect = "postgresql"

    def __init__(self, given: Any, kind: str) -> None:
        self.kind = kind
        self._given = given

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement."""
        result = _connection(self._given).execute(_text(sql), values or None)
        return Rows([tuple(row) for row in result] if result.returns_rows else ())

    def join(self) -> None:
        """SQLAlchemy begins a transaction by itself, but for the isolation level AUTOCOMMIT."""
        driver: Any = _connection(self._given).connection.dbapi_connection
        if getattr(driver, "autocommit", False) is True:
            raise BadDeclaration(f"{self.kind} {_IN_AUTOCOMMIT}")

    def begin(self) -> None:
        """SQLAlchemy begins a transaction by itself."""
        self.join()

    @contextmanager
    def block(self) -> Generator[None]:
        """What was done since the last commit belongs to it."""
        self.begin()
        with ended_by(self._given.commit, self._given.rollback):
            yield


class SqlalchemyOnSqlite(SqliteAdapter):
    """A session or connection to SQLite."""

    advice = "enqueue with an isolation level other than AUTOCOMMIT, or leave out connection= to enqueue at once"

    def __init__(self, given: Any, kind: str) -> None:
        super().__init__(given)
        self.kind = kind
        driver = _connection(given).connection.driver_connection
        library = type(driver).__module__.partition(".")[0]
        self.library = "sqlite3" if library == "aiosqlite" else library

    @property
    def driver(self) -> Any:
        """The connection of the driver: of sqlite3, or of aiosqlite, which tells the same."""
        return _connection(self._connection).connection.driver_connection

    def plainly(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement, in the driver's own marks for values."""
        result = _connection(self._connection).exec_driver_sql(sql, _given(values))
        changed = result.rowcount
        return Rows([tuple(row) for row in result] if result.returns_rows else (), changed)


class AsyncSqlalchemyAdapter(AsyncAdapter):
    """An async session or connection, whose sync one beneath does the work where SQLAlchemy lets it wait for the driver."""

    def __init__(self, given: Any, kind: str) -> None:
        self.kind = kind
        self._given = given
        self.dialect = _dialect(given.sync_connection if hasattr(given, "sync_connection") else given.sync_session, kind)
        self.library = "sqlite3" if self.dialect == "sqlite" else None

    async def run(self, work: Task[T]) -> T:
        """Carry out an operation in the transaction that is open; see `SyncAdapter.run`."""
        return await self._given.run_sync(self._run, work)

    def _run(self, beneath: Any, work: Task[T]) -> T:
        return _sync_adapter(beneath, self.kind).run(work)

    def _begin(self, beneath: Any) -> None:
        _sync_adapter(beneath, self.kind).begin()

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[None]:
        """What was done since the last commit belongs to it."""
        await self._given.run_sync(self._begin)
        try:
            yield
            await self._given.commit()
        except BaseException:
            with suppress(Exception):  # a connection that is gone has rolled back; what went wrong is on its way
                await self._given.rollback()
            raise


def _given(values: Any) -> Any:
    """Values as SQLAlchemy wants them for the driver: by place in a tuple."""
    return tuple(cast("list[Any]", values)) if isinstance(values, list) else values or None


_IN_AUTOCOMMIT = "with the isolation level AUTOCOMMIT has no transaction that the job could join; use another isolation level"
_PLACE = re.compile(r"%\((\w+)\)s|%%|(?<!:):(?=\w)")


@lru_cache(512)
def _text(sql: str) -> TextClause:
    """A statement of psycopg as SQLAlchemy takes it: `:name` for values. In parentheses, for `:name::type` would be no value's place."""
    return text(_PLACE.sub(lambda found: f"(:{found[1]})" if found[1] else "%" if found[0] == "%%" else r"\:", sql))
