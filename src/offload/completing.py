"""Ends the job at work in a transaction: the rows of its task, its success and the jobs enqueued inside commit together or not at all."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from offload.broker import SqlStore
from offload.clients import Clients
from offload.connections import AsyncAdapter, SyncAdapter, adapter_of
from offload.connections.adapter import InPlace
from offload.connections.faults import cut, gone, passing
from offload.connections.interrupting import interrupt, under_way
from offload.connections.places import see_the_place, see_the_place_blocking, vouch
from offload.errors import BadDeclaration, BrokerError, BrokerUnusable, LoopRunning, SessionLost, Snooze
from offload.events import Event
from offload.job import Done
from offload.joining import joining, ready, ready_blocking, store_of
from offload.portal import portal, refuse_inside_loop

if TYPE_CHECKING:
    from offload.current import Attempt

log = logging.getLogger("offload.worker")

AGAIN_WITHIN = 0.5
"""Seconds within which, at random, a job is run again whose transaction met another one."""
MOST_HANDED_BACK = 1_000
"""So often a job is handed back unharmed; from then on such an error is a failure as any other, for a lock may be one that never passes.

Some minutes of trying, and more than a job comes by that is snoozed or retried by hand, for these are counted too.
"""


class Completion:
    """A transaction that will end the job of an attempt."""

    def __init__(self, attempt: Attempt) -> None:
        if attempt.completed is not None:
            raise BadDeclaration(f"job {attempt.job.id} has ended by its transaction already: a job has one, and after it nothing counts")
        if attempt.completion is not None:
            raise BadDeclaration(f"job {attempt.job.id} has a transaction open already: put all that belongs together into one block")
        self._attempt = attempt
        self._result: bytes | None = None
        self._enqueued: list[Event] = []
        self._begun = False
        self._away = False
        self._driver: Any = None
        self._interrupting = threading.Lock()
        self.clients: Clients = attempt.task.producer.clients
        attempt.completion = self

    def complete(self, value: Any) -> None:
        """Set the result of the job. Raises BadPayload when it cannot be carried."""
        self._result = self._attempt.task.arguments.encode_result(value)

    @property
    def rehearsed(self) -> bool:
        """Whether this is a test on a broker without transactions: there the job is settled as any other, after the caller's commit."""
        return self.clients.rehearsed and not issubclass(self.clients.kind, SqlStore)

    @contextmanager
    def open(self) -> Generator[None]:
        """The time from first to last; a job that nothing of its own kept from its end is handed back unharmed, to run again soon."""
        try:
            with self._attempt.adding().whole():
                yield
        except Exception as error:
            met = passing(error)
            away = self._away or (not self._begun and isinstance(error, BrokerError) and not isinstance(error, BrokerUnusable))
            if not (met or away) or self._attempt.completed is not None or self._handed_back >= MOST_HANDED_BACK:
                raise
            if met:
                self._attempt.in_doubt = False
            why = "its transaction met another one" if met else "its database was away"
            log.warning("job %s is handed back: %s (%s)", self._attempt.job.id, why, error)
            raise Snooze(random.uniform(0.1, 1.0) * AGAIN_WITHIN) from error
        finally:
            self._attempt.completion = None

    @contextmanager
    def begun(self, connection: Any, *, own: bool) -> Generator[None]:
        """The time from the beginning until the commit is sent. What ends our own connection meanwhile commits nothing."""
        self._begun = True
        try:
            yield
        except Exception as error:
            self._away = own and gone(error) and cut(connection)
            raise

    @contextmanager
    def stoppable(self, adapter: SyncAdapter) -> Generator[None]:
        """The time in which the task may wait for a statement, which `interrupt` ends; at its end no such request is on its way."""
        self._driver = adapter.driver
        try:
            yield
        finally:
            with self._interrupting:
                self._driver = None

    @property
    def waits(self) -> bool:
        """Whether the task waits for a statement, as far as its driver tells."""
        return under_way(self._driver)

    def interrupt(self) -> None:
        """Have the statement fail that the task waits for; from another thread, which may wait for the server meanwhile."""
        if self._interrupting.acquire(blocking=False):  # or else it is being done
            try:
                if self._driver is not None:
                    interrupt(self._driver)
            finally:
                self._interrupting.release()

    @property
    def _handed_back(self) -> int:
        """How often the job was claimed without an attempt or a crash that counts, for whatever reason."""
        lease = self._attempt.lease
        return lease.claim - lease.attempt - lease.crashes

    @contextmanager
    def joined(self, adapter: SyncAdapter | AsyncAdapter) -> Generator[None]:
        """The caller's part of it."""
        if self.rehearsed:
            yield
            return
        with joining(adapter) as joined:
            yield
        self._enqueued = joined.enqueued

    def settling(self, store: SqlStore) -> Any:
        """What records the success."""
        return store.settle_on(self._attempt.session_id, self._attempt.lease, self._outcome)

    @cached_property
    def _outcome(self) -> Done:
        """Made once, when the block has ended: jobs that are added get their ids by it."""
        return self._attempt.with_additions(Done(self._result))

    def about_to_commit(self, held: bool) -> None:
        """All is done but the commit. Raises SessionLost when the lease is not held any more."""
        if not held:
            raise SessionLost(f"job {self._attempt.job.id} is no longer this worker's; nothing of its transaction was committed")
        self._attempt.committing()

    def committed(self) -> list[Event]:
        """It is done. Returns the news of what was enqueued."""
        self._attempt.committed(self._outcome, settled=not self.rehearsed)
        return self._enqueued


class Transaction(AbstractContextManager[Any, None]):
    """A block whose commit ends the job, for sync code; see `Current.transaction`.

    While it begins and ends nothing stops the thread, for an exception from outside in the midst of that would leave locks held. The
    interpreter raises such exceptions where a function begins, after a call, and where a loop goes on; never at a return. So they find
    the block closed, or they end it; but for one moment, in which `__exit__` begins: what is open then, `close` rolls back.
    """

    def __init__(self, attempt: Attempt, given: Any) -> None:
        self._attempt = attempt
        self._inside = _inside(attempt, given)

    def __enter__(self) -> Any:
        self._attempt.shield()
        try:
            connection = self._inside.__enter__()
        except BaseException:
            self._attempt.unshield()
            raise
        self._attempt.block = self
        try:
            self._attempt.unshield()
            return connection
        except BaseException as stopped:
            self._attempt.shield()
            self._end(stopped)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._attempt.shield()
        except BaseException as stopped:  # it came at this very moment; the next will not come so soon
            self._attempt.shield()
            self._end(stopped)
            raise
        self._end(error)

    def close(self) -> None:
        """Roll back what is open still, at the end of the attempt."""
        try:
            self._attempt.shield()
        except BaseException:
            self._attempt.shield()
            self._close()
            raise
        self._close()

    def _end(self, error: BaseException | None) -> None:
        try:
            if self._inside.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__):
                raise AssertionError("a transaction does not swallow errors")
        finally:
            self._attempt.unshield()

    def _close(self) -> None:
        try:
            self._inside.gen.close()
        finally:
            self._attempt.unshield()


@contextmanager
def _inside(attempt: Attempt, given: Any) -> Generator[Any]:
    """All of it but the shield."""
    try:
        refuse_inside_loop("transaction")
    except LoopRunning:
        raise LoopRunning(
            "current.transaction() would block the running event loop; use: async with current.atransaction() as connection"
        ) from None
    completion = Completion(attempt)
    with completion.open():
        if given is None:
            store = _own(completion)
            block: AbstractContextManager[Any] = store.transaction()
        else:
            adapter = adapter_of(given)
            if not isinstance(adapter, SyncAdapter):
                raise BadDeclaration(f"{adapter.kind} is used with await; use: async with current.atransaction(...)")
            store = None if completion.rehearsed else ready_blocking(adapter, completion.clients)
            block = adapter.block()
        with block as connection, completion.begun(connection, own=given is None):
            adapter = adapter_of(connection if given is None else given)
            assert isinstance(adapter, SyncAdapter)
            if given is None:
                vouch(adapter, completion.clients)
            elif store is not None:
                see_the_place_blocking(adapter, completion.clients, store)
            with completion.joined(adapter), completion.stoppable(adapter):
                yield connection if given is None else given
            completion.about_to_commit(store is None or adapter.run(completion.settling(store)))
        news = completion.committed()
    if news:
        portal.run(attempt.task.producer.observers.emit, news)


@asynccontextmanager
async def atransaction(attempt: Attempt, given: Any) -> AsyncGenerator[Any]:
    """The same for coroutines. A commit under way is waited for, though the attempt be cancelled meanwhile."""
    completion = Completion(attempt)
    cancelled: BaseException | None = None
    with completion.open():
        store: SqlStore | None
        if given is None:
            store_of(completion.clients, "current.atransaction()")
            client = await completion.clients.client()
            assert isinstance(client, SqlStore)
            store = client
            block: AbstractAsyncContextManager[Any] = store.atransaction()
        else:
            adapter = _awaited(given)
            store = None if completion.rehearsed else await ready(adapter, completion.clients)
            block = adapter.block()
        connection = await block.__aenter__()
        connection = connection if given is None else given
        try:
            with completion.begun(connection, own=given is None):
                adapter = _awaited(connection)
                if given is None:
                    vouch(adapter, completion.clients)
                elif store is not None:
                    await see_the_place(adapter, completion.clients, store)
                try:
                    with completion.joined(adapter):
                        yield connection
                finally:
                    await _at_rest(adapter)
                completion.about_to_commit(store is None or await adapter.run(completion.settling(store)))
        except BaseException as error:
            if await block.__aexit__(type(error), error, error.__traceback__):
                raise AssertionError("a transaction does not swallow errors") from error
            raise
        cancelled = await _to_the_end(block.__aexit__(None, None, None))
        news = completion.committed()
    if cancelled is not None:
        raise cancelled
    if news:
        await attempt.task.producer.observers.emit(news)


def _own(completion: Completion) -> SqlStore:
    """The store, from a thread."""
    store_of(completion.clients, "current.transaction()")
    client = completion.clients.anyone() or portal.run(completion.clients.client)
    assert isinstance(client, SqlStore)
    return client


def _awaited(connection: Any) -> AsyncAdapter:
    adapter = adapter_of(connection)
    return InPlace(adapter) if isinstance(adapter, SyncAdapter) else adapter


async def _at_rest(adapter: AsyncAdapter) -> None:
    """Wait for what tasks that the block has started have begun to enqueue: it would go on after the end, on whatever is open then."""
    if (cancelled := await _to_the_end(adapter.rest())) is not None:
        raise cancelled


async def _to_the_end(commit: Coroutine[Any, Any, Any]) -> BaseException | None:
    """Wait for a commit to end, and raise what it raises. Returns the cancellation that came meanwhile, which is still to be raised."""
    task = asyncio.ensure_future(commit)
    cancelled: BaseException | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    return cancelled
