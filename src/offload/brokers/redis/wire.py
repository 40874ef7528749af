"""One connection to a server: many commands under way at once, their replies in order, and none waited for too long.

Commands are written as they come and each has a future; to cancel one who waits harms nobody, for the reply is dropped when it
arrives. Nothing here tries again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import hiredis

from offload.brokers.redis.address import Address
from offload.brokers.redis.faults import Refusal

Word: TypeAlias = bytes | str | int | float

PATIENCE = 5.0
"""Seconds for which the server may be silent while it owes a reply."""
PACE = 1_000_000
"""Bytes a second at which a large command may travel before it counts as stuck."""
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""Seconds, seconds and probes: idle connections stay known to routers, and dead ones are found before they are needed."""


_pack = cast(Callable[[tuple[Word, ...]], bytes], hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType] - half typed


class Cut(Exception):
    """The connection ended, or could not be made; says why."""


class Refused(Cut):
    """Nobody listens there."""


class Wire(asyncio.Protocol):
    """One connection. Belongs to one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=Refusal)
        self._owed: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._heard = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._why = "the connection was closed"
        self.open = False
        self.sent = 0
        """How many commands were written."""
        self.id: int | None = None
        """By which the server knows this connection; None while nobody has asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family != getattr(socket, "AF_UNIX", None):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE:
                if hasattr(socket, name):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, words: Sequence[Word], blocking: float = 0.0) -> asyncio.Future[Any]:
        """Write a command. The future has its reply, a Refusal or Cut; `blocking` is how long, in seconds, it may rest in the server."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self.open or self._transport is None:
            future.set_exception(Cut(self._why))
            return future
        packed = _pack(tuple(words))
        if not self._owed:
            self._heard = self._loop.time()
        self._owed.append((future, PATIENCE + blocking + len(packed) / PACE))
        self._transport.write(packed)
        self.sent += 1
        if self._alarm is None:
            self._alarm = self._loop.call_later(self._owed[0][1], self._look)
        return future

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._answer(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"what answers there does not speak the Redis protocol: {error}")

    def _answer(self, reply: Any) -> None:
        if not self._owed:
            self.abort(f"the server spoke without being asked: {reply!r}"[:200])
            return
        future, _ = self._owed.popleft()
        if future.done():  # whoever waited was cancelled
            return
        if isinstance(reply, Refusal):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _look(self) -> None:
        """Whether the server has been silent for too long; else look again when it might be."""
        self._alarm = None
        if not self._owed:
            return
        allowed = self._owed[0][1]
        left = self._heard + allowed - self._loop.time()
        if left <= 0:
            self.abort(f"the server did not answer for {allowed:.1f} seconds")
        else:
            self._alarm = self._loop.call_later(left, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.open:
            self._why = f"the connection was cut: {exc}"
        elif self.open:
            self._why = "the server closed the connection"
        self._end()

    def abort(self, why: str) -> None:
        """End the connection now; who waits for a reply gets Cut."""
        if self.open:
            self._why = why
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection once what was written has left; who waits for a reply gets Cut."""
        self._end()
        if self._transport is not None:
            self._transport.close()

    def _end(self) -> None:
        self.open = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        owed, self._owed = self._owed, deque()
        for future, _ in owed:
            if not future.done():
                future.set_exception(Cut(self._why))
                future.exception()  # whoever sent it may have gone: a cut connection is no news then


async def connect(address: Address, host: str, port: int, credentials: tuple[str | None, str | None] | None = None) -> Wire:
    """A connection to one server of `address`: authenticated, on its database. Raises Cut, Refusal.

    `credentials` are those of the address unless given: sentinels may have their own, and have no databases.
    """
    user, password = credentials if credentials is not None else (address.user, address.password)
    loop = asyncio.get_running_loop()
    context = tls_context(address) if address.tls else None
    try:
        async with asyncio.timeout(PATIENCE):
            if address.socket is not None:
                _, wire = await loop.create_unix_connection(Wire, address.socket)
            else:
                _, wire = await loop.create_connection(Wire, host, port, ssl=context)
    except TimeoutError as error:
        tls = " (does the server speak TLS on this port?)" if address.tls else ""
        raise Cut(f"no connection within {PATIENCE:g} seconds{tls}") from error
    except ssl.SSLError as error:
        raise Cut(f"no TLS connection: {error}") from error
    except socket.gaierror as error:
        raise Cut(f"the name {host!r} cannot be resolved: {error.strerror}") from error
    except OSError as error:
        raise _no_connection(error) from error
    greeting: list[tuple[Word, ...]] = []
    if password is not None:
        greeting.append(("AUTH", user, password) if user else ("AUTH", password))
    if credentials is None and address.database:
        greeting.append(("SELECT", address.database))
    try:
        await asyncio.gather(*[wire.send(words) for words in greeting])
    except BaseException:
        wire.abort("the server refused to be used")
        raise
    return wire


def _no_connection(error: OSError) -> Cut:
    """Where a name has several addresses asyncio tells of all in one text, without a number; its own words for one are of no use."""
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return Refused("no connection: connection refused")
    if isinstance(error, FileNotFoundError):  # of a unix socket
        return Refused("no connection: no such socket")
    return Cut(f"no connection: {os.strerror(error.errno).lower() if error.errno else error}")


def tls_context(address: Address) -> ssl.SSLContext:
    """How TLS is checked, as the address says."""
    context = ssl.create_default_context(cafile=address.ssl_ca_certs)
    context.check_hostname = address.ssl_check_hostname and address.ssl_cert_reqs != "none"
    required = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
    context.verify_mode = required[address.ssl_cert_reqs]
    if address.ssl_certfile is not None:
        context.load_cert_chain(address.ssl_certfile, address.ssl_keyfile)
    return context
