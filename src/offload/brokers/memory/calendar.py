"""The schedules of a memory store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from offload.brokers.memory.enqueueing import store
from offload.brokers.memory.shelf import Shelf
from offload.job import Due, Job, Schedule
from offload.records import ScheduleRecord

ABSENCE = timedelta(minutes=10)
"""How long live sessions must all have been without a declared schedule before it is removed."""
LOOK_EVERY = timedelta(minutes=1)


@dataclass(slots=True)
class Planned:
    """One schedule and where it stands."""

    schedule: Schedule
    next_at: datetime | None
    last_at: datetime | None = None
    last_job: str | None = None
    paused: bool = False
    declared: bool = False
    fired: int = 0
    skipped: int = 0
    absent_since: datetime | None = None

    def record(self) -> ScheduleRecord:
        """What a person sees of it."""
        return ScheduleRecord(
            schedule=self.schedule,
            next_at=self.next_at,
            last_at=self.last_at,
            last_job=self.last_job,
            paused=self.paused,
            declared=self.declared,
            fired=self.fired,
            skipped=self.skipped,
        )


class Calendar:
    """All schedules, by name."""

    def __init__(self) -> None:
        self.planned: dict[str, Planned] = {}
        self._looked: datetime | None = None

    def put(self, schedule: Schedule, next_at: datetime | None, *, declared: bool) -> None:
        """Store a rule; an unchanged one keeps its next tick."""
        known = self.planned.get(schedule.name)
        if known is None:
            self.planned[schedule.name] = Planned(schedule, next_at, declared=declared)
            return
        known.declared, known.absent_since = declared, None
        if known.schedule != schedule:
            known.schedule, known.next_at = schedule, next_at

    def records(self) -> list[ScheduleRecord]:
        """What a person sees of all of them."""
        return [planned.record() for _, planned in sorted(self.planned.items())]

    def due(self, now: datetime) -> list[Due]:
        """What is to be ticked now, by name."""
        return [
            Due(planned.schedule, planned.next_at)
            for _, planned in sorted(self.planned.items())
            if not planned.paused and planned.next_at is not None and planned.next_at <= now
        ]

    def tick(self, due: Due, next_at: datetime | None, jobs: Sequence[Job], shelf: Shelf) -> bool:
        """Move on and enqueue, unless another was first or the rule changed."""
        planned = self.planned.get(due.schedule.name)
        if planned is None or planned.paused or planned.next_at != due.next_at or planned.schedule != due.schedule:
            return False
        for job, id in zip(jobs, store(shelf, jobs), strict=True):
            self._count(planned, job, id)
        planned.next_at = next_at
        if jobs:
            planned.last_at = jobs[-1].run_at
        return True

    def enqueue(self, planned: Planned, job: Job, shelf: Shelf) -> str | None:
        """Enqueue one job of a schedule. None when its overlap forbids it."""
        return self._count(planned, job, store(shelf, [job])[0])

    def _count(self, planned: Planned, job: Job, id: str) -> str | None:
        if id != job.id and job.overlap == "skip":
            planned.skipped += 1
            return None
        planned.fired += 1
        planned.last_job = id
        return id

    def next_moment(self) -> datetime | None:
        """When the next tick is due."""
        return min((p.next_at for p in self.planned.values() if not p.paused and p.next_at is not None), default=None)

    def set_back(self, now: datetime) -> bool:
        """Whether the clock was set back since absent schedules were last looked for."""
        return self._looked is not None and self._looked > now

    def prune(self, now: datetime, declared: set[str]) -> None:
        """Once a minute, remove schedules from code that no live session has declared for ten minutes."""
        if self._looked is not None and timedelta() <= now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        for name, planned in list(self.planned.items()):
            if not planned.declared:
                continue
            if name in declared:
                planned.absent_since = None
            elif planned.absent_since is None:
                planned.absent_since = now
            elif now - planned.absent_since >= ABSENCE:
                del self.planned[name]
