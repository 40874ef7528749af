"""One worker process from its signals to its exit code."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from offload.worker import Worker

log = logging.getLogger("offload.worker")

RECYCLE = 75
"""Exit code that asks the supervisor for a fresh process at once."""


def work(make: Callable[[], Worker]) -> int:
    """Run a worker in this process until it is told to stop: SIGTERM or SIGINT once to finish, twice to release at once.

    `make` builds the worker inside the event loop. uvloop is used where it is installed. Returns the exit code: 0, or RECYCLE.
    """
    ended = _run(_work(make))
    logging.shutdown()
    return RECYCLE if ended == "recycle" else 0


def _run(main: Coroutine[Any, Any, str]) -> str:
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


async def _work(make: Callable[[], Worker]) -> str:
    worker = make()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if sys.platform == "win32":
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(worker.stop))
        else:
            loop.add_signal_handler(number, _stop, worker)
    try:
        return await worker.run()
    finally:
        await worker.app.aclose()


def _stop(worker: Worker) -> None:
    log.warning("worker %s was told to stop; running jobs may end, then it leaves (tell it again to leave at once)", worker.name)
    worker.stop()


def leave(code: int) -> None:
    """End this process now, whatever threads of tasks still run in it; their jobs were released or settled before."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
