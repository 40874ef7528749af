"""The schedules of a store: rules, ticks, and those that no worker declares any more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from offload.brokers.sqlite.enqueueing import store
from offload.brokers.sqlite.rows import SECOND, moment, optional_moment, optional_stored, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.job import Due, Job, Schedule, WorkerInfo
from offload.records import ScheduleRecord

ABSENCE = 600 * SECOND
"""How long live sessions must all have been without a declared schedule before it is removed."""

_rule = msgspec.json.Decoder(Schedule).decode
_due = msgspec.json.Decoder(list[tuple[str, int]]).decode
_infos = msgspec.json.Decoder(list[str]).decode
_info = msgspec.json.Decoder(WorkerInfo).decode


class ScheduleRow(msgspec.Struct, array_like=True, frozen=True):
    """A row of `schedules`."""

    name: str
    rule: str
    next_at: int | None
    last_at: int | None
    last_job: str | None
    paused: int
    declared: int
    fired: int
    skipped: int

    def record(self) -> ScheduleRecord:
        """The schedule as others see it."""
        return ScheduleRecord(
            schedule=_rule(self.rule),
            next_at=optional_moment(self.next_at),
            last_at=optional_moment(self.last_at),
            last_job=self.last_job,
            paused=bool(self.paused),
            declared=bool(self.declared),
            fired=self.fired,
            skipped=self.skipped,
        )


_row = msgspec.json.Decoder(ScheduleRow).decode
_rows = msgspec.json.Decoder(list[ScheduleRow]).decode


def put(tx: Transaction, schedule: Schedule, next_at: datetime | None, *, declared: bool) -> None:
    """Store a rule; an unchanged one keeps its next tick."""
    known = _known(tx, schedule.name)
    if known is not None and _rule(known.rule) == schedule:
        tx.do("keep_schedule", name=schedule.name, declared=declared)
    else:
        tx.do("put_schedule", name=schedule.name, rule=text(schedule), next_at=optional_stored(next_at), declared=declared)
    tx.work = True


def _known(tx: Transaction, name: str) -> ScheduleRow | None:
    row = tx.row("schedule", name=name)
    return None if row is None else _row(row[0])


def records(tx: Transaction) -> list[ScheduleRecord]:
    """All schedules, by name."""
    return [row.record() for row in _rows(tx.value("schedules"))]


def due(tx: Transaction, now: int) -> list[Due]:
    """What is to be ticked now, by name."""
    return [Due(_rule(rule), moment(next_at)) for rule, next_at in _due(tx.value("due_schedules", now=now))]


def tick(tx: Transaction, now: int, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> bool:
    """Move on and enqueue, unless another was first or the rule changed."""
    known = _known(tx, due.schedule.name)
    if known is None or known.paused or known.next_at != stored(due.next_at) or _rule(known.rule) != due.schedule:
        return False
    for job in jobs:
        fire(tx, now, known.name, job)
    last_at = optional_stored(jobs[-1].run_at) if jobs else None
    tx.do("move_schedule", name=known.name, next_at=optional_stored(next_at), last_at=last_at)
    tx.work = True
    return True


def fire(tx: Transaction, now: int, name: str, job: Job) -> str | None:
    """Enqueue one job of a schedule. None when its overlap forbids it, or there is no such schedule."""
    if _known(tx, name) is None:
        return None
    (id,) = store(tx, now, [job])
    if id != job.id and job.overlap == "skip":
        tx.do("skipped", name=name)
        return None
    tx.do("fired", name=name, id=id)
    return id


def remove(tx: Transaction, name: str) -> bool:
    """Remove a schedule. False when there is none."""
    return tx.do("drop_schedule", name=name) > 0


def pause(tx: Transaction, name: str, next_at: datetime | None, *, paused: bool) -> bool:
    """Pause a schedule, or resume it with its next tick. False when there is none."""
    tx.work = True
    if paused:
        return tx.do("pause_schedule", name=name) > 0
    return tx.do("resume_schedule", name=name, next_at=optional_stored(next_at)) > 0


def prune(tx: Transaction, now: int) -> None:
    """Remove schedules from code that no live session has declared for ten minutes."""
    tx.do("pruned", now=now)
    infos = _infos(tx.value("infos"))
    names = text(sorted({schedule.name for info in infos for schedule, _ in _info(info).schedules}))
    tx.do("schedules_present", names=names)
    tx.do("schedules_gone", names=names, before=now - ABSENCE)
    tx.do("schedules_absent", names=names, now=now)
