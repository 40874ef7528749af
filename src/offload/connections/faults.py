"""What a driver's error means, whichever driver it is and however it was wrapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BUSY, LOCKED = 5, 6
BUSY_SNAPSHOT = 517
"""SQLite: what the transaction has read is out of date. Waiting does not help; doing all of it again does."""
PASSING = frozenset({"40001", "40P01"})
"""PostgreSQL: serialisation failure, deadlock."""
GONE = ("57P01", "57P02", "57P03", "08")
"""PostgreSQL, how the codes begin: the server stops, has crashed or is starting; the connection was lost."""
WRAPPERS = frozenset({"django", "sqlalchemy", "offload"})
"""Packages whose errors stand for the driver's errors that caused them."""


def _within(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: SQLAlchemy's `orig`, Django's `__cause__`. Errors of a task raised from these are its own."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = getattr(seen, "orig", None)
        wraps = type(seen).__module__.partition(".")[0] in WRAPPERS
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ if wraps else None


def _sqlite_code(error: BaseException) -> int:
    """SQLite's extended result code; 0 where there is none. apsw keeps it under another name."""
    for each in _within(error):
        code = getattr(each, "sqlite_errorcode", None) or getattr(each, "extendedresult", None)
        if isinstance(code, int):
            return code
    return 0


def sql_state(error: BaseException) -> str | None:
    """PostgreSQL's code of the error, None where there is none; psycopg2 keeps it under another name."""
    for each in _within(error):
        state = getattr(each, "sqlstate", None) or getattr(each, "pgcode", None)
        if isinstance(state, str):
            return state
    return None


def locked(error: BaseException) -> bool:
    """Whether an SQLite statement met a lock that will pass, so that it can be tried again."""
    code = _sqlite_code(error)
    return code & 0xFF in (BUSY, LOCKED) and code != BUSY_SNAPSHOT


def passing(error: BaseException) -> bool:
    """Whether the transaction failed for meeting another one, and all of it can be done again: deadlock, serialisation failure, lock."""
    return sql_state(error) in PASSING or _sqlite_code(error) & 0xFF in (BUSY, LOCKED)


def gone(error: BaseException) -> bool:
    """Whether psycopg tells that a server of PostgreSQL is away; without a code where the connection just ended."""
    state = sql_state(error)
    if state is not None:
        return state.startswith(GONE)
    kind = type(error)
    return kind.__name__ == "OperationalError" and kind.__module__.partition(".")[0] == "psycopg"


def cut(connection: Any) -> bool:
    """Whether a connection is psycopg's and of no use any more: it broke, or its server's last word was not followed by the usual one."""
    if type(connection).__module__.partition(".")[0] != "psycopg":
        return False
    return connection.broken or connection.info.transaction_status.name in ("ACTIVE", "UNKNOWN")
