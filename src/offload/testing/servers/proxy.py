"""A TCP proxy that breaks connections on demand."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from offload.testing.servers.process import free_port

WITH_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close by a reset, which the client sees at once, in the middle of what it does."""


@dataclass(eq=False, slots=True)
class Pair:
    """A client's connection, and the one to the server that belongs to it."""

    client: socket.socket
    server: socket.socket
    open_ways: int = 2


class Proxy:
    """Stands before the server on `port` of 127.0.0.1, on a `port` of its own, and breaks connections when told to.

    All methods may be called from any thread and take effect before they return. As a context manager it is closed at the end.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.port: int = free_port()
        self.cuts = 0
        """How often connections were cut, by `cut` or by `cut_after`."""
        self._state = threading.Condition()
        self._pairs: set[Pair] = set()
        self._budgets: dict[bool, int] = {}
        self._frozen = False
        self._listener: socket.socket | None = None
        self.accept()

    def through(self, url: str) -> str:
        """The URL of the server, changed so that it leads through this proxy. Raises ValueError where it names another port."""
        through, found = re.subn(rf":{self.target}(?![0-9])", f":{self.port}", url, count=1)
        if not found:
            raise ValueError(f"{url} does not lead to port {self.target}, before which this proxy stands")
        return through

    @property
    def connections(self) -> int:
        """How many connections go through now."""
        with self._state:
            return len(self._pairs)

    def cut(self) -> None:
        """Break all connections, now; new ones are let through."""
        with self._state:
            pairs = self._break_all()
            self._state.wait_for(lambda: not any(pair.open_ways for pair in pairs), timeout=10)

    def cut_after(self, count: int, *, answers: bool = False) -> None:
        """Break all connections, once, when `count` more bytes have gone to the server, or with `answers` have come from it.

        Exactly so many pass. With 0 the next byte is held back: `cut_after(0, answers=True)` loses the answer to what the server did.
        """
        with self._state:
            self._budgets[answers] = count

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        with self._state:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()

    def accept(self) -> None:
        """Let new connections in, as at the start and after `refuse`."""
        with self._state:
            if self._listener is not None:
                return
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            threading.Thread(target=self._accept, args=(self._listener,), name="offload-proxy", daemon=True).start()

    def freeze(self) -> None:
        """Hold back all bytes, in both directions, while connections stay open and new ones are let in: a network that is silent."""
        with self._state:
            self._frozen = True

    def thaw(self) -> None:
        """Let the bytes through that `freeze` held back."""
        with self._state:
            self._frozen = False
            self._state.notify_all()

    def close(self) -> None:
        """Refuse, and break all connections."""
        self.refuse()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # refused from now on
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
            except OSError:
                client.close()  # the server is down
                continue
            for end in (client, server):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._state:
                if self._listener is not listener:  # refused since
                    client.close()
                    server.close()
                    return
                pair = Pair(client, server)
                self._pairs.add(pair)
            for answers in (False, True):
                threading.Thread(target=self._pump, args=(pair, answers), name="offload-proxy", daemon=True).start()

    def _pump(self, pair: Pair, answers: bool) -> None:
        """Carry bytes one way until that way ends; the last of a pair's two ways closes both connections."""
        source, sink = (pair.server, pair.client) if answers else (pair.client, pair.server)
        with contextlib.suppress(OSError):  # an end that is gone ends the way
            while data := source.recv(65_536):
                part, cut = self._pass(pair, data, answers)
                self._send(pair, sink, part)
                if cut:
                    with self._state:
                        self._break_all()
        with self._state:
            if pair in self._pairs:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
            pair.open_ways -= 1
            if not pair.open_ways:
                self._pairs.discard(pair)
                pair.client.close()
                pair.server.close()
            self._state.notify_all()

    def _pass(self, pair: Pair, data: bytes, answers: bool) -> tuple[bytes, bool]:
        """What of `data` may pass, after waiting while frozen, and whether to cut then."""
        with self._state:
            self._state.wait_for(lambda: not self._frozen or pair not in self._pairs)
            left = self._budgets.get(answers)
            if left is None or pair not in self._pairs:
                return data, False
            part = data[:left]
            self._budgets[answers] = left - len(part)
            if len(part) < left:
                return part, False
            del self._budgets[answers]
            return part, True

    def _send(self, pair: Pair, sink: socket.socket, data: bytes) -> None:
        """Send all of `data`, unless the connection is cut meanwhile: one that waits for a stopped client has to notice."""
        waiting = select.poll()
        waiting.register(sink, select.POLLOUT)
        rest = memoryview(data)
        while rest and pair in self._pairs:
            if waiting.poll(100):
                rest = rest[sink.send(rest, socket.MSG_DONTWAIT) :]

    def _break_all(self) -> set[Pair]:
        """Wake the threads of all connections, so that these end by a reset; to be called with the state locked."""
        pairs, self._pairs = self._pairs, set()
        self.cuts += 1
        for pair in pairs:
            with contextlib.suppress(OSError):  # that end is gone
                pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, WITH_RESET)
                pair.client.shutdown(socket.SHUT_RD)  # the other way would end it in order
            with contextlib.suppress(OSError):
                # In order, so that the server gets, and does, all that it was sent.
                pair.server.shutdown(socket.SHUT_RDWR)
        self._state.notify_all()
        return pairs
