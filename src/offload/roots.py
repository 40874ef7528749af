"""Finds the roots of a fall: from parent to parent up to the jobs that failed by themselves, and so keep a later one from running."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from offload.job import State
from offload.records import Record
from offload.wording import error_text

MOST_NAMED = 10
"""The most roots that are named."""
MOST_READ = 1_000
"""The most records that are read: a chain may be long, and a join wide."""
MOST_STEPS = 20
"""The most steps up along the parents that reasons name, where there are too many to read all."""
AT_ONCE = 500
LONGEST_ERROR = 200
"""Characters of an error that are shown among others."""

Get: TypeAlias = Callable[[list[str]], Awaitable[Mapping[str, Record]]]
"""The records of those of some ids that exist; as `Store.get`."""

_FELL = re.compile(r"parent (.+) (?:ended [A-Z]+|was deleted)")
"""The reason of a job that a parent took down."""


@dataclass(frozen=True, slots=True)
class Roots:
    """What keeps a job from being revived alone."""

    failed: tuple[Record, ...] = ()
    """Those that failed by themselves."""
    gone: tuple[str, ...] = ()
    """The ids of those that failed, and of which there is no record any more."""
    partial: bool = False
    """True where not all were read, so that more may have failed."""

    @property
    def told(self) -> str:
        """Who they are, in words; empty where none was found."""
        if self.gone:
            return f"{_jobs(self.gone)}, of which there is no record any more"
        if len(self.failed) == 1 and not self.partial:
            [one] = self.failed
            return f"job {one.id} ({one.task}), which ended {_end(one)}"
        named = "; ".join(f"{each.id} ({each.task}) ended {_end(each)}" for each in self.failed[:MOST_NAMED])
        return f"{_counted(len(self.failed), partial=self.partial)} that failed: {named}{_more(len(self.failed))}" if named else ""

    def advice(self, record: Record) -> str:
        """What revives a job that has them; empty where nothing keeps it from being revived alone."""
        if self.gone:
            return "It cannot be revived: enqueue it anew, with those that it comes after."
        alone = felled_by(record) is None
        if self.partial or len(self.failed) > MOST_NAMED:
            workflow = "" if record.workflow is None else record.workflow.id
            return f"`offload workflows retry {workflow}` revives it with all that failed in its workflow."
        if not self.failed:
            return ""
        ids = [*(each.id for each in self.failed), *([record.id] if alone else [])]
        them = "that one" if len(self.failed) == 1 else "those"
        return f"`offload jobs retry {' '.join(ids)}` revives it with {them}."


def felled_by(record: Record) -> str | None:
    """The id of the parent that took a job down; None where it ended by itself, or has not ended."""
    if record.state is not State.CANCELLED or record.attempt or not record.parents:
        return None
    fell = _FELL.fullmatch(record.reason or "")
    return fell[1] if fell else None


async def roots_of(get: Get, record: Record) -> Roots:
    """The roots of what happened to a job. No call where it has none."""
    failed: dict[str, Record] = {}
    gone: dict[str, None] = {}
    known: dict[str, Record | None] = {}
    level, partial = [record] if _failed(record) else [], False
    while level:
        wanted = [id for id in dict.fromkeys(_above(level)) if id not in known]
        room = MOST_READ - len(known)
        partial = partial or len(wanted) > room
        known |= await _read(get, wanted[:room])
        for each in level:
            named = felled_by(each)
            if named is not None and known.get(named, each) is None:
                gone[named] = None
            elif each.id != record.id and (named is None or (named in known and not _kept_down(each, known))):
                failed[each.id] = each
        level = [parent for id in wanted if (parent := known.get(id)) is not None and _failed(parent)]
    if partial and not failed and not gone and (first := await _named(get, record)) is not None:
        failed[first.id] = first
    return Roots(tuple(failed.values()), tuple(gone), partial)


async def _named(get: Get, record: Record) -> Record | None:
    """Who failed first on the way that reasons name, short also where very many fell; None where it is not, or somebody is gone."""
    for _ in range(MOST_STEPS):
        named = felled_by(record)
        if named is None:
            return record
        parent = (await get([named])).get(named)
        if parent is None:
            return None
        record = parent
    return None


def _failed(record: Record) -> bool:
    return record.state.terminal and record.state is not State.SUCCEEDED


def _above(level: Iterable[Record]) -> Iterable[str]:
    """The parents of those that may have fallen, or cannot be revived, because of one; first the one that is known to have failed."""
    for record in level:
        if record.if_parent_fails == "cancel" and not record.attempt:  # whoever has begun, had no parent that failed
            named = felled_by(record)
            yield from () if named is None else (named,)
            yield from (parent.id for parent in record.parents)


def _kept_down(record: Record, known: Mapping[str, Record | None]) -> bool:
    return any((parent := known.get(id)) is not None and _failed(parent) for id in _above([record]))


async def _read(get: Get, ids: list[str]) -> dict[str, Record | None]:
    found: dict[str, Record | None] = dict.fromkeys(ids)
    for start in range(0, len(ids), AT_ONCE):
        found |= await get(ids[start : start + AT_ONCE])
    return found


def _end(record: Record) -> str:
    """`DEAD: ValueError: no such user`."""
    last = record.errors[-1] if record.errors else None
    said = error_text(last) if last is not None and record.state is not State.CANCELLED else record.reason or ""
    line = said.strip().partition("\n")[0][:LONGEST_ERROR]
    return record.state.value if line.upper() in ("", record.state.value) else f"{record.state.value}: {line}"


def _jobs(ids: tuple[str, ...]) -> str:
    return f"job{'' if len(ids) == 1 else 's'} {', '.join(ids[:MOST_NAMED])}{_more(len(ids))}"


def _more(number: int) -> str:
    return f" and {number - MOST_NAMED:,} more" if number > MOST_NAMED else ""


def _counted(number: int, *, partial: bool) -> str:
    return f"{'at least ' if partial else ''}{number:,} job{'' if number == 1 else 's'}"
