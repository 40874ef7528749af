"""What all clients of a process share of one database file: connections, writer, ringer. Made anew after a fork."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Self

from offload.brokers.sqlite.database import Database, Link, prepared
from offload.brokers.sqlite.file import Driver
from offload.brokers.sqlite.lending import Lender
from offload.brokers.sqlite.transaction import Operation, T
from offload.brokers.sqlite.wake import Ringer
from offload.brokers.sqlite.writer import Writer
from offload.errors import BadDeclaration, BrokerError


class Shared:
    """One database file as this process has it open."""

    def __init__(self, path: Path, synchronous: str, driver: Driver) -> None:
        self.pid = os.getpid()
        self.clients = 0
        self.database = Database(path, synchronous, driver)
        self.ringer = Ringer(path)
        self.writer = Writer(self.database, self.ringer)
        self.lender = Lender(self.database)

    def here(self) -> Self:
        """This, if it is open and was opened in this process. Raises BrokerError."""
        if self.pid != os.getpid():
            raise BrokerError(f"this client of {self.database.path} was opened before a fork; open a new one in the child process")
        if self.clients == 0:
            raise BrokerError(f"{self.database.path} was closed by its last client; leave sessions before closing, or open it again")
        return self

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation that only reads, in the reader's thread. Raises BrokerError."""
        database = self.here().database
        return await asyncio.get_running_loop().run_in_executor(database.reader_thread, database.read, operation)

    def write(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Have the writer run an operation; the future ends once it is durable, or was undone by an error. Raises BrokerError."""
        return self.here().writer.submit(operation)

    def close(self) -> None:
        """Finish what was asked for and let go of the file."""
        self.writer.close()
        self.ringer.close()
        self.database.close()


_lock = threading.Lock()
_open: dict[Path, Shared] = {}
_inherited: list[Link] = []
"""In a forked child, the connections of its parent."""


def acquire(path: Path, synchronous: str, driver: Driver = "sqlite3") -> Shared:
    """The database at `path`, for one more client. Raises BrokerError, SchemaTooNew, BadDeclaration."""
    with _lock:
        disinherit()  # apsw tells nobody that it connects
        shared = _open.get(path)
        if shared is None:
            shared = _open[path] = Shared(path, synchronous, driver)
        elif shared.database.synchronous != synchronous:
            raise BadDeclaration(
                f"{path} is open in this process with synchronous={shared.database.synchronous}; give all its clients the same URL"
            )
        elif shared.database.driver != driver:
            raise BadDeclaration(
                f"{path} is open in this process with {shared.database.driver}, and two SQLite libraries lose each other's locks and "
                f"damage the file; give all its clients the same URL, with ?driver=apsw or without"
            )
        shared.clients += 1
        return shared


def prepare(path: Path, driver: Driver) -> tuple[int, int]:
    """Create the file and its schema, or bring an older one up to date. Returns the versions (from, to)."""
    with _lock:
        disinherit()
        shared = _open.get(path)
        return prepared(path, driver) if shared is None else shared.database.prepare()


def release(shared: Shared) -> None:
    """One client less; the last one closes. What was opened before a fork is the parent's to close."""
    with _lock:
        if shared.pid != os.getpid():
            return
        shared.clients -= 1
        if shared.clients == 0:
            del _open[shared.database.path]
            shared.close()


def _before_fork() -> None:
    _lock.acquire()
    for shared in _open.values():
        for link in shared.database.links:
            link.lock.acquire()


def _after_fork_in_parent() -> None:
    for shared in _open.values():
        for link in shared.database.links:
            link.lock.release()
    _lock.release()


def _after_fork_in_child() -> None:
    """Set aside what was inherited, to be closed before this process opens a database itself.

    Not now: most children become another program at once (uvloop starts all programs so, and waits for it), and another thread of the
    parent may have been inside SQLite, with a lock that nobody gives back here.
    """
    links = [link for shared in _open.values() for link in shared.database.links]
    for link in links:
        link.lock.release()
    _open.clear()
    _lock.release()
    if links:
        _inherited.extend(links)
        sys.addaudithook(_before_connect)


def _before_connect(event: str, _: object) -> None:
    """Whoever connects, ourselves or the user's own code, does so without what was inherited.

    Left open, it would make SQLite believe that this process holds the parent's locks, which a fork does not pass on, and take none of
    its own. A process lets go of its own locks only.
    """
    if event == "sqlite3.connect":
        disinherit()


def disinherit() -> None:
    """Close what was open before a fork."""
    while _inherited:
        _inherited.pop().connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
