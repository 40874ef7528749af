"""Asks the broker for as many jobs as there is room for, and sleeps when there are none.

It sleeps only after a fetch that took less than its limit and left room in every lane from which it took anything: then nothing is ready
but what was passed over for lack of room, and that room is waited for beside news. What a fetch took is judged by the room that *it*
asked for. While the call is under way jobs end, so that a lane may have room now although the fetch used up all that it knew of.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Iterable, Mapping
from time import monotonic
from typing import Any, NamedTuple

from offload.broker import Session
from offload.errors import BrokerError
from offload.job import Isolation
from offload.worker.executor import Executor
from offload.worker.keeper import Keeper
from offload.worker.maintainer import Maintainer
from offload.worker.patience import Outage, Patience
from offload.worker.queues import Queues
from offload.worker.settler import Settler

log = logging.getLogger("offload.worker")

LONGEST_SLEEP = 5.0
"""Seconds after which it asks although nothing woke it."""

MOST_UNSETTLED = 5_000
"""Outcomes not yet settled at which nothing more is fetched: a slow broker or observer must not let them pile up."""

BARREN = 0.05
"""Seconds for which a lane that is full is not searched past again, after a search that found nothing for the others."""


class Claimed(NamedTuple):
    """What one round of fetching gave."""

    taken: int
    """How many jobs."""
    aside: bool
    """Whether jobs of tasks that it does not know were in the way; there may be others behind them."""
    full: frozenset[Isolation]
    """The lanes in which it used all the room that it asked for: their jobs may have been passed over, and others behind those."""


class Fetcher:
    """The one place from which a worker claims jobs."""

    def __init__(
        self,
        session: Session,
        queues: Queues,
        executor: Executor,
        settler: Settler,
        keeper: Keeper,
        maintainer: Maintainer,
        outage: Outage,
    ) -> None:
        self._session = session
        self._queues = queues
        self._executor = executor
        self._settler = settler
        self._keeper = keeper
        self._maintainer = maintainer
        self._random = random.Random()
        self._barren = frozenset[Isolation]()
        self._barren_until = 0.0
        self._in_doubt = False
        self._woken = False
        self._told: set[tuple[str, str]] = set()
        """The tasks, and their queues, that were said to be unknown."""
        self._patience = Patience("fetching", outage)
        self._waiting = Patience("waiting for work", outage)

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
                claimed = await self._claim(limit, room)
                self._tell_maintainer()
                if claimed is None or claimed.taken == limit or claimed.aside:
                    continue
                if claimed.taken and claimed.full:
                    await self._rest(stop, claimed.full)
                    continue  # there may be more: in those lanes, should they have room now, and behind their jobs in the others
                if claimed.full:
                    self._barren, self._barren_until = claimed.full, monotonic() + BARREN
                if burst and not claimed.taken and await self._nothing_left(stop):
                    return
                await self._sleep(stop, claimed.full, any_end=burst)
            if self._in_doubt and self._executor.busy:  # what runs may take long, and orphans need not wait for it
                await self._certain()
        finally:
            self._keeper.fetcher_rests()
            stop.cancel()

    async def fetch(self, limit: int, room: Mapping[Isolation, int]) -> int | None:
        """Claim once and start what was claimed. Returns how many; while the broker is away None, after a wait."""
        while (claimed := await self._claim(limit, room)) is not None and claimed.aside and not claimed.taken:
            pass
        return None if claimed is None else claimed.taken

    async def _claim(self, limit: int, room: Mapping[Isolation, int]) -> Claimed | None:
        """Claim once, by weights in portions, and start what was claimed. While the broker is away None, after a wait."""
        if self._in_doubt and not await self._certain():
            return None
        taken, aside, full = 0, False, frozenset[Isolation]()
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
            if self._session.unknown:
                aside = True
                self._tell_of_unknown()
            full = self._used_up(room, self._executor.start(leases, self._settler))  # of the last portion, which is of all queues
            taken += len(leases)
        return Claimed(taken, aside, full)

    def _tell_of_unknown(self) -> None:
        """Say of each task that this worker does not know, once, that its jobs wait for another."""
        for queue, task in sorted(self._session.unknown - self._told):
            log.warning(
                "jobs of the task %r in queue %r wait for another worker, as this one does not know it; start one with the app or module "
                "that defines it (`offload doctor` tells how many wait)",
                task, queue, extra={"task": task, "queue": queue},
            )  # fmt: skip
        self._told |= self._session.unknown
        self._session.unknown.clear()

    def _used_up(self, room: Mapping[Isolation, int], taken: Mapping[Isolation, int]) -> frozenset[Isolation]:
        """The lanes whose `room` a fetch used up, or that had none. A lane without any slot never gets room: it is not waited for."""
        return frozenset(name for name, lane in self._executor.lanes.items() if lane.size and taken.get(name, 0) >= room.get(name, 0))

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
        """Whether nothing runs and, once all is settled, promoted, and told to children, nothing is ready."""
        if self._executor.busy:
            return False
        await first_of(stop, self._settler.flushed.wait())
        if not self._settler.flushed.is_set():
            return False
        try:
            await self._maintainer.catch_up(stop)
        except BrokerError as error:
            await asyncio.sleep(self._patience.failed(error))
            return False
        return await self.fetch(*self._executor.demand()) == 0

    async def _rest(self, stop: asyncio.Task[bool], full: frozenset[Isolation]) -> bool:
        """Do not search past full lanes again so soon: wait for room in them, not long. False when there is no need to wait."""
        rest = self._barren_until - monotonic()
        if rest <= 0:
            return False
        await first_of(stop, self._room_in(full), timeout=rest)
        return True

    async def _sleep(self, stop: asyncio.Task[bool], full: frozenset[Isolation], *, any_end: bool) -> None:
        """Until there may be work, or room in the lanes that were full: jobs for them may be waiting already. Or until `any_end`."""
        if full and await self._rest(stop, full) and self._room(full):
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
        full = self._used_up(room, {})
        return self._barren <= full and await self._rest(stop, full)

    def _room(self, lanes: Iterable[Isolation]) -> bool:
        return any(self._executor.lanes[isolation].room > 0 for isolation in lanes)

    async def _room_in(self, full: frozenset[Isolation]) -> None:
        while not self._room(full):
            self._executor.freed.clear()
            await self._executor.freed.wait()


async def first_of(stop: asyncio.Task[bool], *waits: Coroutine[Any, Any, object], timeout: float = LONGEST_SLEEP) -> None:
    """Wait until the first of them is done, at most `timeout` seconds; cancel the others but `stop`. Raises what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait({stop, *tasks}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        late = [task for task in tasks if not task.done()]
        for task in late:
            task.cancel()
        if late:  # else this would put off by a turn of the loop the job that woke us
            await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
