"""Offload: the public face for enqueueing, the real worker for running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from part import Part, Tally, Told

from offload import Offload
from offload.job import KEEP_SUCCEEDED, State
from offload.worker import Worker


class OffloadPlayer:
    """An app with two tasks that do nothing but count."""

    def __init__(self, part: Part, tally: Tally) -> None:
        self.app = app = Offload(part.url)
        keep = KEEP_SUCCEEDED if part.kept else 0

        @app.task(name="async", keep=keep)
        async def async_task(n: int) -> None:
            tally.mark(n)

        @app.task(name="sync", keep=keep)
        def sync_task(n: int) -> None:
            tally.mark(n)

        self.task = async_task if part.kind == "async" else sync_task

    def enqueue(self, part: Part) -> Told:
        self.app.counts()  # connects; what is measured is a program that has been running for a while
        if part.how == "async":
            return asyncio.run(self._enqueue_async(part))
        if part.how == "bulk":
            begin = time.monotonic()
            self.app.enqueue_many(self.task.job(n) for n in range(part.jobs))
            return Told(seconds=time.monotonic() - begin)
        told = Told()
        for n in range(part.jobs):
            begin = time.monotonic()
            self.task.enqueue(n)
            told.note(begin)
            time.sleep(part.pause)
        return told

    async def _enqueue_async(self, part: Part) -> Told:
        await self.app.acounts()
        told = Told()
        for n in range(part.jobs):
            begin = time.monotonic()
            await self.task.aenqueue(n)
            told.note(begin)
        await self.app.aclose()
        return told

    async def work(self, part: Part, told: Callable[[Callable[[], None]], None]) -> None:
        worker = Worker(self.app, burst=part.until == "empty")
        told(worker.stop)
        await worker.run()

    def left(self, *, kept: bool) -> int:
        counts = [count for states in self.app.counts().values() for count in states.items()]
        self.app.close()
        return sum(number for state, number in counts if not (kept and state is State.SUCCEEDED))
