"""Does the store's upkeep and fires schedules. Every worker does it; none leads."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from offload.broker import Session
from offload.errors import BadDeclaration, BrokerError, SessionLost
from offload.ids import new_ids
from offload.job import Due
from offload.schedule import ticks
from offload.worker.news import News
from offload.worker.patience import Patience

if TYPE_CHECKING:
    from offload.app import Offload

log = logging.getLogger("offload.worker")

MOST_WAIT = 1.0
"""Seconds after which it looks again even if told that nothing is due: what others enqueue may come due sooner."""


class Maintainer:
    """The upkeep of one session."""

    def __init__(self, app: Offload, session: Session, news: News) -> None:
        self._app = app
        self._session = session
        self._news = news
        self._poked = asyncio.Event()
        self._patience = Patience("upkeep")
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._maintain_on(), name="offload-maintainer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop between two operations."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    def poke(self) -> None:
        """Look now: something changed."""
        self._poked.set()

    async def _maintain_on(self) -> None:
        while True:
            self._poked.clear()
            try:
                wait = min(await self.once(), MOST_WAIT) * random.uniform(0.8, 1.0)
                self._patience.succeeded()
            except BrokerError as error:
                wait = self._patience.failed(error)
            except SessionLost:
                return
            try:
                async with asyncio.timeout(wait):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def once(self) -> float:
        """One round. Returns the seconds until it is worth asking again."""
        upkeep = await self._session.maintain()
        if upkeep.touched:
            await self._news.touched(upkeep.touched)
        for due in await self._session.due():
            try:
                await self._fire(due)
            except BadDeclaration as error:  # stored by code or a machine that knew more, such as a time zone missing here
                log.error("schedule %s cannot be ticked by this worker: %s", due.schedule.name, error)
        return upkeep.wait

    async def _fire(self, due: Due) -> None:
        """Enqueue a job for each tick that is to be fired, unless another worker was first."""
        now = self._app.clock.now()
        schedule = due.schedule
        fired = ticks(schedule, due.next_at, now)
        jobs = [
            replace(schedule.draft.stamped(id, now), run_at=tick, schedule=schedule.name, overlap=schedule.overlap)
            for tick, id in zip(fired.fire, new_ids(len(fired.fire), now), strict=True)
        ]
        await self._session.tick(due, fired.next_at, jobs)
