"""An app under test: what it enqueued, running what is due, and letting time pass."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from offload.app import Offload
from offload.broker import Feature
from offload.job import State
from offload.portal import sync
from offload.records import Record
from offload.task import Task
from offload.testing.clock import TestClock
from offload.worker import Worker

EVERYTHING = 1_000_000


class Rehearsal:
    """What the pytest fixtures call. Each method has a sync form under the plain name, for tests without an event loop.

    Made inside `app.testing(...)`. Until that ends, `result()` of a job that has not ended raises ResultTimeout at once where no worker
    is at work: nothing would run the job.
    """

    def __init__(self, app: Offload, clock: TestClock) -> None:
        app.producer.clients.rehearsed = True
        self.app = app
        self.clock = clock

    async def aenqueued(self, task: Task[..., Any] | str | None = None) -> list[Record]:
        """The records of what was enqueued, oldest first; of one task only, where it is given, or its name.

        Succeeded jobs stay in sight as long as their `keep` says.
        """
        name = task.name if isinstance(task, Task) else task
        return (await self.app.afind(task=name, limit=EVERYTHING))[::-1]

    enqueued = sync(aenqueued)

    async def adrain(self) -> int:
        """Run all that is due, and all that becomes due by it. Returns how many attempts ran."""
        return await Worker(self.app).drain()

    drain = sync(adrain)

    async def aadvance(self, by: float | timedelta) -> int:
        """Let `by` seconds or a timedelta pass as if a worker were running: each delay, retry and tick comes at its own moment.

        Returns how many attempts ran.
        """
        until = self.clock.now() + (by if isinstance(by, timedelta) else timedelta(seconds=by))
        attempts = await self.adrain()
        while (moment := await self._next_moment()) is not None and moment <= until:
            self.clock.advance(moment - self.clock.now())
            attempts += await self.adrain()
        self.clock.advance(until - self.clock.now())
        return attempts + await self.adrain()

    advance = sync(aadvance)

    async def _next_moment(self) -> datetime | None:
        """When something is next due; what is due already and did not run has its reasons."""
        now = self.clock.now()
        waiting = [record.run_at for record in await self.app.afind(state=State.SCHEDULED, limit=EVERYTHING)]
        ticks = [known.next_at for known in await self.app.aschedules() if not known.paused]
        tokens = [limit.next_at for limit in await self.app.alimits()] if Feature.LIMITS in self.app.broker.features else []
        return min((moment for moment in (*waiting, *ticks, *tokens) if moment is not None and moment > now), default=None)
