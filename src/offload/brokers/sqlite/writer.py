"""The one thread of a process that writes to a database file: what has gathered goes into one transaction.

All operations of a group first run as if nothing stood in their way. When one of them meets a conflict the whole group is undone and
run again with care, each operation in a savepoint of its own, so that an error is its own caller's alone.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Sequence
from itertools import chain, groupby, islice
from queue import Empty, SimpleQueue
from typing import Any, cast

from offload.brokers.sqlite import file
from offload.brokers.sqlite.database import Database
from offload.brokers.sqlite.transaction import Joint, Operation, T, Transaction
from offload.brokers.sqlite.wake import Ringer

log = logging.getLogger("offload.sqlite")

HEAVY = 1_000
"""Operations, or jobs to be stored, after which no more are gathered: a bound on how long one transaction holds the lock."""


class Request:
    """An operation, and the future of the loop that waits for its outcome."""

    __slots__ = ("error", "future", "joint", "loop", "operation", "result")

    def __init__(self, operation: Operation[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.operation = operation
        self.joint = cast("Joint[Any, Any]", operation) if isinstance(operation, Joint) else None
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Runs operations of any loop of this process; `close` ends the thread once all that was asked for is done."""

    def __init__(self, database: Database, ringer: Ringer) -> None:
        self._database = database
        self._ringer = ringer
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="offload-sqlite-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Have an operation run; the future ends once its transaction is durable, or was undone by an error."""
        request = Request(operation, asyncio.get_running_loop())
        self._requests.put(request)
        return request.future

    def close(self) -> None:
        """Finish what was asked for and end the thread."""
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            gathered = self._gather()
            requests = [each for each in gathered if each is not None and not each.future.cancelled()]
            if requests:
                self._serve(requests)
            if None in gathered:
                return

    def _gather(self) -> list[Request | None]:
        """All that is asked for by now, waiting for the first."""
        gathered = [self._requests.get()]
        weight = 1
        while weight < HEAVY:
            try:
                request = self._requests.get_nowait()
            except Empty:
                break
            gathered.append(request)
            weight += 1 if request is None or request.joint is None else len(request.joint.items)
        return gathered

    def _serve(self, requests: Sequence[Request]) -> None:
        tx: Transaction | None = None
        try:
            tx = self._commit(requests, careful=False) or self._commit(requests, careful=True)
        except BaseException as error:  # noqa: BLE001  it belongs to the callers
            tx = None
            for request in requests:
                request.error = error
        self._answer(requests)
        if tx is not None:
            try:
                self._ringer.ring(work=tx.work, ended=tx.ended)
                self._look_at_log()
            except Exception:  # what was asked for is done; the thread must live for what comes
                log.exception("after a commit to %s", self._database.path)

    def _commit(self, requests: Sequence[Request], *, careful: bool) -> Transaction | None:
        """Run and commit. None, and nothing done, when what is not careful met anything unexpected."""
        self._database.check()
        with self._database.begun(self._database.writing) as connection:
            tx = Transaction(connection.execute, careful=careful)
            if careful:
                _run_singly(tx, connection, requests)
            elif not _run_together(tx, requests):
                return None
            connection.execute("commit")
            return tx

    def _look_at_log(self) -> None:
        with self._database.writing.lock:
            self._database.checkpointer.look(self._database.writing.connection)

    def _answer(self, requests: Sequence[Request]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Request]] = {}
        for request in requests:
            if isinstance(request.error, sqlite3.Error):
                cause = request.error
                request.error = file.told(cause, self._database.path)
                request.error.__cause__ = cause
            by_loop.setdefault(request.loop, []).append(request)
        for loop, answered in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, answered)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits for the answer any more
                continue


def _resolve(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.future.done():
            continue
        if request.error is None:
            request.future.set_result(request.result)
        else:
            request.future.set_exception(request.error)


def _run_together(tx: Transaction, requests: Sequence[Request]) -> bool:
    """Run all without savepoints. False when one failed; the transaction must be undone then."""
    try:
        for _, group in groupby(requests, key=_likeness):
            _run_alike(tx, list(group))
    except Exception:  # noqa: BLE001  the careful run meets it again and hands it to its caller
        return False
    return True


def _likeness(request: Request) -> object:
    return request if request.joint is None else request.joint.act


def _run_alike(tx: Transaction, requests: Sequence[Request]) -> None:
    """Run a request, or several joint ones of the same kind as one."""
    if len(requests) == 1:
        requests[0].result = requests[0].operation(tx)
        return
    joint = [request.joint for request in requests if request.joint is not None]
    results = iter(joint[0].act(tx, list(chain.from_iterable(each.items for each in joint))))
    for request, each in zip(requests, joint, strict=True):
        request.result = list(islice(results, len(each.items)))


def _run_singly(tx: Transaction, connection: sqlite3.Connection, requests: Sequence[Request]) -> None:
    for request in requests:
        connection.execute("savepoint operation")
        try:
            request.result = request.operation(tx)
        except Exception as error:  # it is its caller's
            if not connection.in_transaction:  # SQLite undid the whole transaction: disk full, an I/O error
                raise
            connection.execute("rollback to operation")
            tx.close_books()
            request.error = error
        connection.execute("release operation")
