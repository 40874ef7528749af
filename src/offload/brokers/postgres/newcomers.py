"""New jobs of workflows and batches: whom they wait for, where they are counted, and which of them are cancelled at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking, tallies
from offload.brokers.postgres.books import Fate, Key, Kin, related, tallies_of
from offload.brokers.postgres.endings import Ending, record_ends
from offload.brokers.postgres.families import Mate, wait
from offload.brokers.postgres.gating import Past
from offload.brokers.postgres.work import Transaction, text
from offload.counting import is_complete
from offload.errors import ParentNotFound
from offload.gates import straight
from offload.job import Job, State, TallyKind


class ParentRow(NamedTuple):
    """A job that may be a parent, and where it stands."""

    n: int
    workflow: str
    id: str
    state: State | None
    """None of the one that adds them, whose lease this transaction has just ended."""
    queue: str
    task: str
    rank: int
    pos: int
    due: int | None
    aside: bool
    owed: bool
    """Whether not all of its children know yet what became of it."""


_parents = msgspec.json.Decoder(list[ParentRow]).decode
_numbers = msgspec.json.Decoder(list[int]).decode


def hold(tx: Transaction, sought: Sequence[Mate]) -> Work[dict[Mate, ParentRow]]:
    """Find parents, and hold them where they stand: neither do they end before this transaction does, nor are they revived."""
    parents: dict[Mate, ParentRow] = {}
    left = list(sought)
    while left:
        found = _parents((yield from tx.value("parents", parents=text(left))))
        if not found:
            break
        held = {row.n for row in found if row.state is None}
        held.update(_numbers((yield from tx.value("hold_parents", places=text([row for row in found if row.n not in held])))))
        parents |= {(row.workflow, row.id): row for row in found if row.n in held}
        left = [(row.workflow, row.id) for row in found if row.n not in held]  # they have moved since they were read
    return parents


def hold_for(tx: Transaction, added: Iterable[Job]) -> Work[None]:
    """Hold the parents of jobs that are to be added."""
    yield from hold(tx, list({(job.workflow.id, each.id): None for job in added if job.workflow is not None for each in job.parents}))


class Newcomers:
    """The new jobs of one operation."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._jobs: Sequence[Job] = ()
        self._parents: dict[Mate, ParentRow] = {}
        self._own: dict[Mate, bool] = {}
        """Those that this operation has added, and whether they were cancelled at once."""
        self._growing: dict[str, bool] = {}
        """The workflows, and whether more of each were to come than were there."""
        self._begun: set[Key] = set()
        self._numbers: list[int] = []
        """Those of the workflows that were begun, which they are given in the order in which their first jobs come."""
        self._links: list[tuple[Any, ...]] = []
        self._children: list[tuple[Any, ...]] = []
        self._pending: dict[str, list[tuple[int, Past]]] = {"parents": [], "batch": []}
        self._ended: list[Ending] = []
        self._added: list[int] = []

    def begin(self, jobs: Sequence[Job], known: Mapping[str, Any], *, joint: bool) -> Work[None]:
        """Learn what there is of their workflows and batches, and keep it as it is. `known` are those of them that are there already.

        Their gates are locked first, then parents where they stand, then what they are counted in.
        """
        self._jobs = [job for job in jobs if related(job)]
        if not self._jobs:
            return
        if not joint:
            yield from locking.lock(self._tx, [*locking.gates_of(jobs), *locking.lines_of(jobs)])
        new = {job.id for job in self._jobs if job.id not in known}
        mates = {(job.workflow.id, each.id): None for job in self._jobs if job.workflow is not None for each in job.parents}
        sought = [mate for mate in mates if mate[1] not in new]
        self._parents = yield from hold(self._tx, sought)
        yield from self._count()
        missing = [mate for mate in sought if mate not in self._parents and ("workflow", mate[0]) not in self._begun]
        self._parents |= yield from hold(self._tx, missing)  # a commit may have brought them meanwhile; from here on none can

    def _count(self) -> Work[None]:
        names: dict[Key, str] = {("workflow", job.workflow.id): job.workflow.name for job in self._jobs if job.workflow is not None}
        yield from tallies.lock(self._tx, [key for job in self._jobs for key in tallies_of(job)])
        counts = self._tx.books.counts
        new: list[tuple[TallyKind, str, str]] = [(kind, id, name) for (kind, id), name in sorted(names.items()) if counts[kind, id] is None]
        if new:
            self._begun |= yield from tallies.begin(self._tx, new)
            self._numbers = sorted(count.n for key in self._begun if (count := counts[key]) is not None)
        self._growing = {id: key in self._begun or not _complete(self._tx, key) for key in names for id in [key[1]]}

    def add(self, n: int, job: Job, behind: str | None, adder: Job | None) -> bool:
        """Count a new job, and decide whether it waits. True when it is cancelled at once. Raises BatchClosed."""
        self._number(job)
        stopped = tallies.join(self._tx, job, adder)
        kin, why = self._connect(n, job)
        ended, felled = stopped is not None, False
        if stopped is None and behind is None:
            if job.callback is not None:
                self._pending["batch"].append((n, Past()))
            elif kin is not None and kin.falls:
                ended = felled = True
            elif kin is not None and kin.open:
                self._pending["parents"].append((n, Past()))
        if kin is not None:
            self._children.append((*kin._replace(felled=felled), straight(job)))
        if ended:
            self._ended.append(Ending(n, job, Past(), State.CANCELLED, stopped or why))
        if job.workflow is not None:
            self._own[job.workflow.id, job.id] = ended
        self._added.append(n)
        return ended

    def _number(self, job: Job) -> None:
        key: Key | None = None if job.workflow is None else ("workflow", job.workflow.id)
        count = self._tx.books.counts[key] if key is not None and key in self._begun else None
        if count is not None and count.total == 0:
            count.n = self._numbers.pop(0)

    def _connect(self, n: int, job: Job) -> tuple[Kin | None, str | None]:
        """Tie a job to its parents. Returns what that comes to, and how the first of those failed that have."""
        if job.workflow is None or not job.parents:
            return None, None
        fates: list[Fate] = []
        first: str | None = None
        for place, parent in enumerate(job.parents):
            mate = (job.workflow.id, parent.id)
            fate, why = self._fate(mate)
            fates.append(fate)
            first = first or why
            own = (fate, why) if self._told_apart(mate) else (None, None)
            self._links.append((n, place, parent.id, job.workflow.id, bool(parent.at), *own))
        return Kin(n, fates.count("open"), fates.count("failed"), job.if_parent_fails == "run", felled=False), first

    def _fate(self, mate: Mate) -> tuple[Fate, str | None]:
        """What became of a parent so far, and how it failed."""
        if mate in self._own:
            return ("failed", f"parent {mate[1]} ended {State.CANCELLED}") if self._own[mate] else ("open", None)
        row = self._parents.get(mate)
        if row is None or row.state is None or not row.state.terminal:
            return "open", None
        return ("done", None) if row.state is State.SUCCEEDED else ("failed", f"parent {row.id} ended {row.state}")

    def _told_apart(self, mate: Mate) -> bool:
        """Whether children are still to be told what became of a parent though this new one knows it from the start."""
        return self._own[mate] if mate in self._own else mate in self._parents and self._parents[mate].owed

    @property
    def ended(self) -> set[int]:
        """Those, yet to be written, that were cancelled at once."""
        return {ending.n for ending in self._ended}

    @property
    def pending(self) -> set[int]:
        """Those, yet to be written, that wait for parents or a batch."""
        return {n for waiting in self._pending.values() for n, _ in waiting}

    def write(self) -> Work[None]:
        """Write what was decided, once the jobs are stored."""
        if self._children:
            yield from self._tx.post("add_children", children=text(self._children))
            yield from self._tx.post("add_links", links=text(self._links))
        for what, waiting in self._pending.items():
            yield from wait(self._tx, waiting, what)
        yield from record_ends(self._tx, self._ended)
        self._children, self._links, self._ended, self._pending = [], [], [], {"parents": [], "batch": []}

    def end(self) -> Work[None]:
        """Nobody may wait for a parent that never comes, once a workflow is complete. Raises ParentNotFound.

        Parents may come after those who wait for them, as long as more are to come. A workflow of whose jobs none was stored, as others
        stand for them, is not begun.
        """
        for kind, id in self._begun:
            count = self._tx.books.counts[kind, id]
            if count is not None and count.total == 0:
                self._tx.books.counts[kind, id] = None
                yield from self._tx.post("drop_tally", kind=kind, id=id)
        for id, grew in self._growing.items():
            if not _complete(self._tx, ("workflow", id)):
                continue
            if grew:
                missing = yield from self._tx.row("missing_parent", workflow=id)
            else:
                missing = yield from self._tx.row("missing_parent_among", workflow=id, ns=text(self._added))
            if missing is not None:
                raise ParentNotFound(*missing)


def _complete(tx: Transaction, key: Key) -> bool:
    count = tx.books.counts[key]
    return count is not None and is_complete(count)
