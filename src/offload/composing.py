"""Chains, groups and workflows: graphs of jobs that are enqueued together, and what is asked of them afterwards."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Generic, TypeAlias, TypeVar, cast, overload

from offload.counted import Counted
from offload.errors import BadDeclaration, IdConflict, OffloadError, ParentNotFound, UniqueConflict
from offload.handle import Handle
from offload.ids import new_ids
from offload.job import MOST_ATOMIC, Draft, IfParentFails, Job, Membership
from offload.joining import joined
from offload.options import short
from offload.portal import portal, sync
from offload.producer import Producer
from offload.records import Filter, Record, Tally
from offload.workflow import MOST_LINKS, Chained, Flow, Graph, Grouped, Leaf, Node, Output, Part, drafts_of, jobs_of

R = TypeVar("R")

MOST_SHOWN = 1_000
"""The most jobs that the record of a workflow holds; `app.find(workflow=...)` gives the others, a page at a time."""
LONGEST_WAIT = 60.0
"""Seconds after which one who waits looks again, for jobs may have been added."""

REFUSALS = (IdConflict, UniqueConflict, ParentNotFound)
"""What keeps jobs from being stored that are as they should be."""

Handles: TypeAlias = "Handle[Any] | Results"
H = TypeVar("H", bound=Handles)


class WorkflowRecord(Tally, frozen=True, kw_only=True):
    """A workflow with its jobs: their states, times and parents."""

    jobs: tuple[Record, ...] = ()
    """In the order in which they were enqueued, newest first; at most 1,000."""


class Results:
    """The jobs of a group, held by the one who wants what they return."""

    def __init__(self, handles: Sequence[Handles]) -> None:
        self.handles = tuple(handles)
        """A handle of each part, in order."""

    def __repr__(self) -> str:
        return f"Results({list(self.handles)!r})"

    async def aresult(self, timeout: float | None = None) -> list[Any]:
        """Wait until all have ended and return what each returned, in order; raises as `Handle.aresult` for the first that failed."""
        clock = asyncio.get_running_loop().time
        deadline = math.inf if timeout is None else clock() + timeout
        return [await each.aresult(None if timeout is None else max(deadline - clock(), 0.0)) for each in self.handles]

    result = sync(aresult)


class Run(Counted):
    """A workflow that was enqueued."""

    kind = "workflow"

    def __init__(self, id: str, producer: Producer | None, graph: Graph | None = None) -> None:
        super().__init__(id, producer)
        self._graph = graph
        self._ends = () if graph is None else tuple(graph.ends()[:MOST_ATOMIC])

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    @overload
    def handle(self, node: Leaf[R]) -> Handle[R]: ...
    @overload
    def handle(self, node: Node[Any]) -> Any: ...
    def handle(self, node: Node[Any]) -> Any:
        """The handle of what `Workflow.add` returned: of its job, or, of a group, `Results`, whose `result()` is a list.

        Raises BadDeclaration for what was not added to this workflow.
        """
        if not isinstance(node, Node):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"handle() takes what add() returned, not {node!r}")
        for leaf in node.ends:
            if leaf.id is None or self._graph not in (None, leaf.graph):
                raise BadDeclaration(f"{leaf} is no part of workflow {self.id}: ask the run of the workflow to which it was added")
        return _handles(node.output, self._producer)

    async def arecord(self) -> WorkflowRecord:
        """All that is known of the workflow and its jobs. Raises JobNotFound once its record is forgotten."""
        found = await self.aprogress()
        jobs = [] if self._producer is None else await (await self._producer.clients.store()).find(Filter(workflow=self.id), MOST_SHOWN)
        return WorkflowRecord(**{name: getattr(found, name) for name in found.__struct_fields__}, jobs=tuple(jobs))

    async def _rest(self, seconds: float) -> None:
        """Wait for the jobs to end for whom nobody waits; where they have, or are not known here, a moment."""
        if not self._ends:
            return await super()._rest(seconds)
        seconds = min(seconds, LONGEST_WAIT)
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        await (await self._needed().clients.store()).finished(self._ends, seconds)
        if clock() < until:
            self._ends = ()
        return None

    record = sync(arecord)


class _Composed(Generic[H]):
    """What chains and groups have in common: each enqueue makes a workflow of its own."""

    parts: tuple[Part, ...]

    async def aenqueue(self, *, connection: Any = None) -> H:
        """Enqueue the jobs; they are durable on return. Gives the handle of the last, or `Results` of a group.

        On `connection` they are part of the transaction that is open there, as by `using(connection=...)`. Of more than a thousand jobs
        each thousand is stored atomically, and nothing runs before all that waits for it is there. Raises BadDeclaration, BrokerError.
        """
        node, sending = self._made()
        await sending.send(connection)
        return _handles(node.output, sending.producer)

    def enqueue(self, *, connection: Any = None) -> H:
        """As `aenqueue`, for sync code. Raises LoopRunning on a running event loop."""
        node, sending = self._made()
        sending.send_blocking(connection)
        return _handles(node.output, sending.producer)

    def _made(self) -> tuple[Node[Any], Sending]:
        graph = Graph()
        node = graph.add(cast("Part", self))
        return node, Sending(graph, "", producer_of(self.parts))


class Chain(_Composed[Handle[Any]], Chained):
    """Jobs that run one after the other. What `chain(...)` gives; enqueueing it gives the handle of the last, or `Results` of a group."""


class Group(_Composed[Results], Grouped):
    """Jobs that run side by side. What `group(...)` gives; enqueueing it gives their `Results`."""


def chain(*parts: Part) -> Chain:
    """Parts, each of which begins when the one before has ended: jobs, as `task.job(...)` gives them, groups, chains, workflows.

    `previous` in the arguments of one stands for what the one before returns: a list, in order, where that is a group. Where one fails,
    those after it are cancelled. Raises BadDeclaration for what cannot be a part.
    """
    return Chain(parts)


def group(*parts: Part) -> Group:
    """Parts that run side by side; what comes after them in a chain begins when all have ended. Raises BadDeclaration."""
    return Group(parts)


class Workflow(Flow):
    """A graph of jobs. Add what it consists of, then enqueue it.

    Any directed graph without cycles can be built: whoever is added waits for those whose output its arguments hold, and for those named
    by `after`. Enqueueing it again, as after an error, repeats the same jobs, which stores nothing twice. With an `id` that holds for
    another one built by the same lines, too, as by a task that is run again; raises IdConflict where its jobs differ.
    """

    def __init__(self, name: str = "", *, id: str | None = None) -> None:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"Workflow takes a name, as in Workflow('video'), not {name!r}")
        if id is not None and not (isinstance(id, str) and id):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"Workflow(id=...) takes a text that is not empty, as in 'video-7', not {id!r}")
        if id is not None:
            short(_numbered(id, MOST_LINKS), "the id of a workflow with the number of a job")
        super().__init__(name, id)
        self._sending: Sending | None = None

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r} of {len(self.graph.leaves)} jobs>"

    @overload
    def add(self, part: Draft[R], *, after: Sequence[Node[Any]] = (), if_parent_fails: IfParentFails = "cancel") -> Leaf[R]: ...
    @overload
    def add(self, part: Part, *, after: Sequence[Node[Any]] = (), if_parent_fails: IfParentFails = "cancel") -> Node[Any]: ...
    def add(self, part: Part, *, after: Sequence[Node[Any]] = (), if_parent_fails: IfParentFails = "cancel") -> Node[Any]:
        """Add a job, or a chain, group or workflow as a whole; returns a node, whose `output` may stand in the arguments of others.

        It begins when those whose outputs its arguments hold, and all of `after`, have ended. With `if_parent_fails="run"` it runs, with
        None for the output of who failed, where it is cancelled otherwise. Raises BadDeclaration for what cannot work.
        """
        if self._sending is not None:
            raise BadDeclaration(f"{self!r} was enqueued already; a job adds to its own workflow by current.workflow.add(...)")
        if self.nested:
            raise BadDeclaration(f"{self!r} was added to another one, as it was then: add all its jobs before that")
        return self.graph.add(part, after, if_parent_fails)

    async def aenqueue(self, *, connection: Any = None) -> Run:
        """Enqueue all its jobs; they are durable on return. As `chain(...).aenqueue`, but for what it gives."""
        sending = self._sent()
        await sending.send(connection)
        return Run(sending.id, sending.producer, self.graph)

    def enqueue(self, *, connection: Any = None) -> Run:
        """As `aenqueue`, for sync code. Raises LoopRunning on a running event loop."""
        sending = self._sent()
        sending.send_blocking(connection)
        return Run(sending.id, sending.producer, self.graph)

    def _sent(self) -> Sending:
        if self._sending is None:
            self._sending = Sending(self.graph, self.name, producer_of([self]), self.id)
        return self._sending


class Sending:
    """A graph on its way to the broker: its jobs keep their ids however often they are sent."""

    def __init__(self, graph: Graph, name: str, producer: Producer | None, id: str | None = None) -> None:
        self.graph = graph
        self.producer = producer
        self._name = name
        self._ids: list[str] = []
        self._named = id is not None
        self.id = id or ""
        if id is not None:
            self._ids = [_numbered(id, number) for number in range(len(graph.leaves))]
        elif producer is not None:
            self.id, *self._ids = new_ids(len(graph.leaves) + 1, producer.clients.clock.now())

    async def send(self, connection: Any) -> None:
        """Enqueue them; on the connection of the caller, where there is one."""
        if self.producer is None:
            return
        try:
            await self.producer.enqueue_jobs(self.jobs, connection)
        except REFUSALS as error:
            if self._may_have_begun(connection):
                await self._take_back()
            raise self._told(error) from None

    def send_blocking(self, connection: Any) -> None:
        """The same for sync code."""
        if self.producer is None:
            return
        try:
            self.producer.enqueue_jobs_blocking("enqueue", self.jobs, connection)
        except REFUSALS as error:
            if self._may_have_begun(connection):
                portal.run(self._take_back)
            raise self._told(error) from None

    def _may_have_begun(self, connection: Any) -> bool:
        """Whether thousands before the one that was refused may be at work. Another program's, by an id of its own, are left alone."""
        return len(self._ids) > MOST_ATOMIC and not self._named and connection is None and joined() is None

    async def _take_back(self) -> None:
        """Stop what has begun."""
        assert self.producer is not None
        await (await self.producer.clients.store()).stop("workflow", self.id)

    def _told(self, error: OffloadError) -> OffloadError:
        """The refusal, in terms of who refers to the workflow by an id of its own."""
        if not self._named or not isinstance(error, IdConflict) or error.job_id not in self._ids:
            return error
        return IdConflict(
            error.job_id,
            f"workflow {self.id!r} was enqueued before, and its job {error.job_id!r} with another task or other arguments; an id is an "
            "idempotency key, so give another workflow one of its own",
        )

    def jobs(self) -> list[Job]:
        """The jobs, enqueued now."""
        assert self.producer is not None
        return jobs_of(self.graph, Membership(self.id, self._name, len(self.graph.leaves)), self._ids, self.producer.clients.clock.now())


def _numbered(id: str, number: int) -> str:
    """The id of a job of the workflow `id`, unless it has one of its own; so that by id they are in their order."""
    return f"{id}:{number:06}"


def producer_of(parts: Sequence[Part]) -> Producer | None:
    """What enqueues the jobs of some parts; None where there are none. Raises BadDeclaration where they belong to several apps."""
    found: list[Producer | None] = list({id(draft.producer): draft.producer for draft in drafts_of(parts)}.values())
    if len(found) > 1 or None in found:
        raise BadDeclaration("the parts of a workflow belong to one app: make all of them by tasks of that app")
    return found[0] if found else None


def _handles(output: Any, producer: Producer | None) -> Any:
    """Handles in the shape of an output."""
    if isinstance(output, Output) and output.leaf is not None and producer is not None:
        return Handle[Any](cast("str", output.leaf.id), producer)
    return Results([_handles(each, producer) for each in cast("list[Any]", output or [])])
