"""Runs operations on a connection, in the transaction that is open there."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from offload.broker import Cursor, Dialect, Execute, Routine, Work
from offload.errors import BadDeclaration

T = TypeVar("T")

SAVEPOINT, UNDO, RELEASE = "savepoint offload", "rollback to savepoint offload", "release savepoint offload"

Task: TypeAlias = Work[T] | Routine[T]


def nothing() -> None:
    """There is nothing to be asked before."""


def ended_inside() -> BadDeclaration:
    """The error that tells of a block whose transaction is not the one any more with which it began."""
    return BadDeclaration(
        "the transaction of this block was ended inside it, by a commit or a rollback; its end is the block's, together with the job's"
    )


class Adapter(ABC):
    """A connection of some kind."""

    kind: str
    """What it is, for people: `a psycopg connection`."""
    dialect: Dialect
    library: str | None = None
    """The package that opened the database, where that matters."""
    source: Any
    """What decides which database it is to, as long as it lives: the connection itself, or the engine that it comes from."""


class SyncAdapter(Adapter):
    """A connection whose calls block. Used in the caller's thread."""

    @property
    @abstractmethod
    def driver(self) -> Any:
        """The connection of the driver, which other threads may interrupt."""

    @abstractmethod
    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement. Raises the driver's errors."""

    @abstractmethod
    def join(self) -> None:
        """See that a transaction is open. Raises BadDeclaration where what is done now would be committed at once."""

    @abstractmethod
    def block(self) -> AbstractContextManager[None]:
        """A transaction from here on: what was done on the connection is committed at the end, rolled back on an error."""

    def run(self, work: Task[T]) -> T:
        """Carry out an operation in the transaction that is open; what it did is undone when it fails, and nothing else."""
        self.join()
        self.execute(SAVEPOINT)
        try:
            result = carried_out(work, self.execute)
        except BaseException:
            with suppress(Exception):  # a connection that is gone; the error that says so is on its way
                self.execute(UNDO)
                self.execute(RELEASE)
            raise
        self.execute(RELEASE)
        return result


class AsyncAdapter(Adapter):
    """A connection whose calls are awaited."""

    given: Any
    """The connection."""

    async def run(self, work: Task[T], before: Callable[[], None] = nothing) -> T:
        """As `SyncAdapter.run`. Operations of several coroutines take turns, for a savepoint belongs to one of them.

        `before` is called when the turn has come, and may refuse.
        """
        async with self._turn():
            before()
            return await self._run(work)

    async def rest(self) -> None:
        """Wait until nobody has a turn."""
        async with self._turn():
            pass

    def _turn(self) -> asyncio.Lock:
        return _turns.setdefault(self.given, asyncio.Lock())

    @abstractmethod
    async def _run(self, work: Task[T]) -> T:
        """Carry out an operation, while no other one is carried out on the connection."""

    @abstractmethod
    def block(self) -> AbstractAsyncContextManager[None]:
        """As `SyncAdapter.block`."""


_turns: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()


class InPlace(AsyncAdapter):
    """A connection whose calls block, used by a coroutine: they run here and now."""

    def __init__(self, adapter: SyncAdapter) -> None:
        self.kind, self.dialect, self.library, self.source = adapter.kind, adapter.dialect, adapter.library, adapter.source
        self._adapter = adapter

    async def run(self, work: Task[T], before: Callable[[], None] = nothing) -> T:
        """Carry out an operation, without letting others run meanwhile."""
        before()
        return self._adapter.run(work)

    async def rest(self) -> None:
        """Nobody has a turn, for each is over before others run."""

    async def _run(self, work: Task[T]) -> T:
        return self._adapter.run(work)

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[None]:
        """As `SyncAdapter.block`."""
        with self._adapter.block():
            yield


class Rows(NamedTuple):
    """A cursor whose rows have all been read."""

    rows: Sequence[Any]
    rowcount: int = -1

    def fetchone(self) -> Any:
        """The first row; None when there is none."""
        return self.rows[0] if self.rows else None

    def fetchall(self) -> list[Any]:
        """All rows."""
        return list(self.rows)


def carried_out(work: Task[T], execute: Execute) -> T:
    """Run an operation by what executes its statements."""
    if callable(work):
        return work(execute)
    try:
        statement = next(work)
        while True:
            try:
                rows = execute(statement.sql, statement.values).fetchall()
            except Exception as error:  # noqa: BLE001 - the operation's own to handle
                statement = work.throw(error)
            else:
                statement = work.send(rows)
    except StopIteration as end:
        return end.value


@contextmanager
def ended_by(commit: Callable[[], object], rollback: Callable[[], object]) -> Generator[None]:
    """Commit at the end of the block, roll back on an error; also on one of the commit, after which SQLite's transaction is still open."""
    try:
        yield
        commit()
    except BaseException:
        with suppress(Exception):  # a connection that is gone has rolled back; what went wrong is on its way
            rollback()
        raise
