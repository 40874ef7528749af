"""The caller's own connections: what they have in common, and which adapter serves which kind.

Packages are told by the name of the module that defines a connection's class, and imported only once such a connection is seen.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from offload.connections.adapter import Adapter, AsyncAdapter, SyncAdapter
from offload.errors import BadDeclaration

__all__ = ["Adapter", "AsyncAdapter", "SyncAdapter", "adapter_of"]

SERVED = {
    "psycopg": "psycopg",
    "psycopg_pool": "psycopg",
    "sqlalchemy": "sqlalchemy",
    "django": "django",
    "sqlite3": "sqlite",
    "apsw": "apsw",
    "aiosqlite": "aiosqlite",
}
"""Package to the module here that serves its connections."""
TAKEN = (
    "connections of psycopg (sync and async), sessions and connections of SQLAlchemy 2 (sync and async), connections of Django, "
    "and connections of sqlite3, apsw or aiosqlite on the queue's own file"
)


def adapter_of(connection: Any) -> SyncAdapter | AsyncAdapter:
    """What runs operations on `connection`. Raises BadDeclaration for what is no connection that can be served."""
    for each in type(connection).__mro__:
        if (served := SERVED.get(each.__module__.partition(".")[0])) is not None:
            adapter = import_module(f"offload.connections.{served}").adapter(connection)
            if adapter is not None:
                return adapter
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise BadDeclaration(f"connection= cannot be a {kind}; it takes {TAKEN}")
