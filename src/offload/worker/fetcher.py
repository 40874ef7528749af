"""Asks the broker for as many jobs as there is room for, and sleeps when there are none."""

from __future__ import annotations

import asyncio
import logging
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

log = logging.getLogger("offload.worker")

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
        self._barren: set[Isolation] = set()
        self._barren_until = 0.0
        self._in_doubt = False
        self._woken = False
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
                if self._in_doubt and not await self._certain():
                    continue
                limit, room = self._executor.demand()
                if limit <= 0:
                    await first_of(stop, self._executor.freed.wait())
                    continue
                if await self._spared(stop, room):
                    continue
                taken = await self.fetch(limit, room)
                self._tell_maintainer()
                if taken is None:
                    continue
                full = self._full(room)
                if full and not taken:
                    self._barren, self._barren_until = set(full), monotonic() + BARREN
                if taken == limit or (taken and full and monotonic() >= self._barren_until):
                    continue  # there may be more, in the lanes that are not full
                if burst and not taken and await self._nothing_left(stop):
                    return
                await self._sleep(stop, full, any_end=burst)
            if self._in_doubt and self._executor.busy:  # what runs may take long, and orphans need not wait for it
                await self._certain()
        finally:
            self._keeper.fetcher_rests()
            stop.cancel()

    async def fetch(self, limit: int, room: Mapping[Isolation, int]) -> int | None:
        """Claim once, by weights in portions, and start what was claimed. Returns how many; while the broker is away None, after a wait."""
        if self._in_doubt and not await self._certain():
            return None
        taken = 0
        for queues, share in self._queues.portions(limit, self._random):
            if taken:
                room = self._executor.demand()[1]
            if (most := min(share, limit - taken)) <= 0:
                break
            try:
                leases = await self._session.fetch(queues, most, room)
            except BrokerError as error:
                self._in_doubt = True
                await asyncio.sleep(self._patience.failed(error))
                return None
            self._patience.succeeded()
            if leases:
                self._executor.start(leases, self._settler)
                taken += len(leases)
        return taken

    async def _certain(self) -> bool:
        """After a fetch that failed, hand back what it may have claimed all the same. False, after a wait, while the broker is away."""
        try:
            orphans = await self._session.retain([*self._executor.held, *self._settler.held])
        except BrokerError as error:
            await asyncio.sleep(self._patience.failed(error))
            return False
        self._in_doubt = False
        if orphans:
            log.warning("fetching: %d job(s) were claimed by calls whose answer never came; they are handed back", orphans)
        return True

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
        self._woken = True

    def _tell_maintainer(self) -> None:
        """What woke the fetcher may be about to come due. Told after it has asked for jobs: those that are ready come first."""
        if self._woken:
            self._woken = False
            self._maintainer.poke()

    async def _spared(self, stop: asyncio.Task[bool], room: Mapping[Isolation, int]) -> bool:
        """Rather than search again so soon past the lanes that are still full, wait a moment for room. False when there is no need to."""
        rest, full = self._barren_until - monotonic(), self._full(room)
        if rest <= 0 or not self._barren.issubset(full):
            return False
        await first_of(stop, self._room_in(full), timeout=rest)
        return True

    def _full(self, room: Mapping[Isolation, int]) -> list[Isolation]:
        """The lanes without room, and those that had none when it was asked for: their jobs were passed over."""
        return [name for name, lane in self._executor.lanes.items() if lane.size and not (lane.room and room.get(name, 0))]

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
