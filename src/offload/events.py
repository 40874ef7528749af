"""What happened to jobs, told to those who asked with `@app.on(...)`."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import msgspec

from offload.errors import BadDeclaration

EventName: TypeAlias = Literal["enqueued", "started", "succeeded", "retrying", "dead", "cancelled", "expired", "released", "rescued"]
EVENT_NAMES: tuple[str, ...] = get_args(EventName)

log = logging.getLogger("offload.events")

PATIENCE = 10.0
"""Seconds that an async observer may take for one event; jobs are settled meanwhile, but told of later."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to one job, `at` this moment."""

    name: EventName
    id: str
    task: str
    queue: str
    at: datetime
    attempt: int = 0
    """The attempt that it concerns; 0 before the first."""
    reason: str | None = None
    """Why, where the job was ended or handed back: `expired`, `crashed`, the reason of a Discard."""
    error: BaseException | None = None
    """What the attempt raised, where that is at hand. Of its traceback the lines are kept; a middleware sees the local variables too."""
    seconds: float | None = None
    """How long the attempt took; on "retrying" how long it took, not how long it waits."""
    delay: float | None = None
    """Seconds until the job runs again, on "retrying" and "released"."""


Observer: TypeAlias = Callable[[Event], Awaitable[None] | None]
F = TypeVar("F", bound=Callable[[Event], Any])


class Observers:
    """Who asked to be told what."""

    def __init__(self) -> None:
        self._observers: dict[str, list[Observer]] = {}

    def on(self, name: str, observer: Observer) -> None:
        """Tell `observer` of every event of that name. Raises BadDeclaration for an unknown one."""
        if name not in EVENT_NAMES:
            raise BadDeclaration(f"there is no event {name!r}; known are {', '.join(EVENT_NAMES)}")
        self._observers.setdefault(name, []).append(observer)

    def observes(self, name: EventName) -> bool:
        """Whether anyone asked to be told of events of that name, so that others need not be made."""
        return name in self._observers

    async def emit(self, events: Sequence[Event]) -> None:
        """Tell the observers, one after the other. What they raise is logged and changes nothing."""
        for event in events:
            for observer in self._observers.get(event.name, ()):
                try:
                    told = observer(event)
                    if inspect.isawaitable(told):
                        async with asyncio.timeout(PATIENCE):
                            await told
                except Exception:
                    log.exception(
                        "an observer of %r failed on job %s", event.name, event.id, extra={"job_id": event.id, "task": event.task}
                    )
