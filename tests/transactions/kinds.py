"""Every kind of connection that a job can be enqueued on, with what a test does on one: insert a row, commit, roll back."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import django
from django.conf import settings
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

INSERT = "insert into marks (n) values ({})"

# Here, not where a connection is first opened: within a task's time limit it might be stopped half set up, for every later test.
settings.configure(USE_TZ=True)
django.setup()


@dataclass(frozen=True)
class Kind:
    """One kind; what it does is awaited where `is_async`."""

    name: str
    engine: str
    opened: Callable[[str], Any]
    """A context manager, async where `is_async`, that gives a connection to the database at a URL."""
    is_async: bool = False
    execute: Callable[[Any, str], Any] = lambda connection, statement: connection.execute(statement)
    begin: Callable[[Any], Any] = lambda connection: None
    commit: Callable[[Any], Any] = lambda connection: connection.commit()
    rollback: Callable[[Any], Any] = lambda connection: connection.rollback()

    def insert(self, connection: Any, n: int) -> Any:
        return self.execute(connection, INSERT.format(n))


def _path(url: str) -> str:
    return url.partition("?")[0].removeprefix("sqlite:///")


def _sqlite3(url: str) -> AbstractContextManager[Any]:
    return closing(sqlite3.connect(_path(url)))


@asynccontextmanager
async def _aiosqlite(url: str) -> AsyncIterator[Any]:
    import aiosqlite

    async with aiosqlite.connect(_path(url)) as connection:
        yield connection


@contextmanager
def _psycopg(url: str) -> Iterator[Any]:
    import psycopg

    with closing(psycopg.connect(url)) as connection:
        yield connection


@asynccontextmanager
async def _apsycopg(url: str) -> AsyncIterator[Any]:
    import psycopg

    connection = await psycopg.AsyncConnection.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def _for_driver(url: str, driver: str) -> str:
    return url.partition("?")[0].replace("://", f"+{driver}://", 1)


def _of_engine(driver: str, make: Callable[[Any], AbstractContextManager[Any]]) -> Callable[[str], AbstractContextManager[Any]]:
    @contextmanager
    def opened(url: str) -> Iterator[Any]:
        engine = create_engine(_for_driver(url, driver))
        try:
            with make(engine) as given:
                yield given
        finally:
            engine.dispose()

    return opened


def _of_async_engine(driver: str, make: Callable[[Any], AbstractAsyncContextManager[Any]]) -> Callable[[str], Any]:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Any]:
        engine = create_async_engine(_for_driver(url, driver))
        try:
            async with make(engine) as given:
                yield given
        finally:
            await engine.dispose()

    return opened


@contextmanager
def _scoped(engine: Any) -> Iterator[Any]:
    session = scoped_session(sessionmaker(engine))
    try:
        yield session
    finally:
        session.remove()


@asynccontextmanager
async def _async_scoped(engine: Any) -> AsyncIterator[Any]:
    session: Any = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: "the test")
    try:
        yield session
    finally:
        await session.remove()


def _sqlalchemy_execute(connection: Any, statement: str) -> Any:
    return connection.execute(text(statement))


def _django_connection(url: str) -> Any:
    from django.db import connections

    if url.startswith("sqlite"):
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": _path(url)}
    else:
        address, _, name = url.removeprefix("postgresql://").partition("/")
        user, _, place = address.partition("@")
        host, _, port = place.partition(":")
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": user, "HOST": host, "PORT": port}
    handler: Any = connections
    alias = f"db{len(handler.databases)}"
    handler.databases[alias] = handler.configure_settings({"default": {}, alias: database})[alias]
    return handler[alias]


@contextmanager
def _django(url: str) -> Iterator[Any]:
    connection = _django_connection(url)
    connection.blocks = []
    try:
        yield connection
    finally:
        while connection.blocks:
            connection.set_rollback(True)
            connection.blocks.pop().__exit__(None, None, None)
        connection.close()


def _django_execute(connection: Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _django_begin(connection: Any) -> None:
    from django.db import transaction

    block: Any = transaction.atomic(using=connection.alias)
    block.__enter__()
    connection.blocks.append(block)


def _django_commit(connection: Any) -> None:
    connection.blocks.pop().__exit__(None, None, None)


def _django_rollback(connection: Any) -> None:
    with suppress(KeyError):
        error = KeyError()
        connection.blocks.pop().__exit__(KeyError, error, None)


def _sqlalchemy(engine: str, driver: str) -> list[Kind]:
    return [
        Kind(f"{driver}: Session", engine, _of_engine(driver, Session), execute=_sqlalchemy_execute),
        Kind(f"{driver}: Connection", engine, _of_engine(driver, lambda made: made.connect()), execute=_sqlalchemy_execute),
    ]


def _async_sqlalchemy(engine: str, driver: str) -> list[Kind]:
    return [
        Kind(f"{driver}: AsyncSession", engine, _of_async_engine(driver, AsyncSession), is_async=True, execute=_sqlalchemy_execute),
        Kind(
            f"{driver}: AsyncConnection",
            engine,
            _of_async_engine(driver, lambda made: made.connect()),
            is_async=True,
            execute=_sqlalchemy_execute,
        ),
    ]


def _in_django(engine: str) -> Kind:
    return Kind(f"django on {engine}", engine, _django, False, _django_execute, _django_begin, _django_commit, _django_rollback)


KINDS = [
    Kind("sqlite3", "sqlite", _sqlite3),
    Kind("aiosqlite", "sqlite", _aiosqlite, is_async=True),
    *_sqlalchemy("sqlite", "pysqlite"),
    Kind("scoped_session", "sqlite", _of_engine("pysqlite", _scoped), execute=_sqlalchemy_execute),
    *_async_sqlalchemy("sqlite", "aiosqlite"),
    Kind("async_scoped_session", "sqlite", _of_async_engine("aiosqlite", _async_scoped), is_async=True, execute=_sqlalchemy_execute),
    _in_django("sqlite"),
    Kind("psycopg", "postgresql", _psycopg),
    Kind("async psycopg", "postgresql", _apsycopg, is_async=True),
    *_sqlalchemy("postgresql", "psycopg"),
    *_sqlalchemy("postgresql", "psycopg2"),
    *_async_sqlalchemy("postgresql", "psycopg_async"),
    *_async_sqlalchemy("postgresql", "asyncpg"),
    _in_django("postgresql"),
]
