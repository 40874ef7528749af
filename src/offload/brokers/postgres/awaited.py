"""Waits for jobs to end: one look a wake-up for all who wait in an event loop, however many they are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TypeVar

from offload.brokers.postgres.database import Database
from offload.brokers.postgres.reading import ended, get
from offload.errors import BrokerError, BrokerUnusable
from offload.records import Record

T = TypeVar("T")

RECHECK = 1.0
"""Seconds after which it looks again though nothing was heard."""
LINGER = 1.0
"""Seconds for which it goes on asking for notifications when nobody waits, for the next one often comes at once."""
REST = 4.0
"""How many times as long as a look took it rests before the next, so that looking stays below a fifth of the time."""
PAUSE = (0.1, 0.5)
"""Seconds between two tries while the server is away: from, to."""
SHORT = 0.002
"""Seconds: after a look shorter than this it need not rest."""


class Awaited:
    """The jobs whose end is waited for in one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._arrival = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._took = 0.0

    async def finished(self, ids: Sequence[str], timeout: float) -> dict[str, Record]:
        """Wait for jobs to end; see `Store.finished`."""
        deadline = monotonic() + timeout  # real time also under a test's clock: it is the caller who waits
        while True:
            with self.watching(ids) as ends:
                records = await self._tried(lambda: self._database.ask(lambda tx: get(tx, ids)))
                unfinished = [ends[id] for id, record in records.items() if not record.state.terminal]
                left = deadline - monotonic()
                if left <= 0 or not unfinished:
                    return {id: record for id, record in records.items() if record.state.terminal}
                done, _ = await asyncio.wait(unfinished, timeout=left)
                for end in done:
                    end.result()

    @contextmanager
    def watching(self, ids: Collection[str]) -> Generator[dict[str, asyncio.Future[None]]]:
        """Futures that end when their jobs do, or are unknown. An end before the block is for the caller to notice inside it."""
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[None]] = {id: loop.create_future() for id in ids}
        for id, future in futures.items():
            self._waiting.setdefault(id, set()).add(future)
        self._arrival.set()
        if self._watch is None and futures:
            self._watch = loop.create_task(self._look())
        try:
            yield futures
        finally:
            for id, future in futures.items():
                self._forget(id, future)

    def _forget(self, id: str, future: asyncio.Future[None]) -> None:
        future.cancel()
        waiting = self._waiting.get(id, set())
        waiting.discard(future)
        if not waiting:
            self._waiting.pop(id, None)

    async def _look(self) -> None:
        ear = self._database.ear
        try:
            while await self._awaits():
                while self._waiting:
                    await self._tried(lambda: ear.sleep("ended", ear.count("ended"), RECHECK, self._resolve))
                    if self._took > SHORT:
                        await asyncio.sleep(min(REST * self._took, RECHECK))
        except Exception as error:  # noqa: BLE001  it belongs to all who wait
            self._fail(error)
        finally:
            self._watch = None

    async def _awaits(self) -> bool:
        """Whether anybody waits, or comes to wait soon. If not, commits need notify no more."""
        if not self._waiting:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), LINGER)
            except TimeoutError:
                with suppress(BrokerError):  # who is asked to notify stops by itself
                    await self._database.ear.awake("ended")
        return bool(self._waiting)

    async def _tried(self, act: Callable[[], Awaitable[T]]) -> T:
        """Act, again while the server is away, for as long as an enqueue would be tried. Raises BrokerError."""
        deadline: float | None = None
        while True:
            try:
                return await act()
            except BrokerUnusable:
                raise
            except BrokerError:
                deadline = deadline or monotonic() + self._database.address.timeout
                if monotonic() >= deadline:
                    raise
            await asyncio.sleep(random.uniform(*PAUSE))

    async def _resolve(self) -> bool:
        """Look once and tell whose job has ended. True when nobody waits any more."""
        started = monotonic()
        ids = list(self._waiting)
        for id in await self._database.ask(lambda tx: ended(tx, ids)) if ids else ():
            for future in self._waiting.pop(id, set()):
                if not future.done():
                    future.set_result(None)
        self._took = monotonic() - started
        return not self._waiting

    def _fail(self, error: Exception) -> None:
        for future in [future for waiting in self._waiting.values() for future in waiting]:
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(error)

    async def close(self) -> None:
        """Stop looking; whoever waits is told."""
        self._fail(BrokerError("the client was closed while the end of jobs was waited for"))
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
