"""Wakes coroutines of any event loop of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager


class Bell:
    """Rings once for all who listen at that moment. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def ring(self) -> None:
        """Set the event of every listener."""
        if not self._listeners:
            return
        with self._lock:
            listeners = tuple(self._listeners)
        for loop, event in listeners:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # its loop was closed without leaving the block; nobody is there to be woken
                with self._lock:
                    self._listeners.discard((loop, event))

    @contextmanager
    def listening(self) -> Generator[asyncio.Event]:
        """An event of the running loop that each ring inside the block sets; who waits for it clears it."""
        listener = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._listeners.add(listener)
        try:
            yield listener[1]
        finally:
            with self._lock:
                self._listeners.discard(listener)


async def heard(event: asyncio.Event, timeout: float) -> bool:
    """Wait for `event` up to `timeout` seconds and clear it. False when the time ran out."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
