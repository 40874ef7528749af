"""Connections of our own: how they are opened, and how operations run on them."""

from __future__ import annotations

import asyncio
import os
import random
import select
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any, LiteralString, TypeAlias, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Pipeline, errors, pq
from psycopg.conninfo import conninfo_to_dict

from offload.broker import Statement, Work
from offload.brokers.postgres.address import Address, has_several_hosts
from offload.brokers.postgres.errors import AGAIN, STRIFE, translated
from offload.brokers.postgres.prepared import Prepared, Rows
from offload.brokers.postgres.work import Operation, Transaction, told
from offload.errors import BrokerBusy, BrokerError

T = TypeVar("T")
Connection: TypeAlias = AsyncConnection[tuple[Any, ...]]

CONNECT_TIMEOUT = 10
"""Seconds for a server to accept a connection."""
SILENCE_MS = 15_000
"""A server that acknowledges nothing for so long is given up."""
LAST_WAIT = 5.0
"""Seconds that closing waits for what is under way."""
LONGEST_CALL = 60.0
"""Seconds after which a server that is connected but does not answer is given up; longer than locks and strife are waited for."""
GRACE = 0.1
"""Seconds for which what a caller gave up may end by itself before the server is told to cancel it."""
LONGEST_STRIFE = 30.0
"""Seconds for which an operation is run again that other transactions undid."""
PREPARED = 500
"""The most statements that a connection keeps prepared; there are fewer."""

SETTINGS = {
    # Plans must not depend on statistics, which lag behind tables that fill and empty: every access is by an index, row by row.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "jit": "off",
    # What another transaction did while one waited for it must be seen, whatever the role's default.
    "default_transaction_isolation": "read committed",
    # A worker frozen in mid-transaction must not hold its locks, which others may need to rescue its jobs, for long.
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "20s",
}
_BEGIN = Statement("begin isolation level read committed", answered=False)
_PIN = "; ".join(f"set {name} = '{value}'" for name, value in SETTINGS.items())
_BEGIN_PINNED = Statement("; ".join([_BEGIN.sql, *(f"set local {name} = '{value}'" for name, value in SETTINGS.items())]))
_COMMIT = Statement("commit", answered=False)


def keywords(address: Address) -> dict[str, Any]:
    """How to connect, beyond what the URL says."""
    known = conninfo_to_dict(address.dsn)
    ours: dict[str, Any] = {
        "application_name": "offload",
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": SILENCE_MS,
        "client_encoding": "utf8",
    }
    if has_several_hosts(known):
        ours["target_session_attrs"] = "read-write"  # libpq would stay with the first that answers, a standby as well
    return {name: value for name, value in ours.items() if name not in known}


async def connected(address: Address, *, pinned: bool = True) -> Connection:
    """A new connection in autocommit mode, its plans pinned. Raises the driver's errors."""
    connection = await AsyncConnection.connect(
        address.dsn,
        autocommit=True,
        prepare_threshold=None if address.pgbouncer else 0,
        **keywords(address),
    )
    connection.prepared_max = PREPARED
    if pinned and not address.pgbouncer:
        try:
            await connection.execute(cast(LiteralString, _PIN), prepare=False)
        except BaseException:
            await connection.close()
            raise
    return connection


class Link:
    """One connection, opened when it is needed and again when it broke, used by one operation at a time."""

    def __init__(self, address: Address, transaction: Callable[[], Transaction]) -> None:
        self._address = address
        self._transaction = transaction
        self._connection: Connection | None = None
        self._prepared: Prepared | None = None
        self._left: weakref.finalize[..., Any] | None = None
        self._lock = asyncio.Lock()
        self._under_way: asyncio.Future[Any] | None = None

    def now(self) -> int:
        """The moment by the store's clock, in microseconds since 1970."""
        return self._transaction().now

    def when_free(self, then: Callable[[], None]) -> None:
        """Call `then` once what was asked of this connection is done, which may be after its caller was cancelled."""
        if self._under_way is None or self._under_way.done():
            then()
        else:
            self._under_way.add_done_callback(lambda _: then())

    def give_up(self) -> None:
        """Cancel what is under way, as nobody waits for it: also on the server, where it may wait for a lock for long."""
        task = self._under_way
        if task is not None and not task.done():
            timer = asyncio.get_running_loop().call_later(GRACE, task.cancel)
            task.add_done_callback(lambda _: timer.cancel())

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation in a transaction of its own; again as long as other transactions undo it."""
        return await self._alone(lambda connection: self._transact(connection, operation))

    async def step(self, operation: Operation[T]) -> T:
        """Run an operation whose statements are each a transaction of their own, such as a single one or reads.

        A statement that other transactions undo is run again; through a pooler, where all is one transaction, it fails.
        """
        if self._address.pgbouncer:
            return await self._alone(lambda connection: self._transact(connection, operation, once=True))
        return await self._alone(lambda _: self._one_by_one(told(self._transaction(), operation)))

    async def _alone(self, act: Callable[[Connection], Awaitable[T]]) -> T:
        """Finish what was begun though the caller is cancelled, so that the connection is left in order."""
        task = self._under_way = asyncio.ensure_future(self._locked(act))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            raise

    async def _locked(self, act: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._lock:
            with translated(self._address):
                connection = await self._opened()
                try:
                    async with asyncio.timeout(LONGEST_CALL):
                        return await act(connection)
                except TimeoutError as error:
                    await self._drop()
                    raise BrokerError(f"{self._address.place}: no answer for {LONGEST_CALL:g} s") from error
                except (errors.ReadOnlySqlTransaction, errors.FeatureNotSupported):  # the second: unlogged tables on a standby
                    await self._drop()  # the next connection may find the primary
                    raise
                finally:
                    if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:  # a plain number, never the enum's own value
                        await self._drop()

    async def _opened(self) -> Connection:
        if self._connection is not None and not usable(self._connection.pgconn):
            await self._drop()
        if self._connection is None:
            self._connection = await connected(self._address)
            self._prepared = Prepared(self._connection)
            self._left = weakref.finalize(self, let_go, [self._connection.pgconn], os.getpid())  # a program may end without closing its app
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection, self._prepared = self._connection, None, None
        if self._left is not None:
            self._left.detach()
        if connection is not None:
            await connection.close()

    async def _one_by_one(self, work: Work[T]) -> T:
        assert self._prepared is not None
        run = self._prepared.rows
        return await _carried_out(lambda statements: self._persistently(lambda: run(statements[-1]), STRIFE), work)

    async def _transact(self, connection: Connection, operation: Operation[T], *, once: bool = False) -> T:
        wanted: set[int] = set()

        async def attempt() -> T:
            tx = self._transaction()
            tx.wanted = wanted
            try:
                return await self._in_transaction(connection, told(tx, operation))
            except BaseException:
                await _undo(connection)
                raise

        return await (attempt() if once else self._persistently(attempt, AGAIN))

    async def _persistently(self, attempt: Callable[[], Awaitable[T]], again: tuple[type[Exception], ...]) -> T:
        """Do what changes nothing when it fails as often as other transactions undo it. Raises BrokerBusy when they go on for too long."""
        began: float | None = None
        wait = 0.001
        while True:
            try:
                return await attempt()
            except again as error:
                began = began or monotonic()
                if monotonic() > began + LONGEST_STRIFE:
                    words = f"other transactions undid this one for {LONGEST_STRIFE:g} s ({error!r}); is one of them open for long?"
                    raise BrokerBusy(f"{self._address.place}: {words}") from error
                await asyncio.sleep(random.uniform(0, wait))
                wait = min(2 * wait, 0.1)

    async def _in_transaction(self, connection: Connection, work: Work[T]) -> T:
        if not self._address.pgbouncer and Pipeline.is_supported():
            return await _carried_out(partial(_last_answer, connection), work, [_BEGIN], [_COMMIT])
        await connection.execute(cast(LiteralString, _BEGIN_PINNED.sql if self._address.pgbouncer else _BEGIN.sql), prepare=False)
        result = await _carried_out(partial(_last_answer, connection), work)
        await connection.execute("commit")
        return result

    async def close(self) -> None:
        """Close the connection, once what is under way is done; not for long where the server does not answer."""
        try:
            async with asyncio.timeout(LAST_WAIT), self._lock:
                await self._drop()
        except TimeoutError:
            self.abandon()

    def abandon(self) -> None:
        """Close the connection from outside of its event loop; what is under way there fails."""
        if self._connection is not None:
            self._connection.pgconn.finish()


def usable(connection: pq.abc.PGconn) -> bool:
    """Whether an idle connection is open, as far as can be told without asking: there is nothing to read but its end."""
    if connection.status != pq.ConnStatus.OK:
        return False
    poll = select.poll() if hasattr(select, "poll") else None
    if poll is None:
        return not select.select([connection.socket], [], [], 0)[0]
    poll.register(connection.socket, select.POLLIN)
    return not poll.poll(0)


def let_go(connections: Iterable[pq.abc.PGconn], opener: int) -> None:
    """Close connections that nobody uses, from any thread and without an event loop. Not after a fork: they are the process `opener`'s."""
    if os.getpid() == opener:
        for connection in connections:
            connection.finish()


async def _undo(connection: Connection) -> None:
    """Roll back, where there is a connection left to do it on."""
    try:
        if connection.pgconn.transaction_status in {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR}:
            await connection.execute("rollback")
    except psycopg.Error:
        pass  # it is dropped: the server undoes what was not committed


def _unheard(task: asyncio.Future[Any]) -> None:
    """Nobody is left to be told how it ended."""
    if not task.cancelled():
        task.exception()


async def _carried_out(
    run: Callable[[Sequence[Statement]], Awaitable[Rows]], work: Work[T], begin: Sequence[Statement] = (), end: Sequence[Statement] = ()
) -> T:
    """Have the statements of an operation `run` between others, each together with those before it whose answers nobody awaits."""
    waiting = list(begin)
    try:
        statement = next(work)
        while True:
            waiting.append(statement)
            if begin and not statement.answered:
                statement = work.send([])
                continue
            try:
                rows = await run(waiting)
            except psycopg.Error as error:
                statement = work.throw(error)
            else:
                waiting.clear()
                statement = work.send(rows)
    except StopIteration as done:
        result = done.value
    waiting.extend(end)
    if waiting:
        await run(waiting)
    return result


async def _last_answer(connection: Connection, statements: Sequence[Statement]) -> Rows:
    """Run statements in one round trip; returns the rows of the last. After one that fails none is run."""
    if len(statements) == 1:
        cursor = await _executed(connection, statements[0])
    else:
        async with connection.pipeline():
            for statement in statements[:-1]:
                await _executed(connection, statement)
            cursor = await _executed(connection, statements[-1])
    return await cursor.fetchall() if cursor.description is not None else []


def _executed(connection: Connection, statement: Statement) -> Awaitable[AsyncCursor[tuple[Any, ...]]]:
    return connection.execute(cast(LiteralString, statement.sql), statement.values)
