"""Puts jobs into the lines where they stand: ready, scheduled, or before their gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from offload.brokers.memory.line import Entry
from offload.brokers.memory.shelf import Shelf, stored
from offload.gates import KINDS, Ledger, Member, Steps, changed_by, gated, held_back_by, left_when_put_off, member_of, round_of
from offload.job import Job, Kind, Limit, LimitChange, State

T = TypeVar("T")


def place(shelf: Shelf, entry: Entry, run_at: datetime | None) -> None:
    """Put a job in the line its time asks for."""
    entry.due, entry.reason, entry.behind = run_at, None, None
    if run_at is not None and run_at > shelf.clock.now():
        entry.state = State.SCHEDULED
        shelf.scheduled.push(entry)
        leave(shelf, entry, left_when_put_off(entry.claim))
    else:
        make_ready(shelf, entry)


def join(shelf: Shelf, entry: Entry) -> None:
    """One that has never started joins its lane only when it becomes due: behind all who have joined before."""
    if entry.claim == 0:
        entry.seat = shelf.next_number()


def make_ready(shelf: Shelf, entry: Entry, *, keep_place: bool = False) -> None:
    """Put a job into the ready line, or, where a key of its stops it, into its lane."""
    if gated(entry.job) and not _at_gates(shelf, lambda ledger: ledger.enter(member(entry))):
        _wait(entry)
    else:
        _line_up(shelf, entry, keep_place=keep_place)


def _wait(entry: Entry) -> None:
    entry.state, entry.aside, entry.session = State.WAITING, False, None
    entry.lane = member(entry).lane


def _line_up(shelf: Shelf, entry: Entry, *, keep_place: bool = False) -> None:
    entry.state, entry.aside, entry.session, entry.lane = State.READY, False, None, None
    if not keep_place:
        entry.pos, entry.ready_at = shelf.next_number(), shelf.clock.now()
        entry.round = 0 if entry.job.fair_by is None else _round(shelf, entry.job, entry.job.fair_by)
    shelf.ready[entry.job.queue].push(entry)


def _round(shelf: Shelf, job: Job, key: str) -> int:
    """The round in which a job takes its turn."""
    serving = shelf.ready[job.queue].round(-job.priority)
    if serving is None:
        shelf.rounds.pop((job.queue, -job.priority), None)
    lasts = shelf.rounds.setdefault((job.queue, -job.priority), {})
    last = lasts.get(key, 0)
    shelf.undo.by(lambda: lasts.update({key: last}))
    lasts[key] = round = round_of(serving, last)
    return round


def set_aside(shelf: Shelf, entry: Entry) -> None:
    """Put a ready job, taken out of its line, where only those look who know its task."""
    entry.aside = True
    shelf.aside[entry.job.queue, entry.job.task].push(entry)


# -- gates -----------------------------------------------------------------------------------------------------------------


def member(entry: Entry) -> Member:
    """A job as its gates see it."""
    return member_of(entry.job, entry.n, entry.seat, entry)


def _at_gates(shelf: Shelf, act: Callable[[Ledger], Steps[T]]) -> T:
    """Do something at the gates. Jobs that pass thereby go to the end of their ready lines."""

    def passed(member: Member) -> None:
        shelf.remember(member.own)
        _line_up(shelf, member.own)

    result, back = shelf.gating.run(shelf.moment(), passed, act)
    shelf.undo.by(back)
    return result


def starts(shelf: Shelf, entry: Entry) -> bool:
    """Whether the gates of a ready job let it start after all; else it waits again."""
    if not gated(entry.job) or _at_gates(shelf, lambda ledger: ledger.start(member(entry))):
        return True
    _wait(entry)
    return False


def leave(shelf: Shelf, entry: Entry, kinds: Sequence[Kind] = KINDS) -> None:
    """Let go of what a job holds at its gates."""
    if gated(entry.job):
        _at_gates(shelf, lambda ledger: ledger.leave(member(entry), kinds))


def withdraw(shelf: Shelf, entry: Entry) -> None:
    """Take a job out of the lane in which it waits, if it does."""
    if entry.lane is not None:
        entry.lane = None
        _at_gates(shelf, lambda ledger: ledger.withdraw(member(entry)))


def shut(shelf: Shelf, entry: Entry, delay: float) -> None:
    """Hold back, for `delay` seconds, all jobs of a job's keys."""
    until = stored(shelf.clock.now() + timedelta(seconds=delay))
    for gate in held_back_by(entry.job):
        _at_gates(shelf, lambda ledger, gate=gate: ledger.shut(gate, until))


def pump(shelf: Shelf, gates: Iterable[str]) -> None:
    """Let pass who may."""

    def each(ledger: Ledger) -> Steps[None]:
        for gate in gates:
            yield from ledger.pump(gate)

    _at_gates(shelf, each)


def set_limit(shelf: Shelf, key: str, change: LimitChange) -> None:
    """Change what a key allows."""
    for gate in changed_by(key, change):
        _at_gates(shelf, lambda ledger, gate=gate: ledger.change(gate, change))


def declare(shelf: Shelf, limits: Sequence[Limit]) -> None:
    """Take over what a worker declares."""
    pump(shelf, shelf.gating.declare(limits))
