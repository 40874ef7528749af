"""Connections of sqlite3, and what all SQLite connections share: how they begin a transaction and how long they wait for locks."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeVar

from offload.broker import Cursor
from offload.connections.adapter import Rows, SyncAdapter, Task, ended_by, ended_inside
from offload.connections.faults import locked
from offload.errors import BadDeclaration

T = TypeVar("T")

MARK, UNMARK = "savepoint offload_block", "release savepoint offload_block"
"""A commit or rollback inside a block takes the savepoint away: nothing else tells it from the transaction that the block began."""


def adapter(connection: Any) -> SyncAdapter | None:
    """The adapter of a connection of sqlite3."""
    return SqliteAdapter(connection) if isinstance(connection, sqlite3.Connection) else None


class SqliteAdapter(SyncAdapter):
    """A connection to an SQLite database. Waits for locks in short sleeps of random length, as long as its own timeout says."""

    dialect = "sqlite"
    kind = "a sqlite3 connection"
    library = "sqlite3"
    advice: ClassVar[str] = 'call connection.execute("begin immediate") before, or open it without isolation_level=None'

    def __init__(self, connection: Any) -> None:
        self._connection = self.source = connection
        self._deadline: float | None = None

    @property
    def driver(self) -> Any:
        """The connection of the library itself, which tells whether a transaction is open."""
        return self._connection

    def plainly(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement, without patience of ours; rows are tuples of texts and numbers, whatever the connection's factories."""
        cursor = self.driver.cursor()
        cursor.row_factory = None
        if (texts := self.driver.text_factory) is not str:
            self.driver.text_factory = str
            try:
                return Rows(cursor.execute(sql, values).fetchall(), cursor.rowcount)
            finally:
                self.driver.text_factory = texts
        return cursor.execute(sql, values)

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement; in `run` and `join` it is tried again while others hold the lock."""
        while True:
            try:
                return self.plainly(sql, values)
            except Exception as error:
                if self._deadline is None or not locked(error) or time.monotonic() >= self._deadline:
                    raise
            time.sleep(random.uniform(0.0002, 0.002))

    def join(self) -> None:
        """Begin a transaction where the library would at the first write; in the autocommit mode one must be open."""
        driver = self.driver
        if driver.in_transaction:
            return
        if getattr(driver, "isolation_level", None) is None or self.autocommit():
            raise BadDeclaration(f"{self.kind} in autocommit mode has no transaction that the job could join: {self.advice}")
        self.execute("begin immediate")

    def autocommit(self) -> bool:
        """Whether each statement commits at once by `autocommit=True`."""
        return autocommit_of(self.driver)

    def run(self, work: Task[T]) -> T:
        """Carry out an operation; see `SyncAdapter.run`."""
        return self._patiently(lambda: SyncAdapter.run(self, work))

    def begin(self) -> None:
        """Begin a transaction, with the right to write, if none is open."""
        if not self.driver.in_transaction:
            self._patiently(lambda: self.execute("begin immediate"))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Wait for locks in our own way, which is fairer than SQLite's and as long.

        A function and no context manager: a thread stopped as one is entered would leave the caller's connection without its timeout.
        """
        if self._deadline is not None:
            return work()
        timeout: int = self.plainly("pragma busy_timeout").fetchone()[0]
        try:
            self._deadline = time.monotonic() + timeout / 1000
            self._wait_in_sqlite(0)
            return work()
        finally:
            self._deadline = None
            try:
                self._wait_in_sqlite(timeout)
            except BaseException:  # a stop that came at this very moment; the next will not come so soon
                self._wait_in_sqlite(timeout)
                raise

    def _wait_in_sqlite(self, milliseconds: int) -> None:
        self.plainly(f"pragma busy_timeout={milliseconds}").fetchall()

    def mark(self) -> None:
        """Mark the transaction that is open as the block's."""
        self.plainly(MARK)

    def unmark(self) -> None:
        """Take the mark away. Raises BadDeclaration where it is not there any more."""
        try:
            self.plainly(UNMARK)
        except Exception as error:
            raise ended_inside() from error

    def commit(self) -> None:
        """Commit."""
        end(self._connection, "commit")

    def rollback(self) -> None:
        """Roll back."""
        end(self._connection, "rollback")

    @contextmanager
    def block(self) -> Generator[None]:
        """A transaction, begun here if none is open."""
        self.begin()
        with ended_by(self.commit, self.rollback):
            self.mark()
            yield
            self.unmark()


def autocommit_of(connection: Any) -> bool:
    """Whether it was opened with `autocommit=True`, which Python 3.12 brought."""
    return getattr(connection, "autocommit", None) is True


def end(connection: Any, how: Literal["commit", "rollback"]) -> None:
    """Commit or roll back. With `autocommit=True` the methods of that name do nothing."""
    if not autocommit_of(connection):
        getattr(connection, how)()
    elif connection.in_transaction:
        connection.execute(how)
