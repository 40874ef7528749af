"""The producers' way to the broker: one opened client per running event loop, made anew after a fork."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import weakref
from concurrent.futures import Future
from time import monotonic

from offload.broker import ASKS, Broker, Store, broker_class
from offload.clock import Clock
from offload.errors import BrokerError, BrokerUnusable, OffloadError, Unsupported
from offload.portal import shortened

PAUSE = (0.1, 0.5)
"""Seconds between two tries to open a broker that is away: from, to."""


SECRETS = ("password", "secret", "scram_")
"""By what the names of a URL's options tell that their values are secret."""


class Opening:
    """A client and the promise that it is open."""

    def __init__(self, client: Broker) -> None:
        self.client = client
        self.opened: Future[None] = Future()
        self.task: asyncio.Task[None] | None = None

    async def carry_out(self) -> None:
        """Open the client and keep the promise, whatever comes of it."""
        try:
            await self.client.open()
        except asyncio.CancelledError:
            self.opened.set_exception(BrokerError("the event loop that was opening the broker was closed; call again"))
            raise
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.opened.set_exception(error)
        else:
            self.opened.set_result(None)


class Clients:
    """The clients of one broker URL."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = url
        self._clock = clock
        self.kind = broker_class(url)
        self.broker = self.kind.connect(url, clock)
        self.place = without_secrets(url)
        """The URL for people to see."""
        self.lacking = [feature for feature in ASKS if feature not in self.kind.features]
        """The fields of a job that this broker cannot honour."""
        self.rehearsed = False
        """Whether jobs run only when a test says so, so that to wait for one without a worker would be to wait for ever."""
        self._lock = threading.Lock()
        self._openings: dict[asyncio.AbstractEventLoop | None, Opening] = {}
        """By loop; under None the one client of a broker that serves all loops with it."""
        self._ready: dict[asyncio.AbstractEventLoop, Broker] = {}
        _everywhere.add(self)

    async def client(self) -> Broker:
        """The client of the running loop, open. Raises BrokerError when it cannot be opened; the next call tries again."""
        loop = asyncio.get_running_loop()
        client = self._ready.get(loop)
        return client if client is not None else await self._open(loop)

    async def patient(self) -> Broker:
        """As `client`, tried again with jitter until the broker's `timeout` has passed. Raises BrokerUnusable at once."""
        deadline = monotonic() + self.broker.timeout
        while True:
            try:
                return await self.client()
            except BrokerUnusable:
                raise
            except BrokerError:
                if monotonic() >= deadline:
                    raise
            await asyncio.sleep(random.uniform(*PAUSE))

    @property
    def clock(self) -> Clock:
        """What the broker goes by: its server's clock, once a client is open, where it has a server."""
        client = self.anyone()
        return self._clock if client is None else client.clock

    def anyone(self) -> Broker | None:
        """An open client of whatever loop, for what is bound to none."""
        return next(iter(list(self._ready.values())), None)

    async def store(self) -> Store:
        """The client of the running loop, for what only a store can answer. Raises Unsupported when the broker is none."""
        if not issubclass(self.kind, Store):
            raise Unsupported(f"{self.kind.__name__} only carries jobs and cannot be asked about them; use PostgreSQL, SQLite or Redis")
        client = await self.client()
        assert isinstance(client, Store)
        return client

    async def migrate(self) -> tuple[int, int]:
        """Bring the schema to this version. Returns the versions (from, to). Raises Unsupported when the broker is no store."""
        before = await self.broker.migrate() if isinstance(self.broker, Store) else (0, 0)  # not open: opening would have done it
        return before[0], (await (await self.store()).migrate())[1]

    async def close(self) -> None:
        """Close the clients. The next use opens them again."""
        with self._lock:
            openings = list(self._openings.items())
            self._openings.clear()
            self._ready.clear()
        here = asyncio.get_running_loop()
        for loop, opening in openings:
            if loop is here or loop is None:
                await opening.client.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(opening.client.close(), loop))
            else:
                opening.client.abandon()

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Broker:
        with self._lock:
            left = self._take_left()
            opening, mine = self._opening(loop)
        for each in left:
            each.client.abandon()
        if mine:
            opening.task = loop.create_task(opening.carry_out())
        try:
            await asyncio.shield(asyncio.wrap_future(opening.opened))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            with self._lock:
                self._openings = {each: other for each, other in self._openings.items() if other is not opening}
            if isinstance(error, OffloadError):
                raise shortened(error)  # noqa: B904 - the very error
            raise
        with self._lock:
            self._ready[loop] = opening.client
        return opening.client

    def _take_left(self) -> list[Opening]:
        """The openings of loops that have been closed without closing the app, as each `asyncio.run` may leave one."""
        left = {each: opening for each, opening in self._openings.items() if each is not None and each.is_closed()}
        for each in left:
            del self._openings[each]
            self._ready.pop(each, None)
        return [opening for opening in left.values() if opening.opened.done() and opening.opened.exception() is None]

    def _opening(self, loop: asyncio.AbstractEventLoop) -> tuple[Opening, bool]:
        """The opening that serves `loop`, and whether the caller is to carry it out."""
        opening = self._openings.get(loop) or self._openings.get(None)
        if opening is not None:
            return opening, False
        client = self.broker.client()
        opening = self._openings[None if client is self.broker else loop] = Opening(client)
        return opening, True

    def after_fork(self) -> None:
        """In a forked child: start anew. The parent's connections are kept untouched, for to close them would disturb the parent."""
        _inherited.append((self.broker, self._openings))
        self._lock = threading.Lock()
        self._openings = {}
        self._ready = {}
        self.broker = self.kind.connect(self.url, self._clock)


def without_secrets(url: str) -> str:
    """A URL as logs and messages may hold it: without passwords, wherever they stand."""
    place, mark, query = url.partition("?")
    scheme, slashes, rest = place.partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    options = "&".join(_without_secret(option) for option in query.split("&"))
    return f"{scheme}{slashes}{user}{':***' if colon else ''}{at}{host}{mark}{options}"


def _without_secret(option: str) -> str:
    name, equals, value = option.partition("=")
    secret = any(sign in name.lower() for sign in SECRETS) or "@" in value or "%40" in value  # an address may hold a password of its own
    return f"{name}{equals}***" if secret else option


_everywhere: weakref.WeakSet[Clients] = weakref.WeakSet()
_inherited: list[object] = []


def _after_fork() -> None:
    for clients in list(_everywhere):
        clients.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
