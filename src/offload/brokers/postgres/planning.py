"""The schedules of a store: rules, ticks, and those that no worker declares any more.

Whoever changes a schedule holds its row first, and several in the order of their names; so ticks of one schedule follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from offload.broker import Work
from offload.brokers.postgres.enqueueing import store
from offload.brokers.postgres.rows import SECOND, moment, optional_moment, optional_stored, stored
from offload.brokers.postgres.work import Transaction, text
from offload.job import Due, Job, Schedule, WorkerInfo
from offload.records import ScheduleRecord
from offload.upkeep import LOOK_EVERY

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
    paused: bool
    declared: bool
    fired: int
    skipped: int
    absent_since: int | None

    def record(self) -> ScheduleRecord:
        """The schedule as others see it."""
        return ScheduleRecord(
            schedule=_rule(self.rule),
            next_at=optional_moment(self.next_at),
            last_at=optional_moment(self.last_at),
            last_job=self.last_job,
            paused=self.paused,
            declared=self.declared,
            fired=self.fired,
            skipped=self.skipped,
        )


_row = msgspec.json.Decoder(ScheduleRow).decode
_rows = msgspec.json.Decoder(list[ScheduleRow]).decode


def declare(tx: Transaction, schedules: Sequence[tuple[Schedule, datetime | None]]) -> Work[None]:
    """Store the rules of a worker that begins. What is declared already is only read, so that workers starting together do not queue."""
    if not schedules:
        return
    known = {row.name: row for row in _rows((yield from tx.value("schedules")))}
    for schedule, next_at in sorted(schedules, key=lambda each: each[0].name):
        row = known.get(schedule.name)
        if row is None or not row.declared or row.absent_since is not None or _rule(row.rule) != schedule:
            yield from put(tx, schedule, next_at, declared=True)


def put(tx: Transaction, schedule: Schedule, next_at: datetime | None, *, declared: bool) -> Work[None]:
    """Store a rule; an unchanged one keeps its next tick."""
    new = {"rule": text(schedule), "next_at": optional_stored(next_at)}
    tx.work = True
    while True:
        known = yield from _held(tx, schedule.name)
        if known is not None and _rule(known.rule) == schedule:
            yield from tx.post("keep_schedule", name=schedule.name, declared=declared)
        elif known is not None:
            yield from tx.post("change_schedule", name=schedule.name, declared=declared, **new)
        elif not (yield from tx.do("add_schedule", name=schedule.name, declared=declared, **new)):
            continue  # another was faster: its row is there now
        return


def _held(tx: Transaction, name: str) -> Work[ScheduleRow | None]:
    """A schedule, which nobody else changes until the end of the transaction."""
    row = yield from tx.value("hold_schedule", name=name)
    return None if row is None else _row(row)


def records(tx: Transaction) -> Work[list[ScheduleRecord]]:
    """All schedules, by name."""
    return [row.record() for row in _rows((yield from tx.value("schedules")))]


def due(tx: Transaction) -> Work[list[Due]]:
    """What is to be ticked now, by name."""
    return [Due(_rule(rule), moment(next_at)) for rule, next_at in _due((yield from tx.value("due_schedules", now=tx.now)))]


def tick(tx: Transaction, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> Work[bool]:
    """Move on and enqueue, unless another was first or the rule changed."""
    known = yield from _held(tx, due.schedule.name)
    if known is None or known.paused or known.next_at != stored(due.next_at) or _rule(known.rule) != due.schedule:
        return False
    for job in jobs:
        yield from _fire(tx, known.name, job)
    last_at = optional_stored(jobs[-1].run_at) if jobs else None
    yield from tx.post("move_schedule", name=known.name, next_at=optional_stored(next_at), last_at=last_at)
    tx.work = True
    return True


def fire(tx: Transaction, name: str, job: Job) -> Work[str | None]:
    """Enqueue one job of a schedule. None when its overlap forbids it, or there is no such schedule."""
    known = yield from _held(tx, name)
    return None if known is None else (yield from _fire(tx, name, job))


def _fire(tx: Transaction, name: str, job: Job) -> Work[str | None]:
    (id,) = yield from store(tx, [job])
    if id != job.id and job.overlap == "skip":
        yield from tx.post("skipped", name=name)
        return None
    yield from tx.post("fired", name=name, id=id)
    return id


def remove(tx: Transaction, name: str) -> Work[bool]:
    """Remove a schedule. False when there is none."""
    return (yield from tx.do("drop_schedule", name=name))


def pause(tx: Transaction, name: str, next_at: datetime | None, *, paused: bool) -> Work[bool]:
    """Pause a schedule, or resume it with its next tick. False when there is none."""
    tx.work = True
    if paused:
        return (yield from tx.do("pause_schedule", name=name))
    return (yield from tx.do("resume_schedule", name=name, next_at=optional_stored(next_at)))


def prune(tx: Transaction) -> Work[bool]:
    """Once a minute, whatever the number of workers, remove schedules from code that no live session has declared for ten minutes.

    False, and nothing done, when it is not yet time.
    """
    if not (yield from tx.do("pruned", now=tx.now, before=tx.now - LOOK_EVERY)):
        return False
    infos = _infos((yield from tx.value("infos")))
    names = text(sorted({schedule.name for info in infos for schedule, _ in _info(info).schedules}))
    yield from tx.post("schedules_pruned", names=names, now=tx.now, before=tx.now - ABSENCE)
    return True
