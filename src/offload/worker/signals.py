"""Lets a worker that is the program's main business hear SIGTERM, unless the program hears it itself."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def told_to_stop(stop: Callable[[], None]) -> Generator[None]:
    """Call `stop` in the running loop at each SIGTERM inside the block.

    Only on the main thread, where signals arrive, and only where the program has set no handler of its own.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    loop = asyncio.get_running_loop()

    def told(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(stop)

    signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
