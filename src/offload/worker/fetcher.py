"""Asks the broker for as many jobs as there is room for, and sleeps when there are none."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
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
        self._patience = Patience("fetching")

    async def run(self, until: asyncio.Event, *, burst: bool = False) -> None:
        """Fetch until told to stop; with `burst`, until nothing is ready and nothing runs. Raises SessionLost."""
        stop = asyncio.create_task(until.wait())
        try:
            while not until.is_set():
                self._keeper.came_round()
                self._executor.freed.clear()
                limit, room = self._executor.demand()
                if limit <= 0:
                    await first_of(stop, self._executor.freed.wait())
                    continue
                taken = await self.fetch(limit, room)
                full: list[Isolation] = [isolation for isolation in room if self._executor.lanes[isolation].room == 0]
                if taken == limit or (taken and full):
                    continue  # there may be more, in the lanes that are not full
                if burst and not taken and await self._nothing_left():
                    return
                await self._sleep(stop, full)
        finally:
            stop.cancel()

    async def fetch(self, limit: int, room: Mapping[Isolation, int]) -> int:
        """Claim once and start what was claimed. Returns how many; while the broker is away, none, after a wait."""
        try:
            leases = await self._session.fetch(self._queues.order(self._random), limit, room)
        except BrokerError as error:
            await asyncio.sleep(self._patience.failed(error))
            return 0
        self._patience.succeeded()
        if leases:
            self._executor.start(leases, self._settler)
        return len(leases)

    async def _nothing_left(self) -> bool:
        await self._executor.idle()
        await self._settler.flushed.wait()
        await self._maintainer.once()
        limit, room = self._executor.demand()
        return await self.fetch(limit, room) == 0

    async def _sleep(self, stop: asyncio.Task[bool], full: Sequence[Isolation]) -> None:
        """Until there may be work, or room in the lanes that were full: jobs for them may be waiting already."""
        waits: list[Coroutine[Any, Any, object]] = [self._session.wait(LONGEST_SLEEP)]
        if full:
            waits.append(self._room_in(full))
        await first_of(stop, *waits)
        self._maintainer.poke()

    async def _room_in(self, full: Sequence[Isolation]) -> None:
        while all(self._executor.lanes[isolation].room == 0 for isolation in full):
            self._executor.freed.clear()
            await self._executor.freed.wait()


async def first_of(stop: asyncio.Task[bool], *waits: Coroutine[Any, Any, object]) -> None:
    """Wait until the first of them is done, at most LONGEST_SLEEP seconds; cancel the others but `stop`. Raises what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait({stop, *tasks}, timeout=LONGEST_SLEEP, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
