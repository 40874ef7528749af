"""One client's way to the database: its clock, its connections, and what wakes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

from offload.brokers.postgres import migrating
from offload.brokers.postgres.address import Address
from offload.brokers.postgres.connections import Link, connected
from offload.brokers.postgres.errors import only_reads, translated
from offload.brokers.postgres.rows import moment, stored
from offload.brokers.postgres.tallies import settle_up
from offload.brokers.postgres.wake import Ear
from offload.brokers.postgres.work import Operation, T, Transaction, Work, statements
from offload.clock import ServerClock
from offload.errors import BrokerUnusable

MOST_LINKS = 4
"""The most connections at once for what changes jobs; workers have some of their own besides."""
MOST_KEYED = 3
"""The most of them for what may wait for unique keys, which a caller's open transaction may hold: one is left for all else."""
MOST_ASKING = 2
"""The most connections at once, besides, for what waits for nobody: reads, and who sleeps."""


class Database:
    """The database as one event loop uses it."""

    def __init__(self, address: Address, clock: ServerClock) -> None:
        self.address = address
        self.clock = clock
        self.ear = Ear(address, self.ask)
        self._statements = statements(address.schema)
        self._idle: list[Link] = []
        self._turns = asyncio.Semaphore(MOST_LINKS)
        self._asking = asyncio.Semaphore(MOST_ASKING)
        self.keyed = asyncio.Semaphore(MOST_KEYED)
        """To be had around what may wait for unique keys."""
        self._links: list[Link] = []
        self._unprepared: BrokerUnusable | None = None

    def transaction(self) -> Transaction:
        """What an operation that begins now works with."""
        return Transaction(self._statements, self.address.schema, stored(self.clock.now()), settle_up)

    async def open(self) -> None:
        """Check the schema, made if need be, and read the server's clock. Raises BrokerError, BrokerUnusable, SchemaTooNew.

        Where the schema may not be made, all but `migrate` raises BrokerUnusable.
        """
        with translated(self.address):
            connection = await connected(self.address, pinned=False)
            async with connection:
                try:
                    await migrating.prepare(connection, self.address)
                except migrating.Unprepared as error:
                    self._unprepared = error
                    return
        await self.step(self._begin)

    def _begin(self, tx: Transaction) -> Work[None]:
        now, standby, reads = yield from tx.row("clock")
        if standby:
            raise only_reads("this server is a standby", self.address)
        if not reads:
            self.address.written.set()
        self.clock.read(moment(now))

    async def migrate(self) -> tuple[int, int]:
        """Bring the schema up to date, whatever `migrate=` says. Returns the versions (from, to)."""
        with translated(self.address):
            connection = await connected(self.address, pinned=False)
            async with connection:
                versions = await migrating.migrate(connection, self.address)
        if self._unprepared is not None:
            self._unprepared = None
            await self.step(self._begin)
        return versions

    @property
    def skew(self) -> timedelta | None:
        """How far this machine's clock is ahead of the server's."""
        return self.clock.skew

    def check(self) -> None:
        """Raise BrokerUnusable when the schema is not there and may not be made."""
        if self._unprepared is not None:
            raise self._unprepared

    def link(self) -> Link:
        """A connection for one purpose, to be closed by who asked for it or with the client."""
        link = Link(self.address, self.transaction)
        self._links.append(link)
        return link

    def foreign_link(self) -> Link:
        """A connection for another event loop than this client's; whoever asked for it lets go of it."""
        return Link(self.address, self.transaction)

    async def unlink(self, link: Link) -> None:
        """Close a connection."""
        if link in self._links:
            self._links.remove(link)
        await link.close()

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation in a transaction."""
        return await self._lent(self._turns, lambda link: link.run(operation))

    async def step(self, operation: Operation[T]) -> T:
        """Run an operation whose statements are each a transaction of their own."""
        return await self._lent(self._turns, lambda link: link.step(operation))

    async def ask(self, operation: Operation[T]) -> T:
        """As `step`, for what waits for no lock of others, so that it waits for none who does."""
        return await self._lent(self._asking, lambda link: link.step(operation))

    async def ask_together(self, operation: Operation[T]) -> T:
        """As `ask`, in a transaction."""
        return await self._lent(self._asking, lambda link: link.run(operation))

    async def change(self, operation: Operation[T]) -> T:
        """As `run`, for what may wait for unique keys."""
        async with self.keyed:
            return await self.run(operation)

    async def _lent(self, turns: asyncio.Semaphore, act: Callable[[Link], Awaitable[T]]) -> T:
        """Act on a connection that is free. That of a caller who gives up is free once what it began was cancelled."""
        await turns.acquire()
        link = self._lend()
        try:
            return await act(link)
        except asyncio.CancelledError:
            link.give_up()
            raise
        finally:
            link.when_free(partial(self._freed, link, turns))

    def _freed(self, link: Link, turns: asyncio.Semaphore) -> None:
        self._idle.append(link)
        turns.release()

    def _lend(self) -> Link:
        return self._idle.pop() if self._idle else self.link()

    async def close(self) -> None:
        """Close all connections."""
        await self.ear.close()
        links, self._links = self._links, []
        self._idle = []
        for link in links:
            await link.close()

    def abandon(self) -> None:
        """Close all connections from outside of their event loop, which is closed."""
        self.ear.abandon()
        for link in self._links:
            link.abandon()
