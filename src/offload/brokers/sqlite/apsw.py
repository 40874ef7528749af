"""apsw in the shape of the standard library's `sqlite3`, as far as this engine uses that: `?driver=apsw`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw


class Rows(NamedTuple):
    """A cursor whose rows have all been read, so that no statement is left open."""

    rows: Sequence[Any]
    rowcount: int

    def fetchone(self) -> Any:
        """The first row; None when there is none."""
        return self.rows[0] if self.rows else None

    def fetchall(self) -> list[Any]:
        """All rows."""
        return list(self.rows)


class ApswConnection:
    """A connection of apsw. Raises sqlite3's errors, so that they mean the same everywhere."""

    row_factory: Any = None
    text_factory: Any = str

    def __init__(self, path: Path, timeout: float) -> None:
        with _Translated():
            self.itself: Any = apsw.Connection(str(path), statementcachesize=512)
            self.itself.set_busy_timeout(int(timeout * 1000))

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self.itself.in_transaction

    def execute(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> Rows:
        """Run one statement."""
        with _Translated():
            rows = self.itself.execute(sql, values).fetchall()
            return Rows(rows, self.itself.changes())

    def close(self) -> None:
        """Close."""
        with _Translated():
            self.itself.close()


class _Translated:
    """Raises apsw's errors as sqlite3's. A class, for it is on the way of every statement."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, apsw.Error):
            return
        told = sqlite3.IntegrityError(str(error)) if isinstance(error, apsw.ConstraintError) else sqlite3.OperationalError(str(error))
        told.sqlite_errorcode = getattr(error, "extendedresult", 0)
        raise told from error


def sqlite_version() -> str:
    """The version of the SQLite that apsw contains."""
    return apsw.sqlite_lib_version()
