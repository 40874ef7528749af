"""Wakes sleepers: who sleeps says so in a table, and only then do commits notify; behind it stands polling.

A notification in every commit would halve the rate of enqueues, since PostgreSQL lets one commit at a time notify.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Literal
from uuid import uuid4

import psycopg
from psycopg import AsyncConnection, pq, sql

from offload.brokers.postgres.address import Address
from offload.brokers.postgres.connections import connected
from offload.brokers.postgres.work import Operation

POLL = 1.0
"""Seconds between looks while notifications are awaited."""
POLL_DEAF = 0.4
"""Seconds between looks where there are no notifications."""
NAP = 30.0
"""Seconds for which a sleeper asks to be notified."""
RENEW = 15.0
"""Seconds before their end at which it asks again."""
RECONNECT = 2.0
"""Seconds, at most, before it tries to listen again after a break."""

What = Literal["work", "ended"]


class Ear:
    """Listens for one client, from the first time that somebody sleeps."""

    def __init__(self, address: Address, step: Callable[[Operation[bool]], Awaitable[bool]]) -> None:
        self._address = address
        self._step = step
        self._id = uuid4().hex
        self._counts: dict[str, int] = {"work": 0, "ended": 0}
        self._bells: dict[str, asyncio.Event] = {"work": asyncio.Event(), "ended": asyncio.Event()}
        self._asked: dict[What, float] = {}
        self._rousing: set[asyncio.Future[None]] = set()
        self._listening = False
        self._task: asyncio.Task[None] | None = None
        self._connection: AsyncConnection[Any] | None = None

    def count(self, what: What) -> int:
        """How often it was woken for `what`; to be remembered before looking."""
        return self._counts[what]

    def ring(self, what: str) -> None:
        """Wake who waits here."""
        if what in self._counts:
            self._counts[what] += 1
            self._bells[what].set()

    async def sleep(
        self,
        what: What,
        heard: int,
        timeout: float,
        look: Callable[[], Awaitable[bool]],
        nap: Callable[[], float] = lambda: POLL,
        rest: float = 0.0,
    ) -> None:
        """Return when woken since `heard` was counted, when `look` finds something, or after `timeout` seconds. May be cancelled.

        It first looks after `rest` seconds, and again after the seconds that `nap` says then.
        """
        deadline = monotonic() + timeout
        if rest and self._counts[what] == heard:
            await self._rung(what, heard, min(rest, timeout))
        while self._counts[what] == heard:
            deaf = not self._hears()
            if not deaf:
                await self._ask(what)
            if await look():
                return
            left = deadline - monotonic()
            if left <= 0:
                return
            if deaf and self._listening:
                continue
            await self._rung(what, heard, min(left, nap(), (POLL_DEAF if deaf else POLL) * random.uniform(0.8, 1.2)))

    async def doze(self, what: What, heard: int, timeout: float) -> None:
        """Return when woken since `heard` was counted, or after `timeout` seconds: so few that nobody is asked to notify."""
        if self._counts[what] == heard:
            await self._rung(what, heard, timeout)

    async def _rung(self, what: What, heard: int, timeout: float) -> None:
        """Wait to be woken, for `timeout` seconds."""
        bell = self._bells[what]
        bell.clear()
        if self._counts[what] == heard:
            timer = asyncio.get_running_loop().call_later(timeout, bell.set)  # not wait_for, whose own task wakes up later than this one
            try:
                await bell.wait()
            finally:
                timer.cancel()

    async def _ask(self, what: What) -> None:
        """Have commits notify, for some time."""
        now = monotonic()
        if self._asked.get(what, 0.0) > now + RENEW:
            return
        await asyncio.gather(*self._rousing, return_exceptions=True)  # or it would take back what is asked for now
        await self._step(lambda tx: tx.do("sleep", id=f"{self._id}:{what}", what=what, seconds=NAP))
        self._asked[what] = now + NAP

    async def awake(self, what: What) -> None:
        """Nobody sleeps here any more: let commits go unnotified."""
        if self._asked.pop(what, None) is not None:
            await self._silence(what)

    def rouse(self, what: What) -> None:
        """As `awake`, behind the caller's back."""
        if self._asked.pop(what, None) is not None:
            task = asyncio.ensure_future(self._silence(what))
            self._rousing.add(task)
            task.add_done_callback(self._roused)

    def _roused(self, task: asyncio.Future[None]) -> None:
        self._rousing.discard(task)
        if not task.cancelled():
            task.exception()  # the row ends by itself

    async def _silence(self, what: What) -> None:
        await self._step(lambda tx: tx.do("awake", id=f"{self._id}:{what}"))

    def _hears(self) -> bool:
        """Whether notifications arrive. Who sleeps looks again when they begin to."""
        if self._address.listen is None:
            return False
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._hear(), name="offload-listener")
        return self._listening

    async def _hear(self) -> None:
        address = self._address
        assert address.listen is not None
        while True:
            try:
                await self._hear_on(Address(dsn=address.listen, place=address.place, schema=address.schema))
            except psycopg.Error:
                pass  # polling goes on, and whoever uses the database meanwhile tells what is wrong
            finally:
                self._listening = False
            await asyncio.sleep(RECONNECT * random.uniform(0.5, 1.0))

    async def _hear_on(self, address: Address) -> None:
        connection = self._connection = await connected(address, pinned=False)
        try:
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(address.schema)))
            self._listening = True
            self._asked.clear()  # a server that was restarted knows of no sleepers
            for bell in self._bells.values():
                bell.set()  # who sleeps asks now, and looks: what was said before was not heard
            await self._ring_for(connection.pgconn)
        finally:
            self._connection = None
            await connection.close()

    async def _ring_for(self, connection: pq.abc.PGconn) -> None:
        """Ring for each notification as it comes, until the connection ends. Raises psycopg's error.

        Not by psycopg's `notifies`, which wakes ten times a second, and later than the socket does.
        """
        loop, socket = asyncio.get_running_loop(), connection.socket
        ended = loop.create_future()

        def hear() -> None:
            if ended.done():
                return
            try:
                connection.consume_input()
                while (notification := connection.notifies()) is not None:
                    self.ring(notification.extra.decode())
            except psycopg.Error as error:
                loop.remove_reader(socket)  # at once and only once: libpq has closed it, and the next to be opened may get its number
                ended.set_exception(error)

        loop.add_reader(socket, hear)
        try:
            await ended
        finally:
            if ended.cancelled():
                loop.remove_reader(socket)

    async def close(self) -> None:
        """Stop listening."""
        for what in list(self._asked):
            try:
                await self.awake(what)
            except Exception:  # noqa: BLE001, S110  the row ends by itself
                pass
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def abandon(self) -> None:
        """Close the connection from outside of the event loop."""
        if self._connection is not None:
            self._connection.pgconn.finish()
