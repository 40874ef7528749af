"""A transaction as operations see it: named statements, each one step of SQLite whatever the size of its batch.

Python's sqlite3 gives up the interpreter lock at every step, and a thread beside a busy event loop waits up to 5 ms to get it
back; an `executemany` of 1,000 rows has taken 4.8 s that way. So rows come in by statements of many rows and go out as one JSON
text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, Generic, TypeAlias, TypeVar

from offload.broker import Execute
from offload.brokers._sql import queries
from offload.brokers.sqlite.books import COLUMNS, FIXED, Books
from offload.errors import OffloadError

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

FILES = ("queries.sql", "gates.sql", "families.sql")
SPELLED_OUT = {
    "<columns>": ", ".join(COLUMNS),
    "<count>": f"json_array({', '.join(COLUMNS[:-1])}, json({COLUMNS[-1]}))",
    "<changes>": ", ".join(f"{name} = json_extract(c.value, '$[{place}]')" for place, name in enumerate(COLUMNS) if name not in FIXED),
}
"""What families.sql says of the columns of `tallies`, which stand in the order of books.Count."""


def _spelled_out(sql: str) -> str:
    for short, long in SPELLED_OUT.items():
        sql = sql.replace(short, long)
    return sql


SQL = {name: _spelled_out(sql) for file in FILES for name, sql in queries("offload.brokers.sqlite", file).items()}
MOST_ROWS = 256
"""The most rows that one insert takes; more go in by several. Larger statements were no faster."""


class Doubt(Exception):
    """An optimistic operation met what only its careful form can tell apart; the transaction is undone and run again."""


class Transaction:
    """What an operation may do. `careful` is False while conflicts may still be answered by doubt.

    `joined` says that it is part of a caller's transaction, which an error undoes as a whole.
    """

    def __init__(self, execute: Execute, *, careful: bool, joined: bool = False) -> None:
        self._execute = execute
        self.careful = careful
        self.joined = joined
        self.work = False
        """Set by what may have made jobs ready or changed what workers wait for."""
        self.ended = False
        """Set by what may have brought jobs to their end."""
        self._books: Books | None = None

    def do(self, name: str, /, **values: Any) -> int:
        """Run a statement. Returns the number of rows it changed."""
        return self._execute(SQL[name], values).rowcount

    def row(self, name: str, /, **values: Any) -> Any:
        """The only row of a query as a tuple; None when there is none."""
        return self._execute(SQL[name], values).fetchone()

    def value(self, name: str, /, **values: Any) -> Any:
        """The first column of the only row of a query."""
        return self._execute(SQL[name], values).fetchone()[0]

    def add(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows by the statement `name`, whose first column is never null."""
        for start in range(0, len(rows), MOST_ROWS):
            part = rows[start : start + MOST_ROWS]
            width = len(part[0])
            size = 1 << (len(part) - 1).bit_length()
            values = list(chain.from_iterable(part))
            values.extend([None] * (width * (size - len(part))))
            self._execute(_insert(name, width, size), values)

    @property
    def books(self) -> Books:
        """What the operation under way has still to do for workflows and batches; made when first asked for, as most have nothing."""
        if self._books is None:
            self._books = Books()
        return self._books

    @property
    def books_kept(self) -> bool:
        """Whether there is anything in the books."""
        return self._books is not None

    def close_books(self) -> None:
        """All is done, or undone."""
        self._books = None

    def attempt(self, act: Callable[[], T]) -> T:
        """Do something, or, where it raises Doubt or an error of ours, nothing of it. Other errors undo the whole operation."""
        noted = None if self._books is None else self._books.copy()
        self._execute("savepoint attempt", ())
        try:
            result = act()
        except (Doubt, OffloadError):
            self._execute("rollback to attempt", ())
            self._execute("release attempt", ())
            self._books = noted
            raise
        self._execute("release attempt", ())
        return result

    def numbers(self, count: int) -> int:
        """Take `count` numbers of the sequence; returns the first."""
        return self.value("take_numbers", count=count) - count


@cache
def _insert(name: str, width: int, size: int) -> str:
    """An insert of `size` rows; those whose first column is null fill up and are left out, so that few statements are compiled."""
    row = f"({','.join('?' * width)})"
    rows = ",".join([row] * size)
    return f"{SQL[name]} select * from (values {rows}) where column1 is not null"  # noqa: S608  only question marks are put in


Operation: TypeAlias = Callable[[Transaction], T]
"""What is done in one transaction. May be run again after its changes were undone."""


@dataclass(frozen=True, slots=True)
class Joint(Generic[Item, Result]):
    """An operation on a sequence, with a result for each item. Several of one `act` that wait at the same time are done as one."""

    act: Callable[[Transaction, Sequence[Item]], Sequence[Result]]
    items: Sequence[Item]

    def __call__(self, tx: Transaction) -> Sequence[Result]:
        """Do this one alone."""
        return self.act(tx, self.items)
