"""The connections of a process to one database file, and the one place where SQLite's errors become ours."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from offload.brokers.sqlite import file
from offload.brokers.sqlite.checkpoint import Checkpointer
from offload.brokers.sqlite.transaction import Operation, T, Transaction
from offload.errors import BrokerError, BrokerUnusable


class Link:
    """A connection and the lock under which it is used, so that a fork finds no thread inside SQLite."""

    def __init__(self, path: Path, synchronous: str, driver: file.Driver, *, lent: bool) -> None:
        self.lock = threading.Lock()
        self.connection = file.connect(path, synchronous, driver, lent=lent)

    def impatient(self) -> Self:
        """Have busy locks reported at once: for writes, which wait in a fairer way, and for what may not block."""
        self.connection.execute("pragma busy_timeout=0")
        return self


class Database:
    """The connections of this process to one database file."""

    def __init__(self, path: Path, synchronous: str, driver: file.Driver) -> None:
        self.path = path
        self.driver: file.Driver = driver
        self.synchronous = synchronous
        self.links: list[Link] = []
        self.checkpointer = Checkpointer(path)
        self.reader_thread = ThreadPoolExecutor(1, thread_name_prefix="offload-sqlite-reader")
        self.prepare()
        self._identity = file.identity(path)
        self.writing = self.link().impatient()
        self.reading = self.link()

    def prepare(self) -> tuple[int, int]:
        """Create the file and its schema, or bring an older one up to date. Returns the versions (from, to)."""
        return prepared(self.path, self.driver)

    def link(self, synchronous: str | None = None, *, lent: bool = False) -> Link:
        """One more connection, closed by `unlink` or with the database; one to be `lent` commits only when we do."""
        with self.errors():
            link = Link(self.path, synchronous or self.synchronous, self.driver, lent=lent)
        self.links.append(link)
        return link

    def unlink(self, link: Link) -> None:
        """Close a connection."""
        with link.lock:
            link.connection.close()
        if link in self.links:
            self.links.remove(link)

    def check(self) -> None:
        """Refuse to write into a file that is no longer the one at the path. Raises BrokerUnusable."""
        if file.identity(self.path) != self._identity:
            raise BrokerUnusable(
                f"{self.path} was removed or replaced while it was open, so what is stored now would be lost; restart this process"
            )

    @contextmanager
    def errors(self) -> Generator[None]:
        """Raise SQLite's errors as ours."""
        with _told(self.path):
            yield

    def read(self, operation: Operation[T]) -> T:
        """Run an operation that only reads, all of it on one state of the database. Called in the reader's thread."""
        with self.errors(), self.reading.lock:
            connection = self.reading.connection
            connection.execute("begin")
            try:
                return operation(Transaction(connection.execute, careful=True))
            finally:
                connection.execute("rollback")

    def write(self, link: Link, operation: Operation[T]) -> T:
        """Run one operation on a connection of the caller's, in the caller's thread."""
        with self.errors(), self.begun(link) as connection:
            result = operation(Transaction(connection.execute, careful=True))
            connection.execute("commit")
            return result

    @contextmanager
    def begun(self, link: Link) -> Generator[sqlite3.Connection]:
        """Hold the write lock of the database; what is not committed inside is undone. Raises SQLite's own errors.

        SQLite's busy timeout lets some processes starve (its sleeps grow); short sleeps of random length share the lock fairly.
        """
        deadline = time.monotonic() + file.PATIENCE
        while True:
            with link.lock:
                try:
                    link.connection.execute("begin immediate")
                except sqlite3.OperationalError as error:
                    if not file.busy(error) or time.monotonic() >= deadline:
                        raise
                else:
                    try:
                        yield link.connection
                    finally:
                        if link.connection.in_transaction:
                            link.connection.execute("rollback")
                    return
            time.sleep(random.uniform(0.0002, 0.002))

    def close(self) -> None:
        """Empty the log if nobody else is at it, and close all connections."""
        self.reader_thread.shutdown()
        with self.writing.lock:
            self.checkpointer.run(self.writing.connection)
        for link in list(self.links):
            self.unlink(link)


@contextmanager
def _told(path: Path) -> Generator[None]:
    """The one place where SQLite's errors become ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise file.told(error, path) from error


def prepared(path: Path, driver: file.Driver) -> tuple[int, int]:
    """Create the file and its schema, or bring an older one up to date. Returns the versions (from, to)."""
    file.check_place(path)
    with _told(path):
        return _prepared(path, driver)


def looked_at(path: Path, driver: file.Driver) -> int | None:
    """The version of the schema in a file, without a change to it; None where that cannot be told, and in an empty file."""
    try:
        with closing(file.connect(path, "full", driver)) as connection:
            return file.version_of(connection, path) or None
    except (sqlite3.Error, BrokerError):  # opening says what is wrong with it
        return None


def _prepared(path: Path, driver: file.Driver) -> tuple[int, int]:
    """Safe for many processes at once: the schema is looked at again under an exclusive lock."""
    connection = file.connect(path, "full", driver)
    try:
        deadline = time.monotonic() + file.PATIENCE
        while True:
            try:
                return _migrated(connection, path)
            except sqlite3.OperationalError as error:  # the switch to the write-ahead log does not wait for others by itself
                if not file.busy(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(0.0002, 0.002))
    finally:
        connection.close()


def _migrated(connection: sqlite3.Connection, path: Path) -> tuple[int, int]:
    version = file.version_of(connection, path)
    if version == file.SCHEMA:
        return (version, version)
    connection.execute("pragma journal_mode=wal")
    connection.execute("begin exclusive")
    version = file.version_of(connection, path)
    if version < file.SCHEMA:
        file.migrate(connection, version)
    connection.execute("commit")
    return (version, file.SCHEMA)
