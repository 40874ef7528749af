"""Jobs that are enqueued in a transaction which is not the broker's own: the caller's, or the one that ends the job at work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from offload.broker import Cursor, SqlStore
from offload.clients import Clients
from offload.connections import Adapter, AsyncAdapter, SyncAdapter
from offload.connections.adapter import Task, nothing
from offload.connections.places import see_the_place, see_the_place_blocking
from offload.errors import BadDeclaration, Unsupported
from offload.events import Event
from offload.portal import portal

T = TypeVar("T")

NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}


class Joined:
    """A transaction that jobs become part of."""

    def __init__(self, adapter: SyncAdapter | AsyncAdapter) -> None:
        self.adapter = adapter
        self.enqueued: list[Event] = []
        """To be told once it is committed."""


class Block(Joined):
    """One that a task has open: what is enqueued meanwhile becomes part of it, without being told so."""

    def __init__(self, adapter: SyncAdapter | AsyncAdapter) -> None:
        super().__init__(InBlock(adapter, self) if isinstance(adapter, SyncAdapter) else AwaitedInBlock(adapter, self))
        self.open = True
        self.turn = threading.Lock()
        """Held by the thread that enqueues, and by the one that ends the block."""

    def check(self) -> None:
        """Refuse what began while the block was open and has its turn when it is not: on the connection may be another one by now."""
        if not self.open:
            raise BadDeclaration(
                "the block of current.transaction() had ended before this job came to its turn, and so it was not enqueued: "
                "await inside the block whatever enqueues there"
            )

    def end(self) -> None:
        """From here on nothing becomes part of it."""
        with self.turn:
            self.open = False


class InBlock(SyncAdapter):
    """The connection of a block, for as long as that is open. Threads that were given the block's context take turns."""

    def __init__(self, adapter: SyncAdapter, block: Block) -> None:
        self.kind, self.dialect, self.library, self.source = adapter.kind, adapter.dialect, adapter.library, adapter.source
        self._adapter, self._block = adapter, block

    @property
    def driver(self) -> Any:
        """As `SyncAdapter.driver`."""
        return self._adapter.driver

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """As `SyncAdapter.execute`."""
        return self._adapter.execute(sql, values)

    def join(self) -> None:
        """As `SyncAdapter.join`."""
        self._adapter.join()

    def block(self) -> AbstractContextManager[None]:
        """As `SyncAdapter.block`."""
        return self._adapter.block()

    def run(self, work: Task[T]) -> T:
        """Carry out an operation. Raises BadDeclaration when the block is not open any more."""
        with self._block.turn:
            self._block.check()
            return self._adapter.run(work)


class AwaitedInBlock(AsyncAdapter):
    """The same of coroutines."""

    def __init__(self, adapter: AsyncAdapter, block: Block) -> None:
        self.kind, self.dialect, self.library, self.source = adapter.kind, adapter.dialect, adapter.library, adapter.source
        self._adapter, self._block = adapter, block

    async def run(self, work: Task[T], before: Callable[[], None] = nothing) -> T:
        """Carry out an operation. Raises BadDeclaration when the block is not open any more once its turn has come."""

        def first() -> None:
            self._block.check()
            before()

        return await self._adapter.run(work, first)

    async def rest(self) -> None:
        """As `AsyncAdapter.rest`."""
        await self._adapter.rest()

    async def _run(self, work: Task[T]) -> T:
        return await self.run(work)

    def block(self) -> AbstractAsyncContextManager[None]:
        """As `AsyncAdapter.block`."""
        return self._adapter.block()


_joined: ContextVar[Block | None] = ContextVar("offload_joined", default=None)


def joined() -> Block | None:
    """The transaction that the calling code has open, if any. Code that begins when it has ended, such as a task of asyncio, is in none."""
    found = _joined.get()
    return found if found is not None and found.open else None


@contextmanager
def joining(adapter: SyncAdapter | AsyncAdapter) -> Generator[Block]:
    """Have what is enqueued in the block join the transaction that is open on the connection."""
    joined = Block(adapter)
    token = _joined.set(joined)
    try:
        yield joined
    finally:
        joined.end()
        _joined.reset(token)


def store_of(clients: Clients, what: str) -> type[SqlStore]:
    """The app's store, as one that can take part in a transaction. Raises Unsupported, naming what to use."""
    if not issubclass(clients.kind, SqlStore):
        raise Unsupported(
            f"{clients.kind.__name__} cannot take part in a transaction ({what}); use PostgreSQL or SQLite, "
            "where the jobs lie in the same database as your tables"
        )
    return clients.kind


def suit(adapter: Adapter, clients: Clients) -> None:
    """Raise Unsupported, or BadDeclaration, unless operations of the app's broker can run on such a connection."""
    store = store_of(clients, f"connection= is {adapter.kind}")
    if adapter.dialect != store.dialect:
        raise BadDeclaration(
            f"{adapter.kind} is to {NAMES[adapter.dialect]}, and this app keeps its jobs in {NAMES[store.dialect]}: one transaction cannot "
            f"span both; give the app the URL of that database, or leave out connection= to enqueue at once"
        )
    broker = clients.broker
    library = broker.library if isinstance(broker, SqlStore) else None
    if library is not None and adapter.library != library:
        raise BadDeclaration(
            f"{adapter.kind} is of {adapter.library}, and this app opens its file with {library}: two SQLite libraries in one process lose "
            f"each other's locks and damage the file; use connections of {library}"
            + (", or ?driver=apsw in the app's URL" if adapter.library == "apsw" else "")
        )


def sql(client: object) -> SqlStore:
    """A client whose kind was found to suit."""
    assert isinstance(client, SqlStore)
    return client


async def ready(adapter: Adapter, clients: Clients) -> SqlStore:
    """The store whose operations can run on such a connection, ready for that. Raises Unsupported, BadDeclaration, BrokerError."""
    suit(adapter, clients)
    return sql(await clients.client() if store_of(clients, "").needs_opening else clients.broker)


def ready_blocking(adapter: Adapter, clients: Clients) -> SqlStore:
    """The same for sync callers; on an event loop, too, which the first call may hold up while the database is connected."""
    suit(adapter, clients)
    if not store_of(clients, "").needs_opening:
        return sql(clients.broker)
    return sql(clients.anyone() or portal.run(clients.client))


async def suited(adapter: AsyncAdapter, clients: Clients) -> SqlStore:
    """`ready`, and the transaction that is open is found to be one of the store's own database."""
    store = await ready(adapter, clients)
    await see_the_place(adapter, clients, store)
    return store


def suited_blocking(adapter: SyncAdapter, clients: Clients) -> SqlStore:
    """The same for sync callers."""
    store = ready_blocking(adapter, clients)
    see_the_place_blocking(adapter, clients, store)
    return store
