"""Makes drafts into jobs and enqueues them: the one way by which every job of an app comes into being."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from offload.broker import ASKS, Feature, check
from offload.clients import Clients
from offload.codec import Arguments
from offload.errors import BadDeclaration
from offload.events import Event, Observers
from offload.ids import new_ids
from offload.job import MOST_ATOMIC, Draft, Job


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

    async def enqueue(self, drafts: Sequence[Draft[Any]]) -> list[str]:
        """Enqueue the drafts, in order, each thousand of them atomically, and return an id each.

        When a thousand fails, those before it stay enqueued. Raises UniqueConflict, IdConflict, Unsupported, BrokerError.
        """
        if Producer.importing_in_child:
            raise BadDeclaration(
                "a job was enqueued while a child process of a worker imports this program, as each further one would do again; "
                'put what enqueues below: if __name__ == "__main__":'
            )
        clients = self.clients
        now = clients.clock.now()
        jobs = [draft.stamped(id, now) for draft, id in zip(drafts, new_ids(len(drafts), now), strict=True)]
        self._check(jobs)
        client = await clients.client()
        ids: list[str] = []
        for start in range(0, len(jobs), MOST_ATOMIC):
            chunk = jobs[start : start + MOST_ATOMIC]
            stored = await client.enqueue(chunk)
            ids += stored
            if self.observers.observes("enqueued"):
                await self.observers.emit([_enqueued(job) for job, id in zip(chunk, stored, strict=True) if job.id == id])
        return ids

    def check(self, asked: Sequence[Feature], what: str) -> None:
        """Raise Unsupported when the broker cannot honour what `what` asks for."""
        check(self.clients.kind, asked, what)

    def _check(self, jobs: Sequence[Job]) -> None:
        for feature in self.clients.lacking:
            for job in jobs:
                if ASKS[feature](job):
                    self.check([feature], f"job {job.id} of {job.task}")


def _enqueued(job: Job) -> Event:
    return Event(name="enqueued", id=job.id, task=job.task, queue=job.queue, at=job.enqueued_at)
