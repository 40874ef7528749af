"""Asks the broker for as many jobs as there is room for, and sleeps when there are none."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from time import monotonic
from typing import Any

from offload.broker import Session
from offload.errors import BrokerError
from offload.job import Isolation
from offload.worker.executor import Executor
from offload.worker.keeper import Keeper
from offload.worker.maintainer import Maintainer
from offload.worker.patience import Patience
from offload.worker.queues import Queues
from offload.worker.settler import Settler

LONGEST_SLEEP = 5.0
"""Seconds after which it asks although nothing woke it."""

MOST_UNSETTLED = 5_000
"""Outcomes not yet settled at which nothing more is fetched: a slow broker or observer must not let them pile up."""

BARREN = 0.05
"""Seconds for which a lane that is full is not searched past again, after a search that found nothing for the others."""


class Fetcher:
    """The one place from which a worker claims jobs."""

    def __init__(
        self, session: Session, queues: Queues, executor: Executor, settler: Settler, keeper: Keeper, maintainer: Maintainer
    ) -> None:
        self._session = session
        self._queues = queues
        self._executor = executor
        self._settler = settler
        self._keeper = keeper
        self._maintainer = maintainer
        self._random = random.Random()
        self._barren_until = 0.0
        self._patience = Patience("fetching")
        self._waiting = Patience("waiting for work")

    async def run(self, until: asyncio.Event, *, burst: bool = False) -> None:
        """Fetch until told to stop; with `burst`, until nothing is ready and nothing runs. Raises SessionLost."""
        stop = asyncio.create_task(until.wait())
        try:
            while not until.is_set():
                self._keeper.came_round()
                self._executor.freed.clear()
                if self._settler.backlog >= MOST_UNSETTLED:
                    await first_of(stop, self._settler.flushed.wait())
                    continue
                limit, room = self._executor.demand()
                if limit <= 0:
                    await first_of(stop, self._executor.freed.wait())
                    continue
                taken = await self.fetch(limit, room)
                if taken is None:
                    continue
                full: list[Isolation] = [isolation for isolation, lane in self._executor.lanes.items() if lane.size and not lane.room]
                if full and not taken:
                    self._barren_until = monotonic() + BARREN
                if taken == limit or (taken and full and monotonic() >= self._barren_until):
                    continue  # there may be more, in the lanes that are not full
                if burst and not taken and await self._nothing_left(stop):
                    return
                await self._sleep(stop, full, any_end=burst)
        finally:
            self._keeper.fetcher_rests()
            stop.cancel()

    async def fetch(self, limit: int, room: Mapping[Isolation, int]) -> int | None:
        """Claim once, by weights in portions, and start what was claimed. Returns how many; while the broker is away None, after a wait."""
        taken = 0
        for queues, share in self._queues.portions(limit, self._random):
            if taken:
                room = self._executor.demand()[1]
            if (most := min(share, limit - taken)) <= 0:
                break
            try:
                leases = await self._session.fetch(queues, most, room)
            except BrokerError as error:
                await asyncio.sleep(self._patience.failed(error))
                return None
            self._patience.succeeded()
            if leases:
                self._executor.start(leases, self._settler)
                taken += len(leases)
        return taken

    async def _nothing_left(self, stop: asyncio.Task[bool]) -> bool:
        """Whether nothing runs and, once all is settled and promoted, nothing is ready."""
        if self._executor.busy:
            return False
        await first_of(stop, self._settler.flushed.wait())
        if not self._settler.flushed.is_set():
            return False
        try:
            await self._maintainer.once()
        except BrokerError as error:
            await asyncio.sleep(self._patience.failed(error))
            return False
        return await self.fetch(*self._executor.demand()) == 0

    async def _sleep(self, stop: asyncio.Task[bool], full: Sequence[Isolation], *, any_end: bool) -> None:
        """Until there may be work, or room in the lanes that were full: jobs for them may be waiting already. Or until `any_end`."""
        barren = self._barren_until - monotonic()
        if full and barren > 0:
            await first_of(stop, self._room_in(full), timeout=barren)
            if self._room(full):
                return
        waits: list[Coroutine[Any, Any, object]] = [self._session.wait(LONGEST_SLEEP)]
        if any_end:
            waits.append(self._executor.freed.wait())
        elif full:
            waits.append(self._room_in(full))
        try:
            await first_of(stop, *waits)
            self._waiting.succeeded()
        except BrokerError as error:
            await asyncio.wait({stop}, timeout=self._waiting.failed(error))
        self._maintainer.poke()

    def _room(self, lanes: Sequence[Isolation]) -> bool:
        return any(self._executor.lanes[isolation].room > 0 for isolation in lanes)

    async def _room_in(self, full: Sequence[Isolation]) -> None:
        while not self._room(full):
            self._executor.freed.clear()
            await self._executor.freed.wait()


async def first_of(stop: asyncio.Task[bool], *waits: Coroutine[Any, Any, object], timeout: float = LONGEST_SLEEP) -> None:
    """Wait until the first of them is done, at most `timeout` seconds; cancel the others but `stop`. Raises what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait({stop, *tasks}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
