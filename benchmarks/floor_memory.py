"""The floor in memory: a deque, and one asyncio task a job or one hop to a thread a batch. What is taken is held until it is done."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from part import Part, Tally, Told

BATCH = 100


class Floor:
    """One deque, and what the worker's loop is woken by."""

    def __init__(self, part: Part, tally: Tally) -> None:  # noqa: ARG002 - as the others are made
        self._tally = tally
        self._ready: deque[int] = deque()
        self._held: list[int] = []
        self._wake: Callable[[], object] = lambda: None

    def enqueue(self, part: Part) -> Told:
        if part.how == "bulk":
            begin = time.monotonic()
            self._ready.extend(range(part.jobs))
            return Told(seconds=time.monotonic() - begin)
        told = Told()
        for n in range(part.jobs):
            begin = time.monotonic()
            self._ready.append(n)
            self._wake()
            told.note(begin)
            time.sleep(part.pause)
        return told

    async def work(self, part: Part, told: Callable[[Callable[[], None]], None]) -> None:
        loop, awake, going = asyncio.get_running_loop(), asyncio.Event(), True

        def stop() -> None:
            nonlocal going
            going = False
            awake.set()

        told(stop)
        self._wake = lambda: loop.call_soon_threadsafe(awake.set)
        run = self._run_tasks if part.kind == "async" else self._run_in_thread
        while going:
            awake.clear()
            self._held = [self._ready.popleft() for _ in range(min(BATCH, len(self._ready)))]
            if self._held:
                await run(self._held)
            elif part.until == "empty":
                return
            else:
                await awake.wait()

    async def _run_tasks(self, numbers: list[int]) -> None:
        async def task(n: int) -> None:
            self._tally.mark(n)

        running = [asyncio.create_task(task(n)) for n in numbers]
        for each in running:
            await each

    async def _run_in_thread(self, numbers: list[int]) -> None:
        def batch() -> None:
            for n in numbers:
                self._tally.mark(n)

        await asyncio.to_thread(batch)

    def left(self, *, kept: bool) -> int:  # noqa: ARG002 - it keeps nothing
        return len(self._ready) + len(self._held)
