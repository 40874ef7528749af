"""Wakes sleepers of other processes: one byte to the unix datagram socket of each, after a commit.

Sockets lie in a folder beside the database: `w-…` of workers, `r-…` of those who wait for results. Behind them stands polling of
SQLite's `data_version`, which also notices commits of connections that are not Offload's, and is all there is where the system has
no such sockets.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from offload.brokers.sqlite import file
from offload.brokers.sqlite.database import Database, Link

POLL = 0.05
"""Seconds between looks at `data_version`."""
LONGEST_ADDRESS = 100
"""Bytes: the system's limit is 108, on macOS 104."""
FRESH_NS = 50_000_000
"""A folder changed within so many nanoseconds may change again without a new time stamp, so its listing is not kept."""

Role = Literal["w", "r"]


def folder_of(path: Path) -> Path:
    """Where the sockets of a database lie; in the folder for temporary files where the path would be too long for a socket."""
    beside = Path(f"{path}-wake")
    if len(os.fsencode(beside)) + len("/w-") + 32 <= LONGEST_ADDRESS:
        return beside
    return Path(tempfile.gettempdir()) / f"offload-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"


class Ringer:
    """Sends the wake-ups of one process for one database."""

    def __init__(self, path: Path) -> None:
        self._folder = folder_of(path)
        self._listed: tuple[int, list[str]] = (0, [])
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if hasattr(socket, "AF_UNIX") and os.name != "nt" else None
        if self._socket is not None:
            self._socket.setblocking(False)

    def ring(self, *, work: bool, ended: bool) -> None:
        """Wake workers when there may be `work`, those who wait for results when jobs `ended`."""
        if self._socket is None or not (work or ended):
            return
        for name in self._names():
            if (work and name.startswith("w-")) or (ended and name.startswith("r-")):
                self._send(self._socket, f"{self._folder}/{name}")

    def _names(self) -> list[str]:
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed == self._listed[0]:
                return self._listed[1]
            names = [entry.name for entry in self._folder.iterdir()]
        except OSError:  # nobody has ever listened, or the folder is not ours to read: polling is behind
            return []
        if time.time_ns() - changed > FRESH_NS:
            self._listed = (changed, names)
        return names

    def _send(self, sender: socket.socket, address: str) -> None:
        try:
            sender.sendto(b"!", address)
        except (ConnectionRefusedError, FileNotFoundError):  # its process died without leaving
            with suppress(OSError):  # another user's, or another process was quicker
                Path(address).unlink()
        except OSError:  # its buffer is full, so it has a wake-up to read; or it is another user's, and polls
            return

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


class Ear:
    """Hears, in one event loop, what one role is woken for. Counts: whoever reads `count` before looking misses nothing."""

    def __init__(self, database: Database, role: Role) -> None:
        self.count = 0
        self._database = database
        self._waiting: set[asyncio.Future[None]] = set()
        self._link: Link | None = None
        self._version = -1
        self._poll: asyncio.TimerHandle | None = None
        self._listening: asyncio.AbstractEventLoop | None = None
        """The loop in which it listens, while anybody waits."""
        self._socket, self._address = _bound(folder_of(database.path), role)

    async def after(self, count: int, timeout: float) -> None:
        """Return when `count` is no longer the count, or after `timeout` seconds."""
        self._hear()
        if self.count != count or timeout <= 0:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            self._listen(loop)
        self._waiting.add(future)
        handle = loop.call_later(timeout, _end, future)
        try:
            await future
        finally:
            handle.cancel()
            self._waiting.discard(future)
            if not self._waiting:
                self._rest(loop)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        self._listening = loop
        if self._socket is not None:
            try:
                loop.add_reader(self._socket, self._wake)
            except NotImplementedError:  # the loop cannot watch sockets: polling alone
                self._socket.close()
                self._socket = None
        self._poll = loop.call_later(POLL, self._tick, loop)

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        self._listening = None
        if self._socket is not None:
            loop.remove_reader(self._socket)
        if self._poll is not None:
            self._poll.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._poll = loop.call_later(POLL, self._tick, loop)
        self._wake()

    def _wake(self) -> None:
        before = self.count
        self._hear()
        if self.count != before:
            for future in self._waiting:
                _end(future)

    def _hear(self) -> None:
        """Take note of wake-ups and of commits seen since the last time."""
        version = self._data_version()
        if version != self._version:
            self._version = version
            self.count += 1
        if self._socket is not None and _emptied(self._socket):
            self.count += 1

    def _data_version(self) -> int:
        if self._link is None:
            self._link = self._database.link().impatient()
        with self._database.errors(), self._link.lock:
            try:
                version: int = self._link.connection.execute("pragma data_version").fetchone()[0]
            except sqlite3.OperationalError as error:
                if not file.busy(error):
                    raise
                return self._version  # another process opens or closes the log just now; the next look will tell
            return version

    def close(self) -> None:
        """Stop listening; whoever still waits is woken."""
        if self._listening is not None and not self._listening.is_closed():
            for future in self._waiting:
                _end(future)
            self._rest(self._listening)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            Path(self._address).unlink(missing_ok=True)
        if self._link is not None:
            self._database.unlink(self._link)
            self._link = None


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _emptied(listener: socket.socket) -> bool:
    """Read all that has come. True when there was something."""
    heard = False
    while True:
        try:
            listener.recv(1)
        except BlockingIOError:
            return heard
        heard = True


def _bound(folder: Path, role: Role) -> tuple[socket.socket | None, str]:
    """A socket of this role in the folder, None where there can be none."""
    address = f"{folder}/{role}-{uuid4().hex}"
    if not hasattr(socket, "AF_UNIX") or os.name == "nt":
        return None, address
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.setblocking(False)
    try:
        folder.mkdir(exist_ok=True)
        listener.bind(address)
    except OSError:  # a folder that is not ours to write in, a file system without sockets: polling alone
        listener.close()
        return None, address
    return listener, address
