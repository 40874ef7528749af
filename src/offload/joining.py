"""Jobs that are enqueued in a transaction which is not the broker's own: the caller's, or the one that ends the job at work."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from offload.broker import SqlStore
from offload.clients import Clients
from offload.connections import Adapter, AsyncAdapter, SyncAdapter
from offload.errors import BadDeclaration, Unsupported
from offload.events import Event
from offload.portal import portal

NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}


class Joined:
    """A transaction that a task has open; jobs enqueued meanwhile become part of it."""

    def __init__(self, adapter: SyncAdapter | AsyncAdapter) -> None:
        self.adapter = adapter
        self.open = True
        self.enqueued: list[Event] = []
        """To be told once it is committed."""


_joined: ContextVar[Joined | None] = ContextVar("offload_joined", default=None)


def joined() -> Joined | None:
    """The transaction that the calling code has open, if any. Code that outlived it, such as a task of asyncio, is in none."""
    found = _joined.get()
    return found if found is not None and found.open else None


@contextmanager
def joining(adapter: SyncAdapter | AsyncAdapter) -> Generator[Joined]:
    """Have what is enqueued in the block join the transaction that is open on the connection."""
    joined = Joined(adapter)
    token = _joined.set(joined)
    try:
        yield joined
    finally:
        joined.open = False
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


async def suited(adapter: Adapter, clients: Clients) -> SqlStore:
    """The store whose operations will run on the connection, ready for that. Raises Unsupported, BadDeclaration, BrokerError."""
    suit(adapter, clients)
    return sql(await clients.client() if store_of(clients, "").needs_opening else clients.broker)


def suited_blocking(adapter: Adapter, clients: Clients) -> SqlStore:
    """The same for sync callers; on an event loop, too, which the first call may hold up while the database is connected."""
    suit(adapter, clients)
    if not store_of(clients, "").needs_opening:
        return sql(clients.broker)
    return sql(clients.anyone() or portal.run(clients.client))
