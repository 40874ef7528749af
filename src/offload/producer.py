"""Makes drafts into jobs and enqueues them: the one way by which every job of an app comes into being."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from offload.broker import ASKS, Feature, SqlStore, Store, check
from offload.clients import Clients
from offload.codec import Arguments
from offload.connections import AsyncAdapter, SyncAdapter, adapter_of
from offload.connections.adapter import InPlace
from offload.errors import BadDeclaration, OffloadError
from offload.events import Event, Observers
from offload.ids import new_ids
from offload.job import MOST_ATOMIC, Draft, Job
from offload.joining import Joined, joined, suited, suited_blocking
from offload.portal import portal, refuse_inside_loop, shortened


class Producer:
    """What tasks and handles need of their app."""

    importing_in_child: ClassVar[bool] = False
    """True in a child process of a worker while it imports the app."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        """The way to the broker; another one while the app is under test."""
        self.observers = Observers()
        self.signatures: dict[str, Arguments] = {}
        """Task name to its arguments, to give results their type."""

    async def enqueue(self, drafts: Sequence[Draft[Any]], connection: Any = None) -> list[str]:
        """Enqueue the drafts, in order, each thousand of them atomically, and return an id each.

        On `connection`, or in the transaction that ends the job at work, all are part of that transaction. Else, when a thousand fails,
        those before it stay enqueued. Raises UniqueConflict, IdConflict, Unsupported, BrokerError. An error begins its traceback here.
        """
        return await self.enqueue_jobs(lambda: self._jobs(drafts), connection)

    async def enqueue_jobs(self, make: Callable[[], list[Job]], connection: Any = None) -> list[str]:
        """The same for what makes jobs, of the moment in which it is called, and of the same ids whenever it is."""
        try:
            return await self._enqueue(lambda: self._checked(make()), connection)
        except OffloadError as error:
            raise shortened(error)  # noqa: B904 - the very error

    async def _enqueue(self, make: Callable[[], list[Job]], connection: Any) -> list[str]:
        if (target := self._target(connection)) is not None:
            jobs = make()
            adapter = target.adapter if isinstance(target.adapter, AsyncAdapter) else InPlace(target.adapter)
            store = await suited(adapter, self.clients)
            return self._joined(target, jobs, [await adapter.run(work) for work in _works(store, jobs)])
        jobs = make()  # first of all, for what cannot be is refused whether the broker answers or not
        known = self.clients.anyone()
        client = await self.clients.patient()
        if known is None:
            jobs = make()  # by the broker's clock, which was not known before
        ids: list[str] = []
        for start in range(0, len(jobs), MOST_ATOMIC):
            chunk = jobs[start : start + MOST_ATOMIC]
            stored = await client.enqueue(chunk)
            ids += stored
            if self.observers.observes("enqueued"):
                await self.observers.emit(_enqueued(chunk, stored))
        return ids

    def enqueue_blocking(self, name: str, make: Callable[[], Sequence[Draft[Any]]], connection: Any = None) -> list[str]:
        """The same for the sync method `name`. On a sync `connection` it may be called on a running event loop, too.

        Raises LoopRunning where it would block one otherwise. An OffloadError begins its traceback here, as in the portal.
        """
        return self.enqueue_jobs_blocking(name, lambda: self._jobs(make()), connection)

    def enqueue_jobs_blocking(self, name: str, make: Callable[[], list[Job]], connection: Any = None) -> list[str]:
        """The same for what makes jobs, of the moment in which it is called, and of the same ids whenever it is."""
        if connection is None:
            refuse_inside_loop(name)
        try:
            target = self._target(connection)
            if target is not None:
                return self._enqueue_on(target, name, make)
        except OffloadError as error:
            raise shortened(error)  # noqa: B904 - the very error
        return portal.run(self.enqueue_jobs, make)

    def _enqueue_on(self, target: Joined, name: str, make: Callable[[], list[Job]]) -> list[str]:
        adapter = target.adapter
        if not isinstance(adapter, SyncAdapter):
            raise BadDeclaration(f"{adapter.kind} is used with await; use: await a{name}()")
        jobs = self._checked(make())
        store = suited_blocking(adapter, self.clients)
        return self._joined(target, jobs, [adapter.run(work) for work in _works(store, jobs)])

    async def changing(self) -> Store:
        """The store, to change what is there already. Raises Unsupported, BrokerError, and BadDeclaration in a block that is open."""
        if joined() is not None:
            raise BadDeclaration(
                "inside current.transaction() jobs can be enqueued and looked at; this call is no part of the transaction, and would wait "
                "for what the block has locked until the block ends: make it before or after"
            )
        return await self.clients.store()

    def check(self, asked: Sequence[Feature], what: str) -> None:
        """Raise Unsupported when the broker cannot honour what `what` asks for."""
        check(self.clients.kind, asked, what)

    def _target(self, connection: Any) -> Joined | None:
        """The transaction that jobs are to be part of; None for one of the broker's own.

        Under test, on a broker without transactions, jobs are enqueued at once, as if the caller had committed.
        """
        if connection is None:
            return joined()
        target = Joined(adapter_of(connection))
        return None if self.clients.rehearsed and not issubclass(self.clients.kind, SqlStore) else target

    def _jobs(self, drafts: Sequence[Draft[Any]]) -> list[Job]:
        now = self.clients.clock.now()
        for draft in drafts:
            if draft.outputs:
                raise BadDeclaration(f"the job of {draft.task} takes the output of another one: enqueue both, in a chain or a Workflow")
        return [draft.stamped(id, now) for draft, id in zip(drafts, new_ids(len(drafts), now), strict=True)]

    def _checked(self, jobs: list[Job]) -> list[Job]:
        """The jobs, which the broker can keep. Raises Unsupported where it cannot, BadDeclaration while a child process imports the app."""
        if Producer.importing_in_child:
            raise BadDeclaration(
                "a job was enqueued while a child process of a worker imports this program, as each further one would do again; "
                'put what enqueues below: if __name__ == "__main__":'
            )
        for feature in self.clients.lacking:
            for job in jobs:
                if ASKS[feature](job):
                    self.check([feature], f"job {job.id} of {job.task}")
        return jobs

    def _joined(self, target: Joined, jobs: Sequence[Job], stored: Sequence[list[str]]) -> list[str]:
        """The ids of what was stored; the news waits for the commit, and where that is the caller's nobody learns of it."""
        ids = [id for chunk in stored for id in chunk]
        if self.observers.observes("enqueued"):
            target.enqueued += _enqueued(jobs, ids)
        return ids


def _works(store: SqlStore, jobs: Sequence[Job]) -> list[Any]:
    return [store.enqueue_on(jobs[start : start + MOST_ATOMIC]) for start in range(0, len(jobs), MOST_ATOMIC)]


def enqueued(job: Job) -> Event:
    """The news of a job that was stored."""
    return Event(name="enqueued", id=job.id, task=job.task, queue=job.queue, at=job.enqueued_at)


def _enqueued(jobs: Sequence[Job], stored: Sequence[str]) -> list[Event]:
    """The news of those jobs that were stored under their own id."""
    return [enqueued(job) for job, id in zip(jobs, stored, strict=True) if job.id == id]
