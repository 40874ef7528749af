"""Connections for the transactions of tasks, kept for the next one."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from offload.brokers.sqlite import file
from offload.brokers.sqlite.database import Database, Link
from offload.errors import BadDeclaration


class Lender:
    """Lends connections on which a transaction is begun, with the right to write, one at a time for each borrower.

    The lock of a link is held for our own statements only: a task may take its time, and may fork.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: list[Link] = []

    @contextmanager
    def lent(self) -> Generator[sqlite3.Connection]:
        """A connection for the calling thread: committed at the end of the block, undone on an error."""
        link = self._take()
        deadline = time.monotonic() + file.PATIENCE
        try:
            while not self._begun(link, deadline):
                time.sleep(_pause())
        except BaseException:
            self._idle.append(link)
            raise
        with self._ended(link) as connection:
            yield connection

    @asynccontextmanager
    async def alent(self) -> AsyncGenerator[sqlite3.Connection]:
        """The same for a coroutine; others run while it waits for its turn to write, not while its statements do."""
        link = self._take()
        deadline = time.monotonic() + file.PATIENCE
        try:
            while True:
                if self._begun(link, deadline):
                    break
                await asyncio.sleep(_pause())
        except BaseException:
            self._idle.append(link)
            raise
        with self._ended(link) as connection:
            yield connection

    def _take(self) -> Link:
        self._database.check()
        try:
            return self._idle.pop()  # one step of the interpreter, so no two threads get the same
        except IndexError:
            return self._database.link(lent=True).impatient()

    def _begun(self, link: Link, deadline: float) -> bool:
        """Try to begin. Raises BrokerError when others held the lock too long."""
        with self._database.errors(), link.lock:
            try:
                link.connection.execute("begin immediate")
            except sqlite3.OperationalError as error:
                if not file.busy(error) or time.monotonic() >= deadline:
                    raise
                return False
        return True

    @contextmanager
    def _ended(self, link: Link) -> Generator[sqlite3.Connection]:
        connection = link.connection
        try:
            yield getattr(connection, "itself", connection)
            with self._database.errors(), link.lock:
                if not connection.in_transaction:
                    raise BadDeclaration(
                        "the transaction of this block was ended inside it, by a COMMIT, a ROLLBACK or executescript(); "
                        "its end is the block's, together with the job's"
                    )
                connection.execute("commit")
        finally:
            with link.lock:
                if connection.in_transaction:
                    connection.execute("rollback")
                connection.row_factory, connection.text_factory = None, str
            self._idle.append(link)


def _pause() -> float:
    return random.uniform(0.0002, 0.002)
