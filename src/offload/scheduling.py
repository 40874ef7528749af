"""The schedules of an app: declared in its code, or made and changed at run time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import msgspec

from offload.broker import Feature
from offload.duration import Duration, seconds
from offload.errors import BadDeclaration, BadPayload
from offload.handle import Handle
from offload.ids import new_ids
from offload.job import Draft, Missed, Overlap, Schedule
from offload.limits import given_key
from offload.portal import portal, refuse_inside_loop, sync
from offload.producer import Producer
from offload.records import ScheduleRecord
from offload.schedule import next_tick, validate
from offload.task import Task

T = TypeVar("T", bound=Task[..., Any])


class Scheduling:
    """The schedule functions of an app."""

    producer: Producer
    declared: dict[str, Schedule]
    """Schedules declared in code. Workers make them known to the store and take them away again once none declares them."""

    def cron(
        self, expression: str, *, timezone: str = "UTC", overlap: Overlap = "skip", missed: Missed = "latest", name: str | None = None
    ) -> Callable[[T], T]:
        """Run the task below at the times of a cron expression (five fields, or six with seconds first) in `timezone`.

        Goes above `@app.task`, on a task that needs no arguments; `name` is the schedule's, the task's own unless said. `overlap`
        says what a tick does while the job of an earlier one has not ended; `missed` what becomes of ticks for which no worker
        was there. Raises BadDeclaration for what cannot work.
        """
        if not isinstance(expression, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"@app.cron takes an expression, as in @app.cron('0 9 * * MON'), not {expression!r}")

        def declare(task: T) -> T:
            if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance] - the mistake this is for
                raise BadDeclaration(f"@app.cron({expression!r}) is on a plain function, {task!r}: put @app.cron above @app.task")
            try:
                draft = _plain(name or task.name, task.job())
            except BadPayload as error:
                raise BadDeclaration(f"@app.cron({expression!r}): a schedule passes no arguments, but {error}") from error
            self._declare(
                Schedule(name=name or task.name, draft=draft, cron=expression, timezone=timezone, overlap=overlap, missed=missed)
            )  # fmt: skip
            return task

        return declare

    def schedule(
        self,
        name: str,
        draft: Draft[Any],
        *,
        every: Duration | None = None,
        cron: str | None = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        missed: Missed = "latest",
    ) -> None:
        """Enqueue `draft` again and again: `every` so many seconds (or a timedelta), or at the times of `cron` in `timezone`.

        Called while a module is being imported (at its top level, or from there), it *declares* the schedule in code, with no
        I/O: workers that import the module make it known, and it goes 10 to 11 minutes after the last worker that declared it.
        Called at any other time, also by a script run as `python script.py`, it *stores* the schedule in the broker at once,
        where it stays until `unschedule`; a rule already there under that name is replaced, an unchanged one keeps its next tick.

        The draft's own `delay` and `run_at` have no place here. Raises BadDeclaration for what cannot work.
        """
        rule = _rule(name, draft, every, cron, timezone, overlap, missed)
        if _importing(inspect.currentframe()):
            self._declare(rule)
        else:
            refuse_inside_loop("schedule")
            portal.run(self._store, rule)

    async def aschedule(
        self,
        name: str,
        draft: Draft[Any],
        *,
        every: Duration | None = None,
        cron: str | None = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        missed: Missed = "latest",
    ) -> None:
        """`schedule` for coroutines, which run after the import: the schedule is stored in the broker at once."""
        await self._store(_rule(name, draft, every, cron, timezone, overlap, missed))

    async def aschedules(self) -> list[ScheduleRecord]:
        """All schedules that the store knows, by name; those declared in code once a worker has been started."""
        return await (await self.producer.clients.store()).schedules()

    async def aunschedule(self, name: str) -> bool:
        """Remove a schedule; jobs it has enqueued stay. False when there is none. One declared in code comes back with the next worker."""
        return await (await self.producer.changing()).unschedule(name)

    async def apause_schedule(self, name: str) -> bool:
        """Let a schedule enqueue nothing until `resume_schedule`. False when there is none."""
        return await (await self.producer.changing()).pause_schedule(name, True)

    async def aresume_schedule(self, name: str) -> bool:
        """Let a paused schedule go on with its next tick from now. False when there is none."""
        record = await self._found(name)
        if record is None:
            return False
        store = await self.producer.changing()
        return await store.pause_schedule(name, False, next_tick(record.schedule, self.producer.clients.clock.now()))

    async def arun_schedule_now(self, name: str) -> Handle[Any] | None:
        """Enqueue one extra job of a schedule now; its ticks stay as they are. None when its overlap forbids it.

        Raises BadDeclaration when there is no schedule of that name.
        """
        record = await self._found(name)
        if record is None:
            raise BadDeclaration(f"there is no schedule {name!r}; one declared in code is known once a worker has been started")
        store = await self.producer.changing()
        now = self.producer.clients.clock.now()
        [fresh] = new_ids(1, now)
        rule = record.schedule
        job = msgspec.structs.replace(rule.draft.stamped(fresh, now), schedule=name, overlap=rule.overlap)
        id = await store.fire(name, job)
        return None if id is None else Handle(id, self.producer)

    schedules = sync(aschedules)
    unschedule = sync(aunschedule)
    pause_schedule = sync(apause_schedule)
    resume_schedule = sync(aresume_schedule)
    run_schedule_now = sync(arun_schedule_now)

    def _declare(self, rule: Schedule) -> None:
        validate(rule)
        self.producer.check([Feature.SCHEDULES], f"schedule {rule.name}")
        known = self.declared.setdefault(rule.name, rule)
        if known != rule:
            raise BadDeclaration(f"two schedules are named {rule.name!r}; give one of them a name of its own (name=...)")

    async def _store(self, rule: Schedule) -> None:
        validate(rule)
        self.producer.check([Feature.SCHEDULES], f"schedule {rule.name}")
        store = await self.producer.changing()
        await store.schedule(rule, next_tick(rule, self.producer.clients.clock.now()))

    async def _found(self, name: str) -> ScheduleRecord | None:
        return next((record for record in await self.aschedules() if record.schedule.name == name), None)


def _rule(
    name: str, draft: Draft[Any], every: Duration | None, cron: str | None, timezone: str, overlap: Overlap, missed: Missed
) -> Schedule:  # fmt: skip
    if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise BadDeclaration(f"app.schedule takes a name first, as a text that is not empty, not {name!r}")
    given_key(name, "the name of a schedule")
    if not isinstance(draft, Draft):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise BadDeclaration(f"schedule {name!r} takes what task.job(...) gives, not {draft!r}")
    if draft.id is not None or draft.delay is not None or draft.run_at is not None:
        raise BadDeclaration(f"schedule {name!r}: its ticks give each job its id and time; leave id, delay and run_at out of the draft")
    period = None if every is None else seconds(every, f"schedule {name!r}: every")
    return Schedule(name=name, draft=_plain(name, draft), cron=cron, every=period, timezone=timezone, overlap=overlap, missed=missed)


def _plain(name: str, draft: Draft[Any]) -> Draft[Any]:
    """The draft as stores keep it. Raises BadDeclaration for one that takes what another job returns."""
    if draft.outputs:
        raise BadDeclaration(
            f"schedule {name!r}: its job takes the output of another one, which a schedule has not; let it enqueue a workflow"
        )
    return msgspec.structs.replace(draft, producer=None)


def _importing(frame: FrameType | None) -> bool:
    """Whether the call comes from a module that is being imported just now."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and getattr(frame.f_globals.get("__spec__"), "_initializing", False):
            return True
        frame = frame.f_back
    return False
