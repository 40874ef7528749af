"""Where a connection to PostgreSQL leads: a caller's must lead to the database that keeps the jobs, and its address does not tell.

One server has many names, and poolers rename databases. So both sides are asked, a caller's connection or engine once. On SQLite each
operation looks at the file itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from offload.broker import SqlStore, Statement, Work
from offload.connections import Adapter, AsyncAdapter, SyncAdapter
from offload.errors import BadDeclaration

ASK = Statement(
    "select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint, oid::bigint, datname::text"
    " from pg_database where datname = current_database()"
)


class Place(NamedTuple):
    """A database of a server that runs; after a restart it is another place."""

    started: int
    """Microseconds since 1970."""
    number: int
    name: str


_places: WeakKeyDictionary[Any, Place] = WeakKeyDictionary()
"""By app, for which stands its `Clients`: where the jobs are kept, as far as it was asked."""
_known: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()
"""By `Adapter.source`: the apps whose jobs are kept there."""


def vouch(adapter: Adapter, app: object) -> None:
    """Take it as known that the connection leads to where the jobs are kept."""
    if adapter.dialect == "postgresql":
        _known.setdefault(adapter.source, WeakSet()).add(app)


def _vouched(adapter: Adapter, app: object) -> bool:
    return app in _known.get(adapter.source, ())


async def see_the_place(adapter: AsyncAdapter, app: object, store: SqlStore) -> None:
    """See, in the transaction that is open, that the connection leads to the database of the store. Raises BadDeclaration."""
    if adapter.dialect != "postgresql" or _vouched(adapter, app):
        return
    here = await adapter.run(_asked())
    if here != _places.get(app):
        _places[app] = await store.read(_asked)
    _compare(adapter, here, app)


def see_the_place_blocking(adapter: SyncAdapter, app: object, store: SqlStore) -> None:
    """The same for sync callers."""
    if adapter.dialect != "postgresql" or _vouched(adapter, app):
        return
    here = adapter.run(_asked())
    if here != _places.get(app):
        _places[app] = store.read_blocking(_asked)
    _compare(adapter, here, app)


def _asked() -> Work[Place]:
    rows = yield ASK
    return Place(*rows[0])


def _compare(adapter: Adapter, here: Place, app: object) -> None:
    there = _places[app]
    if here != there:
        whose = "of another server" if here.name == there.name else f"and not {there.name!r}"
        raise BadDeclaration(
            f"{adapter.kind} is to the database {here.name!r} {whose}, where this app keeps its jobs: one transaction cannot span both; "
            "give the app the URL of that database, or leave out connection= to enqueue at once"
        )
    vouch(adapter, app)
