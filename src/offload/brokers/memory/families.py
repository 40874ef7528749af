"""What jobs wait for of their parents, and what becomes of them when those have ended.

Whatever ends, or is revived, is noted as owed to its children, and paid at the end of the operation: all at once, so that it does not
matter in which order one operation ended its jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from offload.brokers.memory.endings import finish, take_back
from offload.brokers.memory.line import Entry
from offload.brokers.memory.moves import join, place
from offload.brokers.memory.shelf import Shelf
from offload.counting import is_complete
from offload.job import State

Fate: TypeAlias = Literal["open", "done", "failed"]


@dataclass(slots=True, eq=False)
class Link:
    """That a job waits for a parent, and what is known of that one."""

    parent: tuple[str, str]
    """Its workflow, which is the child's, and its id."""
    child: Entry
    wanted: bool
    """Whether its result is."""
    fate: Fate = "open"
    input: bytes | None = None
    why: str = ""
    """How it failed, in words."""


def connect(shelf: Shelf, entry: Entry) -> None:
    """Tie a new job to its parents, also those that have ended already, or are yet to come."""
    if entry.job.workflow is None:
        return
    for parent in entry.job.parents:
        link = Link((entry.job.workflow.id, parent.id), entry, wanted=bool(parent.at))
        known = shelf.mate(link.parent)
        if known is not None and known.state.terminal:
            _settle(link, *_fate_of(known))
        entry.links.append(link)
        shelf.links.setdefault(link.parent, []).append(link)


def arrive(shelf: Shelf, entry: Entry) -> None:
    """Have a new or revived job wait for its parents, or take its place where they have ended."""
    failed = _failed(entry)
    if failed is not None:
        entry.felled = True
        finish(shelf, entry, State.CANCELLED, failed.why)
    elif _waits(entry):
        entry.state, entry.pending, entry.reason = State.WAITING, True, None
    else:
        place(shelf, entry, entry.job.run_at)


def free_to_wait(shelf: Shelf, entry: Entry) -> bool:
    """Whether a job that is to be revived would not be cancelled at once, nor wait for a parent that never comes."""
    return _failed(entry) is None and not _waits_in_vain(shelf, entry)


def waits_for_parents(entry: Entry) -> bool:
    """Whether a job stands in no line yet because of its parents."""
    return entry.pending and entry.job.callback is None


def _is_stopped(shelf: Shelf, entry: Entry) -> bool:
    return any(count.stopped for count in shelf.counts.of(entry.job))


def _waits_in_vain(shelf: Shelf, entry: Entry) -> bool:
    """Whether a parent is not there, and no more jobs are to come: so it is after a workflow was given up, or stopped."""
    count = next((count for count in shelf.counts.of(entry.job) if count.kind == "workflow"), None)
    return count is not None and is_complete(count) and any(link.fate == "open" and shelf.mate(link.parent) is None for link in entry.links)


def pay(shelf: Shelf) -> None:
    """Tell children how their parents ended; generation after generation, and in each in the order in which they were stored."""
    while shelf.owed:
        owed, shelf.owed = shelf.owed, {}
        concerned: dict[int, Entry] = {}
        for parent, why in owed.items():
            for link in shelf.links.get(parent, ()):
                _note(shelf, link, shelf.mate(parent), why)
                concerned[link.child.n] = link.child
        for _, child in sorted(concerned.items()):
            _reconsider(shelf, child)


def unknown_parent(shelf: Shelf, entries: Iterable[Entry]) -> tuple[str, str] | None:
    """The first of these jobs that waits for a parent which is not there, and that one's id."""
    for entry in entries:
        for link in entry.links if entry.pending else ():
            if link.fate == "open" and shelf.mate(link.parent) is None:
                return entry.job.id, link.parent[1]
    return None


def _reconsider(shelf: Shelf, child: Entry) -> None:
    """Do what the fates of a job's parents ask for, if it still waits for them, or fell with them."""
    failed = _failed(child)
    if waits_for_parents(child):
        if failed is not None:
            shelf.remember(child)
            child.felled = True
            finish(shelf, child, State.CANCELLED, failed.why)
        elif not _waits(child):
            shelf.remember(child)
            child.pending = False
            join(shelf, child)
            place(shelf, child, child.job.run_at)
    elif child.felled and child.state is State.CANCELLED:
        shelf.remember(child)
        if failed is not None:
            child.reason = failed.why
        elif not _is_stopped(shelf, child) and not _waits_in_vain(shelf, child) and take_back(shelf, child):
            child.felled, child.reason, child.finished_at = False, None, None
            shelf.remember_counts(child.job)
            shelf.counts.revived(child.job, State.CANCELLED)
            shelf.owe(child.job)
            child.seat = shelf.next_number()
            arrive(shelf, child)
            shelf.expiring.push(child)


def _note(shelf: Shelf, link: Link, parent: Entry | None, why: str) -> None:
    was = (link.fate, link.input, link.why)
    shelf.undo.by(lambda: _settle(link, *was))
    if parent is None:  # it was deleted, or leaves no record: then the children know its result
        _settle(link, "failed", None, why)
    elif parent.state.terminal:
        _settle(link, *_fate_of(parent))
    else:
        _settle(link, "open", None, "")


def _settle(link: Link, fate: Fate, result: bytes | None, why: str) -> None:
    link.fate, link.input, link.why = fate, result if link.wanted else None, why


def _fate_of(parent: Entry) -> tuple[Fate, bytes | None, str]:
    if parent.state is State.SUCCEEDED:
        return "done", parent.result, ""
    return "failed", None, f"parent {parent.job.id} ended {parent.state}"


def _failed(entry: Entry) -> Link | None:
    """The first of the parents whose end takes the job down with it."""
    if entry.job.if_parent_fails == "run":
        return None
    return next((link for link in entry.links if link.fate == "failed"), None)


def _waits(entry: Entry) -> bool:
    return any(link.fate == "open" for link in entry.links)
