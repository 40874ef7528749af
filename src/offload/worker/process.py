"""One worker process from its signals to its exit code."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from offload.worker import Worker

log = logging.getLogger("offload.worker")

RECYCLE = 75
"""Exit code that asks the supervisor for a fresh process at once."""


def work(make: Callable[[], Worker]) -> int:
    """Run a worker in this process until it is told to stop: SIGTERM or SIGINT once to finish, twice to release at once.

    SIGHUP, of a closed terminal or a supervisor that died, may come several times and means once to finish.

    `make` builds the worker inside the event loop. uvloop is used where it is installed. Returns the exit code: 0, or RECYCLE.
    """
    told: list[int] = []
    ended = _run(_work(make, told))
    logging.shutdown()
    return RECYCLE if ended == "recycle" and not told else 0


def _run(main: Coroutine[Any, Any, str]) -> str:
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


async def _work(make: Callable[[], Worker], told: list[int]) -> str:
    """Run the worker; `told` gets the signals that come, also those that come too late for the loop, whose own handlers go with it."""
    worker = make()
    loop = asyncio.get_running_loop()

    def stop(number: int, _: object) -> None:
        told.append(number)
        if not loop.is_closed():
            loop.call_soon_threadsafe(_stop, worker)

    def stop_once(number: int, frame: object) -> None:
        if not told:
            stop(number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, stop_once)
    try:
        ended = await worker.run()
        log.info("worker %s has left: %s", worker.name, ended)
        return ended
    finally:
        # A task's `asyncio.to_thread` that never ends may hold the threads of the loop; neither closing nor asyncio.run may wait for it.
        loop.set_default_executor(ThreadPoolExecutor(1))
        await worker.app.aclose()


def _stop(worker: Worker) -> None:
    log.info("worker %s was told to stop; running jobs may end, then it leaves (tell it again to leave at once)", worker.name)
    worker.stop()


def leave(code: int) -> None:
    """End this process now, whatever threads of tasks still run in it; their jobs were released or settled before."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
