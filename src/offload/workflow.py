"""Graphs of jobs: who waits for whom, and where the result of one goes into the arguments of another. Pure; `composing` enqueues them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar, cast, get_args

import msgspec

from offload.drafts import refuse_stand_in
from offload.errors import BadDeclaration
from offload.job import Draft, IfParentFails, Job, Membership, Parent

R = TypeVar("R")

MOST_LINKS = 100_000
"""The most pairs of parent and child that one workflow may have."""

Path: TypeAlias = "tuple[str | int, ...]"


class Output:
    """Stands in arguments for what a job that has not run yet will return."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: Leaf[Any] | None) -> None:
        self.leaf = leaf
        """The job; None where it is the one before in a chain."""

    def __repr__(self) -> str:
        return "<previous>" if self.leaf is None else f"<output of {self.leaf}>"

    def _refuse(self, *_: object) -> NoReturn:
        what = "previous" if self.leaf is None else f"the output of {self.leaf.draft.task}"
        raise BadDeclaration(
            f"{what} stands for a value that is not there yet: pass it on as an argument, as it is; it has no text, no truth and no parts, "
            "and no key can be made from it"
        )

    __str__ = __bool__ = __iter__ = __len__ = __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __neg__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what libraries ask of anything
            raise AttributeError(name)
        self._refuse()

    def __copy__(self) -> Output:
        return self

    def __deepcopy__(self, memo: object) -> Output:
        return self

    def __eq__(self, other: object) -> bool:
        return self is other if isinstance(other, Output) else self._refuse()

    __hash__ = object.__hash__

    def __format__(self, spec: str) -> str:
        self._refuse()


class Outputs(list[Any]):
    """The outputs of a group, in order: as each of them, without a text."""

    def _refuse(self, *_: object) -> NoReturn:
        raise BadDeclaration(
            "the output of a group stands for values that are not there yet: pass it on as an argument, as it is; it has no text, and no "
            "key can be made from it"
        )

    __str__ = _refuse

    def __format__(self, spec: str) -> str:
        self._refuse()


previous: Any = Output(None)
"""In a chain, what the step before returns: a list, in order, where that is a group."""


class Use(NamedTuple):
    """Where in the arguments of a draft an output stands."""

    at: Path
    output: Output


class Node(Generic[R]):
    """A part of a workflow. `output` stands for what it returns, in the arguments of others."""

    def __init__(self, ends: Sequence[Leaf[Any]], passed: Any) -> None:
        self.ends = tuple(ends)
        """The jobs that whoever comes after it waits for."""
        self.passed = passed
        """What `previous` stands for after it; NOTHING after an empty chain."""

    @property
    def output(self) -> R:
        """A placeholder for what it returns: a list of them where it is a group or a workflow with several ends."""
        return cast("R", None if self.passed is NOTHING else self.passed)


class Leaf(Node[R]):
    """One job of a workflow."""

    def __init__(self, graph: Graph, draft: Draft[R], parents: Mapping[Leaf[Any], Sequence[Path]], if_parent_fails: IfParentFails) -> None:
        super().__init__((self,), Output(self))
        self.graph = graph
        self.draft = draft
        self.parents = parents
        """Whom it waits for, and where in its arguments their results go."""
        self.if_parent_fails: IfParentFails = if_parent_fails
        self.id: str | None = draft.id
        """Known once it is planned."""

    def __repr__(self) -> str:
        return f"<job of {self.draft.task}>"


class _Parts:
    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(_checked(part, type(self).__name__.lower()) for part in parts)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} of {len(self.parts)}>"


class Chained(_Parts):
    """Parts that run one after the other."""


class Grouped(_Parts):
    """Parts that run side by side."""


class Flow:
    """A graph with a name."""

    def __init__(self, name: str, id: str | None = None) -> None:
        self.name = name
        self.id = id
        self.graph = Graph()
        self.nested = False
        """Whether it was added to another one, which got copies of its jobs."""


Part: TypeAlias = "Draft[Any] | Chained | Grouped | Flow"


class Graph:
    """The jobs of a workflow, parents before children: whoever is added can only wait for those that are there. So there are no cycles."""

    def __init__(self) -> None:
        self.leaves: list[Leaf[Any]] = []
        self._ids: set[str] = set()
        self._known: dict[str, Leaf[Any]] = {}
        self._links = 0

    @contextmanager
    def whole(self) -> Generator[None]:
        """All that is added in the block or, on an error, nothing of it."""
        leaves, links, known = len(self.leaves), self._links, len(self._known)
        try:
            yield
        except BaseException:
            del self.leaves[leaves:]
            self._links = links
            self._ids = {leaf.draft.id for leaf in self.leaves if leaf.draft.id is not None}
            self._known = dict(islice(self._known.items(), known))
            raise

    def known(self, id: str) -> Leaf[Any]:
        """A job that is stored already, for others to wait for; or the one of this graph that has the id."""
        if not isinstance(id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"a job of the workflow is named by what add() returned, its handle or its id, not by {id!r}")
        if id in self._ids:
            return next(leaf for leaf in self.leaves if leaf.id == id)
        return self._known.setdefault(id, Leaf(self, Draft(task=f"job {id}", id=id), {}, "cancel"))

    def ends(self) -> list[str]:
        """The ids of the jobs for whom nobody waits, once they are planned."""
        waited_for = {parent for leaf in self.leaves for parent in leaf.parents}
        return [leaf.id for leaf in self.leaves if leaf not in waited_for and leaf.id is not None]

    def add(self, part: Part, after: Sequence[Node[Any]] = (), if_parent_fails: IfParentFails = "cancel") -> Node[Any]:
        """Add a part that begins when all of `after` have ended. Raises BadDeclaration."""
        if if_parent_fails not in get_args(IfParentFails):
            raise BadDeclaration(f"if_parent_fails is 'cancel' or 'run', not {if_parent_fails!r}")
        for node in listed(after):
            if not isinstance(node, Node):
                raise BadDeclaration(f"after= takes what add() returned, as in node = workflow.add(...), not {_named(node)}")
        ends = [leaf for node in after for leaf in node.ends]
        with self.whole():
            return self._expand(_checked(part, "workflow"), _Before(tuple(dict.fromkeys(ends)), NOTHING), if_parent_fails, ())

    def _expand(self, part: Part, before: _Before, policy: IfParentFails, inside: tuple[Flow, ...]) -> Node[Any]:
        match part:
            case Draft():
                return self._leaf(part, before, policy)
            case Chained():
                for each in part.parts:
                    node = self._expand(each, before, policy, inside)
                    before = _Before(node.ends, node.passed)
                return Node(before.ends, before.output)
            case Grouped():
                nodes = [self._expand(each, before, policy, inside) for each in part.parts]
                ends = [leaf for node in nodes for leaf in node.ends] or before.ends
                return Node(tuple(dict.fromkeys(ends)), Outputs(node.output for node in nodes))
            case Flow():
                return self._inline(part, before, policy, inside)

    def _leaf(self, draft: Draft[Any], before: _Before, policy: IfParentFails) -> Leaf[Any]:
        draft = _filled(draft, before.output)
        parents: dict[Leaf[Any], list[Path]] = {}
        for at, output in cast("tuple[Use, ...]", draft.outputs):
            if output.leaf is None:
                raise BadDeclaration(
                    f"the job of {draft.task} takes `previous`, and there is none: it stands for what the step before it in a chain returns"
                )
            parents.setdefault(output.leaf, []).append(at)
        for leaf in before.ends:
            parents.setdefault(leaf, [])
        return self._add(Leaf(self, msgspec.structs.replace(draft, outputs=()), parents, policy))

    def _add(self, leaf: Leaf[Any]) -> Leaf[Any]:
        for parent in leaf.parents:
            if parent.graph is not self:
                raise BadDeclaration(
                    f"{leaf} is to wait for {parent}, which belongs to another workflow: add that one to this by add(), and wait for what "
                    "that returns, or enqueue this one from a job of the other"
                )
        if leaf.id is not None and (leaf.id in self._ids or leaf.id in self._known):
            raise BadDeclaration(f"two jobs of the workflow have the id {leaf.id!r}; add a job once, and use what add() returned for it")
        refuse_stand_in(leaf.draft, "the workflow")
        self._links += len(leaf.parents)
        if self._links > MOST_LINKS:
            raise BadDeclaration(
                f"the workflow has over {MOST_LINKS:,} pairs of a job and one that waits for it: put a job between that joins the many"
            )
        self.leaves.append(leaf)
        if leaf.id is not None:
            self._ids.add(leaf.id)
        return leaf

    def _inline(self, flow: Flow, before: _Before, policy: IfParentFails, inside: tuple[Flow, ...]) -> Node[Any]:
        """Add copies of another graph's jobs; those that wait for nobody begin after what came before."""
        if flow.graph is self or flow in inside:
            raise BadDeclaration(f"workflow {flow.name!r} is to contain itself, which would be a cycle")
        if flow.id is not None:
            raise BadDeclaration(f"workflow {flow.name!r} is to be part of another one, whose id counts: leave out its own id={flow.id!r}")
        flow.nested = True
        copies: dict[Leaf[Any], Leaf[Any]] = {}
        for leaf in flow.graph.leaves:
            parents = {copies[parent]: at for parent, at in leaf.parents.items()} or dict.fromkeys(before.ends, ())
            copies[leaf] = self._add(Leaf(self, leaf.draft, parents, leaf.if_parent_fails if leaf.parents else policy))
        waited_for = {parent for leaf in copies.values() for parent in leaf.parents}
        ends = [leaf for leaf in copies.values() if leaf not in waited_for] or list(before.ends)
        output = Outputs(leaf.output for leaf in ends)
        return Node(ends, output[0] if len(output) == 1 else output)


class _Before(NamedTuple):
    """What comes before a part: whom it waits for, and what `previous` stands for in it."""

    ends: tuple[Leaf[Any], ...]
    output: Any


NOTHING: Any = object()
"""Stands where there is nothing before, for `previous` to stand for."""


def listed(after: Any) -> Any:
    """What was given as `after`, seen to be a list of things. Raises BadDeclaration."""
    if isinstance(after, str) or not isinstance(after, Iterable):
        raise BadDeclaration(f"after= takes a list, as in after=[one, other], not {after!r}")
    return cast("Any", after)


def jobs_of(graph: Graph, workflow: Membership, ids: Sequence[str], now: datetime) -> list[Job]:
    """The jobs of a graph, in the order in which they are to be stored: those that wait before those that they wait for.

    So a workflow of any width can be stored a thousand at a time: nothing runs before all that waits for it is there. `ids` are fresh, one
    for each that has none.
    """
    for leaf, id in zip(graph.leaves, ids, strict=True):
        leaf.id = leaf.id or id
    waiting = [leaf for leaf in reversed(graph.leaves) if leaf.parents]
    first = [leaf for leaf in graph.leaves if not leaf.parents]
    return [_job(leaf, workflow, now) for leaf in (*waiting, *first)]


def _job(leaf: Leaf[Any], workflow: Membership, now: datetime) -> Job:
    job = leaf.draft.stamped(cast("str", leaf.id), now)
    parents = tuple(Parent(cast("str", parent.id), tuple(at)) for parent, at in leaf.parents.items())
    return msgspec.structs.replace(job, workflow=workflow, parents=parents, if_parent_fails=leaf.if_parent_fails)


def drafts_of(parts: Iterable[Part]) -> Iterator[Draft[Any]]:
    """All the drafts in some parts."""
    for part in parts:
        match part:
            case Draft():
                yield part
            case Chained() | Grouped():
                yield from drafts_of(part.parts)
            case Flow():
                yield from (leaf.draft for leaf in part.graph.leaves)


def _named(thing: object) -> str:
    """What was given in place of something else, in words."""
    return f"a job of {thing.task} that was not added" if isinstance(thing, Draft) else repr(thing)


def _checked(part: Part, where: str) -> Part:
    if isinstance(part, Node):
        raise BadDeclaration(f"{part!r} is in a workflow already: pass on its output, or have others come after it, as in after=[node]")
    if not isinstance(part, Draft | Chained | Grouped | Flow):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        hint = f"; put a star before a list of them: {where}(*jobs)" if isinstance(part, Iterable) and where != "workflow" else ""
        raise BadDeclaration(
            f"a {where} is made of jobs, as task.job(...) gives them, of chains, groups and workflows, not of {part!r}{hint}"
        )
    return part


def _filled(draft: Draft[Any], output: Any) -> Draft[Any]:
    """The draft with `previous` put in: one output, or lists of them as deep as groups are nested."""
    uses = cast("tuple[Use, ...]", draft.outputs)
    if output is NOTHING or all(use.output.leaf is not None for use in uses):
        return draft
    payload = msgspec.json.decode(draft.payload)
    filled: list[Use] = []
    for use in uses:
        if use.output.leaf is not None:
            filled.append(use)
            continue
        filled += [Use((*use.at, *path), each) for path, each in _each(output)]
        _put(payload, use.at, _hollow(output))
    return msgspec.structs.replace(draft, payload=msgspec.json.encode(payload), outputs=tuple(filled))


def _each(output: Any) -> Iterator[tuple[Path, Output]]:
    if isinstance(output, list):
        for place, part in enumerate(cast("list[Any]", output)):
            yield from (((place, *path), each) for path, each in _each(part))
    elif output is not None:
        yield (), output


def _hollow(output: Any) -> Any:
    return [_hollow(part) for part in cast("list[Any]", output)] if isinstance(output, list) else None


def _put(tree: Any, at: Path, value: Any) -> None:
    for step in at[:-1]:
        tree = tree[step]
    tree[at[-1]] = value


def plucked(tree: Any, mark: str, at: Path = ()) -> Iterator[tuple[Path, int]]:
    """Put None in the place of each text that begins with the mark; tell where it was, and the number behind the mark."""
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        items = list(cast("dict[Any, Any]", tree).items())
    elif isinstance(tree, list):
        items = list(enumerate(cast("list[Any]", tree)))
    for key, value in items:
        if isinstance(value, str) and value.startswith(mark):
            tree[key] = None
            yield (*at, key), int(value.removeprefix(mark))
        else:
            yield from plucked(value, mark, (*at, key))


def with_inputs(job: Job, inputs: Sequence[bytes | None]) -> bytes:
    """The payload of a job with the results of its parents in their places, where these are empty: a person may have edited it."""
    payload = msgspec.json.decode(job.payload)
    for parent, result in zip(job.parents, inputs, strict=True):
        if result is not None and parent.at:
            value = msgspec.json.decode(result)
            for at in parent.at:
                _fill(payload, at, value)
    return msgspec.json.encode(payload)


def _fill(tree: Any, at: Path, value: Any) -> None:
    try:
        for step in at[:-1]:
            tree = tree[step]
        if tree[at[-1]] is None:
            tree[at[-1]] = value
    except (LookupError, TypeError):
        return  # the arguments were edited, and have no such place any more
