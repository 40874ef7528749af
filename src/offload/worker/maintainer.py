"""Does the store's upkeep and fires schedules. Every worker does it; none leads."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import datetime
from time import monotonic
from typing import Self

from msgspec.structs import replace

from offload.broker import Session
from offload.clock import Clock
from offload.errors import BrokerError, IdConflict, SessionLost, UniqueConflict
from offload.ids import new_ids
from offload.job import Due
from offload.schedule import Ticks, ticks
from offload.worker.news import News
from offload.worker.patience import Outage, Patience

log = logging.getLogger("offload.worker")

MOST_WAIT = 1.0
"""Seconds after which it looks again even if told that nothing is due: what others enqueue may come due sooner."""

BREATH = 0.1
"""Seconds between two rounds that are asked for: a worker that is woken for each token of a rate asks each time, and gains nothing."""

UNTICKABLE_WAIT = 0.25
"""Seconds at least between two rounds while a schedule is due that cannot be ticked here."""


class Maintainer:
    """The upkeep of one session."""

    def __init__(self, clock: Clock, session: Session, news: News, outage: Outage) -> None:
        self._clock = clock
        self._session = session
        self._news = news
        self._poked = asyncio.Event()
        self._patience = Patience("upkeep", outage)
        self._untickable: dict[str, str] = {}
        self.task: asyncio.Task[None] | None = None
        """What does the rounds, while the block is open."""

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._maintain_on(), name="offload-maintainer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop between two operations."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})

    def poke(self) -> None:
        """Look now: something changed."""
        self._poked.set()

    async def _maintain_on(self) -> None:
        while True:
            self._poked.clear()
            began = monotonic()
            try:
                wait = min(await self.once(), MOST_WAIT) * random.uniform(0.8, 1.0)
                self._patience.succeeded()
            except BrokerError as error:
                wait = self._patience.failed(error)
            except SessionLost:
                return
            until = monotonic() + wait
            try:
                async with asyncio.timeout(wait):
                    await self._poked.wait()
                    await asyncio.sleep(max(min(began + BREATH, until) - monotonic(), 0.0))
            except TimeoutError:
                continue

    async def catch_up(self, stop: asyncio.Future[bool] | None = None) -> None:
        """Do rounds until none is asked for at once, or `stop` is done. Raises BrokerError, SessionLost."""
        while await self.once() <= 0 and (stop is None or not stop.done()):
            pass

    async def once(self) -> float:
        """One round. Returns the seconds until it is worth asking again."""
        upkeep = await self._session.maintain()
        if upkeep.touched:
            await self._news.touched(upkeep.touched)
        least = 0.0
        for due in await self._session.due():
            now = self._clock.now()
            fired = self._ticks(due, now)
            if fired is None:
                least = UNTICKABLE_WAIT
            else:
                await self._fire(due, fired, now)
        return max(upkeep.wait, least)

    def _ticks(self, due: Due, now: datetime) -> Ticks | None:
        """Which ticks to fire; None where this worker cannot say, and says that once."""
        name = due.schedule.name
        try:
            fired = ticks(due.schedule, due.next_at, now)
        except Exception as error:  # stored by code or a machine that knew more, such as a time zone missing here
            if self._untickable.get(name) != str(error):
                self._untickable[name] = str(error)
                log.exception("schedule %s cannot be ticked by this worker", name)
            return None
        self._untickable.pop(name, None)
        return fired

    async def _fire(self, due: Due, fired: Ticks, now: datetime) -> None:
        """Enqueue a job for each tick that is to be fired, unless another worker was first."""
        schedule = due.schedule
        jobs = [
            replace(schedule.draft.stamped(id, now), run_at=tick, schedule=schedule.name, overlap=schedule.overlap)
            for tick, id in zip(fired.fire, new_ids(len(fired.fire), now), strict=True)
        ]
        try:
            await self._session.tick(due, fired.next_at, jobs)
        except (UniqueConflict, IdConflict) as error:
            log.warning("schedule %s: the tick of %s is left out: %s", schedule.name, due.next_at, error)
            await self._session.tick(due, fired.next_at, ())
