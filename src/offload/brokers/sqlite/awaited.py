"""Waits for jobs to end: one look a wake-up for all who wait in an event loop, however many they are."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from time import monotonic

import msgspec

from offload.brokers.sqlite.rows import text
from offload.brokers.sqlite.sharing import Shared
from offload.brokers.sqlite.transaction import Transaction
from offload.brokers.sqlite.wake import Ear
from offload.errors import BrokerError

RECHECK = 1.0
"""Seconds after which it looks again though nothing was heard."""
REST = 4.0
"""How many times as long as a look took it rests before the next, so that looking stays below a fifth of the time."""
SHORT = 0.001
"""Seconds: after a look shorter than this it need not rest."""

_ids = msgspec.json.Decoder(list[str]).decode


def ended(tx: Transaction, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that are terminal or unknown."""
    return _ids(tx.value("ended", ids=text(ids)))


class Awaited:
    """The jobs whose end is waited for in one event loop."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._ear = Ear(shared.database, "r")
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._watch: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, ids: Collection[str]) -> Generator[dict[str, asyncio.Future[None]]]:
        """Futures that end when their jobs do, or are unknown. An end before the block is for the caller to notice inside it."""
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[None]] = {id: loop.create_future() for id in ids}
        for id, future in futures.items():
            self._waiting.setdefault(id, set()).add(future)
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
        try:
            while self._waiting:
                heard = self._ear.count
                started = monotonic()
                ids = list(self._waiting)
                for id in await self._shared.read(lambda tx, ids=ids: ended(tx, ids)):
                    for future in self._waiting.pop(id, set()):
                        if not future.done():
                            future.set_result(None)
                took = monotonic() - started
                if took > SHORT:
                    await asyncio.sleep(min(REST * took, RECHECK))  # a blocked event loop makes any look seem long
                if self._waiting:
                    await self._ear.after(heard, RECHECK)
        except Exception as error:  # noqa: BLE001  it belongs to all who wait
            for future in [future for waiting in self._waiting.values() for future in waiting]:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._watch = None

    def close(self) -> None:
        """Stop looking; whoever waits is told."""
        for future in [future for waiting in self._waiting.values() for future in waiting]:
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(BrokerError("the client was closed while the end of jobs was waited for"))
        if self._watch is not None and not self._watch.get_loop().is_closed():
            self._watch.cancel()
        self._ear.close()
