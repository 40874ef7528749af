"""An operation as a generator of named statements, run on a connection of ours or of the caller's own, whatever its driver.

So values are only text, numbers, booleans and None; lists go in as one JSON text and come out as one. Every operation can be run
again once its transaction was rolled back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeVar

import msgspec

from offload.broker import Statement, Work
from offload.brokers._sql import queries, script
from offload.brokers.postgres.books import Books

T = TypeVar("T")

PACKAGE = "offload.brokers.postgres"
"""Where the SQL files lie."""
FILES = ("queries.sql", "gates.sql", "control.sql", "families.sql", "tallies.sql")
"""Those with statements by name."""
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_encode = msgspec.json.Encoder().encode


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def in_schema(sql: str, schema: str) -> str:
    """SQL that was written for the schema `offload`, for another one. A percent sign in its name would look like a value's place."""
    return sql.replace("offload.", quoted(schema).replace("%", "%%") + ".")


@cache
def statements(schema: str) -> Mapping[str, str]:
    """All statements by name, for the tables in `schema`."""
    named = {name: sql for file in FILES for name, sql in queries(PACKAGE, file).items()}
    named["add_new_strict"] = named["add_new"].replace("on conflict do nothing", "")  # a third faster; conflicts fail
    return {name: in_schema(_bare(sql), schema) for name, sql in named.items()}


def _bare(sql: str) -> str:
    """SQL without comments and indentation: what has over 4,096 characters psycopg parses anew at every call, for 0.2 ms."""
    return "\n".join(line.strip() for line in sql.splitlines() if not line.lstrip().startswith("--"))


def schema_script(schema: str, sql: str | None = None) -> bytes:
    """What makes the tables in `schema`, or another script for it; to be run without values."""
    return in_schema(sql or script(PACKAGE, "schema.sql"), schema).replace("%%", "%").encode()


def text(value: Any) -> str:
    """A value as JSON text, as lists go in. PostgreSQL stores no character 0, so another stands for it."""
    encoded = _encode(value).decode()
    return _NUL.sub("\\1\\\\ufffd", encoded) if "\\u0000" in encoded else encoded


class Doubt(Exception):
    """An operation met what another transaction did meanwhile. Its own is undone, and it is run again."""


class Transaction:
    """What an operation may do, and what it leaves to be told when it is done."""

    def __init__(self, sql: Mapping[str, str], channel: str, now: int, settle_up: Callable[[Transaction], Work[None]]) -> None:
        self._sql = sql
        self._settle_up = settle_up
        self.channel = channel
        """The channel on which those who sleep are woken."""
        self.now = now
        """The moment by the store's clock, in microseconds since 1970."""
        self.work = False
        """Set by what may have made jobs ready or changed what workers wait for."""
        self.ended = False
        """Set by what may have brought jobs to their end."""
        self.joint = False
        """Set where the transaction is a caller's, which may be open for long after this."""
        self.locks: set[int] = set()
        """The locks of gates that it has; see locking.py."""
        self.wanted: set[int] = set()
        """Those that it takes first of all, for lack of which it was undone before."""
        self.books = Books()
        """What is still to be done for workflows and batches."""

    def rows(self, name: str, /, **values: Any) -> Work[list[tuple[Any, ...]]]:
        """Run a statement; returns its rows."""
        return (yield Statement(self._sql[name], values))

    def row(self, name: str, /, **values: Any) -> Work[Any]:
        """Run a statement; returns its only row as a tuple, None when there is none."""
        rows = yield Statement(self._sql[name], values)
        return rows[0] if rows else None

    def value(self, name: str, /, **values: Any) -> Work[Any]:
        """Run a statement; returns the first column of its only row, None when there is none."""
        rows = yield Statement(self._sql[name], values)
        return rows[0][0] if rows else None

    def do(self, name: str, /, **values: Any) -> Work[bool]:
        """Run a statement; returns whether it gave rows: those it changed, where it says `returning`."""
        return bool((yield Statement(self._sql[name], values)))

    def post(self, name: str, /, **values: Any) -> Work[None]:
        """Have a statement run whose rows are of no interest: on a connection of ours together with the next, in one round trip."""
        yield Statement(self._sql[name], values, answered=False)

    def undone(self) -> None:
        """All was rolled back, and the operation is run again."""
        self.work = self.ended = False
        self.locks.clear()
        self.books.clear()

    def tell(self) -> Work[None]:
        """Do what is still to be done, and wake who sleeps, once this transaction commits. The last that every operation does."""
        if self.books.open:
            yield from self._settle_up(self)
        if self.work or self.ended:
            yield from self.post("wake", channel=self.channel, work=self.work, ended=self.ended, joint=self.joint)


Operation: TypeAlias = Callable[[Transaction], Work[T]]
"""What is done in one transaction. May be run again after its changes were undone."""


def told(tx: Transaction, operation: Operation[T]) -> Work[T]:
    """An operation with the waking of those who sleep behind it."""
    result = yield from operation(tx)
    yield from tx.tell()
    return result
