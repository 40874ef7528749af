"""Sessions and connections of SQLAlchemy 2, sync and async, to PostgreSQL by any driver and to SQLite."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import Connection, TextClause, TwoPhaseTransaction, text
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session, scoped_session

from offload.broker import Cursor, Dialect
from offload.connections.adapter import AsyncAdapter, Rows, SyncAdapter, Task, ended_by, ended_inside
from offload.connections.sqlite import SqliteAdapter, autocommit_of
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
    if isinstance(connection, scoped_session):
        return _sync_adapter(cast(Any, connection)(), "a Session of SQLAlchemy")
    if isinstance(connection, Session | Connection):
        return _sync_adapter(connection, f"a {name} of SQLAlchemy")
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


def _engine(given: Any) -> Any:
    """What it is bound to. Sessions may be bound to a connection."""
    return (given if isinstance(given, Connection) else given.get_bind()).engine


def _dialect(given: Any, kind: str) -> Dialect:
    name: str = _engine(given).dialect.name
    if name not in ("postgresql", "sqlite"):
        raise BadDeclaration(f"Offload keeps no jobs in {name}; {kind} that a job can join is one to PostgreSQL or SQLite")
    return name


@contextmanager
def _without_values() -> Generator[None]:
    """Errors of our own statements do not show what they were given: payloads, and among them arguments that are masked."""
    try:
        yield
    except StatementError as error:
        error.hide_parameters = True
        raise


def _connection(given: Any) -> Connection:
    return given if isinstance(given, Connection) else given.connection()


class Begun(NamedTuple):
    """What a block begins with."""

    transaction: Any
    connection: Connection


def _begun(given: Any) -> Begun:
    """The transaction that is open, or is begun here."""
    connection = _connection(given)
    if not connection.in_transaction():
        connection.begin()
    return Begun(given.get_transaction(), connection)


def _commit(given: Any, begun: Begun) -> None:
    """Commit. Raises BadDeclaration, and nothing stays, where that was not the end of what the block began with."""
    if given.get_transaction() is not begun.transaction:
        raise ended_inside()
    given.commit()
    if begun.connection.in_transaction():
        begun.connection.rollback()
        raise BadDeclaration(
            "this Session is bound to a Connection which has a transaction of its own, so its commit is none, and all was rolled back: "
            "give current.transaction() that Connection, or a Session of an Engine"
        )


class SqlalchemyAdapter(SyncAdapter):
    """A session or connection to PostgreSQL, whatever its driver."""

    dialect = "postgresql"

    def __init__(self, given: Any, kind: str) -> None:
        self.kind = kind
        self.source = _engine(given)
        self._given = given

    @property
    def driver(self) -> Any:
        """The connection of the driver."""
        return _connection(self._given).connection.driver_connection

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement."""
        with _without_values():
            result = _connection(self._given).execute(_text(sql), values or None)
        return Rows([tuple(row) for row in result] if result.returns_rows else ())

    def join(self) -> None:
        """SQLAlchemy begins a transaction by itself, but for the isolation level AUTOCOMMIT."""
        connection = _connection(self._given)
        if isinstance(connection.get_transaction(), TwoPhaseTransaction):
            raise BadDeclaration(
                f"{self.kind} in a two-phase transaction cannot be joined: PostgreSQL prepares none that wakes a worker; "
                "enqueue in an ordinary transaction"
            )
        driver: Any = connection.connection.dbapi_connection
        if getattr(driver, "autocommit", False) is True:
            raise BadDeclaration(f"{self.kind} {_IN_AUTOCOMMIT}")

    def begin(self) -> None:
        """SQLAlchemy begins a transaction by itself."""
        self.join()

    @contextmanager
    def block(self) -> Generator[None]:
        """What was done since the last commit belongs to it."""
        self.begin()
        begun = _begun(self._given)
        with ended_by(lambda: _commit(self._given, begun), self._given.rollback):
            yield


class SqlalchemyOnSqlite(SqliteAdapter):
    """A session or connection to SQLite."""

    advice = "enqueue with an isolation level other than AUTOCOMMIT, or leave out connection= to enqueue at once"

    def __init__(self, given: Any, kind: str) -> None:
        super().__init__(given)
        self.kind = kind
        self.source = _engine(given)
        packages = [each.__module__.partition(".")[0] for each in type(self.driver).__mro__]
        self.library = "sqlite3" if {"aiosqlite", "sqlite3"} & set(packages) else packages[0]

    @property
    def driver(self) -> Any:
        """The connection of the driver: of sqlite3, or of aiosqlite, which tells the same."""
        return _connection(self._connection).connection.driver_connection

    def plainly(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement, in the driver's own marks for values."""
        with _without_values():
            result = _connection(self._connection).exec_driver_sql(sql, _given(values))
        changed = result.rowcount
        return Rows([tuple(row) for row in result] if result.returns_rows else (), changed)

    def autocommit(self) -> bool:
        """As `SqliteAdapter.autocommit`; aiosqlite has to be asked in its own thread."""
        pooled: Any = _connection(self._connection).connection.dbapi_connection
        if pooled is self.driver:
            return super().autocommit()
        return pooled.run_async(_autocommit)

    def begin(self) -> None:
        """Begin a transaction, with the right to write, if none is open."""
        if self.autocommit():
            raise BadDeclaration(f"{self.kind} whose driver was opened with autocommit=True commits nothing: {self.advice}")
        super().begin()

    @contextmanager
    def block(self) -> Generator[None]:
        """What was done since the last commit belongs to it."""
        self.begin()
        begun = _begun(self._connection)
        with ended_by(lambda: _commit(self._connection, begun), self._connection.rollback):
            yield


class AsyncSqlalchemyAdapter(AsyncAdapter):
    """An async session or connection, whose sync one beneath does the work where SQLAlchemy lets it wait for the driver."""

    def __init__(self, given: Any, kind: str) -> None:
        self.kind = kind
        self.given = given
        beneath = given.sync_connection if hasattr(given, "sync_connection") else given.sync_session
        if beneath is None:
            raise BadDeclaration(f"{kind} that is not open has no transaction that the job could join: open it by `async with`")
        self.dialect = _dialect(beneath, kind)
        self.source = _engine(beneath)
        self.library = "sqlite3" if self.dialect == "sqlite" else None

    async def _run(self, work: Task[T]) -> T:
        def carry_out(beneath: Any) -> T:
            return _sync_adapter(beneath, self.kind).run(work)

        return await self.given.run_sync(carry_out)

    def _begin(self, beneath: Any) -> Begun:
        _sync_adapter(beneath, self.kind).begin()
        return _begun(beneath)

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[None]:
        """What was done since the last commit belongs to it."""
        begun = await self.given.run_sync(self._begin)
        try:
            yield
            await self.given.run_sync(_commit, begun)
        except BaseException:
            with suppress(Exception):  # a connection that is gone has rolled back; what went wrong is on its way
                await self.given.rollback()
            raise


async def _autocommit(driver: Any) -> bool:
    return await driver._execute(autocommit_of, driver._conn)  # noqa: SLF001


def _given(values: Any) -> Any:
    """Values as SQLAlchemy wants them for the driver: by place in a tuple."""
    return tuple(cast("list[Any]", values)) if isinstance(values, list) else values or None


_IN_AUTOCOMMIT = "with the isolation level AUTOCOMMIT has no transaction that the job could join; use another isolation level"
_PLACE = re.compile(r"%\((\w+)\)s|%%|(?<!:):(?=\w)")


@lru_cache(512)
def _text(sql: str) -> TextClause:
    """A statement of psycopg as SQLAlchemy takes it: `:name` for values. In parentheses, for `:name::type` would be no value's place."""
    return text(_PLACE.sub(lambda found: f"(:{found[1]})" if found[1] else "%" if found[0] == "%%" else r"\:", sql))
