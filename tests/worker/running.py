"""Ways to run a worker and to wait for a job that tests of several files share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from offload import Handle, Record, Worker


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[asyncio.Task[str]]:
    """`worker.run()` beside the block; at its end the worker is told to leave at once, if it still runs."""
    task: asyncio.Task[Any] = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        worker.stop()
        await asyncio.wait({task}, timeout=15)
        assert task.done(), "the worker does not leave"


async def ended(handle: Handle[Any], within: float = 20.0) -> Record:
    """The record of a job, once it has ended."""
    store = await handle._producer.clients.store()
    return (await store.finished([handle.id], within))[handle.id]


async def left(task: asyncio.Task[str], within: float = 10.0) -> str:
    """Why the worker's run ended, once it has."""
    async with asyncio.timeout(within):
        return await task
