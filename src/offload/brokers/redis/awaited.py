"""Waits for jobs to end: one bell for all who wait in an event loop, however many they are, with polling behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from time import monotonic
from uuid import uuid4

from offload.brokers.redis.script import Script
from offload.errors import BrokerError, BrokerUnusable

POLL = (1.0, 2.0)
"""Seconds, at random between the two, after which it looks again though the bell was not rung."""
REST = 4.0
"""How many times as long as a look took it rests before the next, so that looking stays below a fifth of the time."""
SHORT = 0.005
"""Seconds: after a look shorter than this it need not rest."""
PAGE = 500
"""Jobs asked about in one call."""


class Awaited:
    """The jobs whose end is waited for in one event loop."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._name = uuid4().hex
        self._bell = script.key(f"bell:{self._name}")
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._watch: asyncio.Task[None] | None = None

    async def ended(self, ids: Collection[str], timeout: float) -> None:
        """Return when all of `ids` have ended or are unknown, or after `timeout` seconds. Raises BrokerError."""
        loop = asyncio.get_running_loop()
        ends: dict[str, asyncio.Future[None]] = {id: loop.create_future() for id in ids}
        for id, end in ends.items():
            self._waiting.setdefault(id, set()).add(end)
        try:
            await self._ask(list(ends))
            if self._waiting and self._watch is None:
                self._watch = asyncio.create_task(self._listen(), name="offload-awaited")
            done, _ = await asyncio.wait(ends.values(), timeout=timeout)
            for end in done:
                end.result()
        finally:
            for id, end in ends.items():
                self._forget(id, end)

    def _forget(self, id: str, end: asyncio.Future[None]) -> None:
        if not end.cancel() and not end.cancelled():
            end.exception()  # of several that failed alike one was raised
        waiting = self._waiting.get(id, set())
        waiting.discard(end)
        if not waiting:
            self._waiting.pop(id, None)

    async def _ask(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), PAGE):
            for id in await self._script.ask("await", self._name, *ids[start : start + PAGE], patient=True):
                for future in self._waiting.pop(id.decode(), set()):
                    if not future.done():
                        future.set_result(None)

    async def _listen(self) -> None:
        try:
            while self._waiting:
                await self._bell_rung()
                started = monotonic()
                await self._ask(list(self._waiting))
                took = monotonic() - started
                if took > SHORT:
                    await asyncio.sleep(min(REST * took, POLL[0]))  # a blocked event loop makes any look seem long
        except Exception as error:  # noqa: BLE001  it belongs to all who wait
            self._fail(error)
        finally:
            self._watch = None

    async def _bell_rung(self) -> None:
        """Return when the bell was rung, or after a while."""
        pause = random.uniform(*POLL)
        try:
            await self._script.link.pop_marker(self._bell, pause)
        except BrokerUnusable:
            raise
        except BrokerError:  # looking, which comes next, is more patient
            await asyncio.sleep(pause)

    def _fail(self, error: Exception) -> None:
        for future in [future for waiting in self._waiting.values() for future in waiting]:
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(error)

    def close(self) -> None:
        """Stop listening; whoever waits is told."""
        self._fail(BrokerError("the client was closed while the end of jobs was waited for"))
        if self._watch is not None and not self._watch.get_loop().is_closed():
            self._watch.cancel()
