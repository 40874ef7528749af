"""What a job adds to its own workflow and batch: gathered while it runs, and enqueued by the very operation that records its success."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar, overload

import msgspec

from offload.composing import producer_of
from offload.counted import progress_of
from offload.drafts import refuse_stand_in, thousands
from offload.errors import BadDeclaration
from offload.handle import Handle
from offload.ids import new_ids
from offload.job import MOST_ATOMIC, Draft, IfParentFails, Job, Membership
from offload.portal import sync
from offload.producer import Producer
from offload.records import Tally
from offload.workflow import Graph, Leaf, Node, Part, jobs_of, listed

R = TypeVar("R")

After: TypeAlias = "Sequence[Node[Any] | Handle[Any] | str]"


class Additions:
    """The jobs that one attempt adds. They come to nothing when it fails."""

    def __init__(self, job: Job, producer: Producer) -> None:
        self.job = job
        self.producer = producer
        self.graph = Graph()
        self.drafts: list[tuple[str, Draft[Any]]] = []
        """Those of its batch, with their ids."""
        self.closed = False
        """Whether the job has ended, by its transaction, so that nothing can be added to that."""

    @contextmanager
    def whole(self) -> Generator[None]:
        """All that is added in the block or, on an error, nothing of it."""
        before = len(self.drafts)
        try:
            with self.graph.whole():
                yield
        except BaseException:
            del self.drafts[before:]
            raise

    def jobs(self) -> tuple[Job, ...]:
        """All of them, enqueued now."""
        now = self.producer.clients.clock.now()
        batch = [msgspec.structs.replace(draft.stamped(id, now), batch=self.job.batch) for id, draft in self.drafts]
        if self.job.workflow is None:
            return tuple(batch)
        workflow = jobs_of(self.graph, Membership(self.job.workflow.id), new_ids(len(self.graph.leaves), now), now)
        return (*workflow, *batch)

    def admit(self, parts: Sequence[Part]) -> None:
        """Raise BadDeclaration where parts come too late, or belong to another app, whose broker may be another one."""
        if self.closed:
            raise BadDeclaration(f"job {self.job.id} has ended by its transaction already: add inside of it, for it is what stores them")
        if producer_of(parts) not in (None, self.producer):
            raise BadDeclaration(f"what job {self.job.id} adds belongs to another app: add jobs of its own, or enqueue those of the other")

    def check(self) -> None:
        """Raise BadDeclaration where there are more than one operation stores."""
        if len(self.graph.leaves) + len(self.drafts) > MOST_ATOMIC:
            raise BadDeclaration(
                f"a job adds at most {MOST_ATOMIC:,} jobs, since they are stored with its success: add fewer, which add the others in turn"
            )


class OwnWorkflow:
    """The workflow of the job at work: `current.workflow`."""

    def __init__(self, additions: Additions) -> None:
        if additions.job.workflow is None:
            raise BadDeclaration(f"job {additions.job.id} belongs to no workflow: enqueue it in a chain, a group or a Workflow")
        self.id = additions.job.workflow.id
        self._additions = additions

    @overload
    def add(self, part: Draft[R], *, after: After = (), if_parent_fails: IfParentFails = "cancel") -> Leaf[R]: ...
    @overload
    def add(self, part: Part, *, after: After = (), if_parent_fails: IfParentFails = "cancel") -> Node[Any]: ...
    def add(self, part: Part, *, after: After = (), if_parent_fails: IfParentFails = "cancel") -> Node[Any]:
        """Add a job, chain, group or workflow to the workflow of this job, once this job succeeds; as `Workflow.add`.

        `after` may also name jobs that are in the workflow already, by their handles or ids. Raises BadDeclaration.
        """
        additions = self._additions
        additions.admit([part])
        graph = additions.graph
        with additions.whole():
            known = [self._known(each) for each in listed(after)]
            node = graph.add(part, known, if_parent_fails)
            additions.check()
        return node

    def _known(self, job: Node[Any] | Handle[Any] | str) -> Node[Any]:
        return job if isinstance(job, Node) else self.node(job)

    def node(self, job: Handle[R] | str) -> Leaf[R]:
        """A job that is in the workflow already, by its handle or id, so that its `output` can be used."""
        return self._additions.graph.known(job.id if isinstance(job, Handle) else job)


class OwnBatch:
    """The batch of the job at work, or the one that it is a callback of: `current.batch`."""

    def __init__(self, additions: Additions) -> None:
        if additions.job.batch is None:
            raise BadDeclaration(f"job {additions.job.id} belongs to no batch: enqueue it by app.batch(...)")
        self.id = additions.job.batch
        self._additions = additions

    def add(self, draft: Draft[R]) -> Handle[R]:
        """Add a job to the batch once this one succeeds, also where the batch is sealed. Raises BadDeclaration in a callback."""
        [handle] = self.add_many([draft])
        return handle

    def add_many(self, drafts: Iterable[Draft[R]]) -> list[Handle[R]]:
        """Add jobs; as `add`."""
        additions = self._additions
        if additions.job.callback is not None:
            raise BadDeclaration(f"job {additions.job.id} is a callback of its batch, to which it can add no more")
        given = [draft for chunk in thousands(drafts, "current.batch.add_many") for draft in chunk]
        additions.admit(given)
        for draft in given:
            if draft.outputs:
                raise BadDeclaration(f"the job of {draft.task} takes the output of another one: add both by current.workflow.add(...)")
            refuse_stand_in(draft, "the batch")
        ids = [draft.id or id for draft, id in zip(given, new_ids(len(given), additions.producer.clients.clock.now()), strict=True)]
        with additions.whole():
            additions.drafts += zip(ids, given, strict=True)
            additions.check()
        return [Handle(id, additions.producer) for id in ids]

    async def aprogress(self) -> Tally:
        """Its numbers: total, waiting, running, succeeded, dead, cancelled, expired. Raises JobNotFound once its record is forgotten."""
        return await progress_of(self._additions.producer, "batch", self.id)

    progress = sync(aprogress)
