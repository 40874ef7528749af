"""Keeps N worker processes running. Holds no user code, so nothing that a task does can bring it down.

A process that ends is replaced: at once when it asked to be recycled, after a growing wait when it keeps dying young. When the command
cannot be carried out, or its very first processes fail at once, all end, unless a change of the source may mend it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import AsyncIterable, Sequence
from contextlib import suppress
from time import monotonic

from offload.worker.process import RECYCLE

log = logging.getLogger("offload.supervisor")

YOUNG = 5.0
"""A process that lived shorter than these seconds is replaced more slowly each time."""
LONGEST_WAIT = 30.0
UNUSABLE = 2
"""The exit code of a command line that cannot be carried out, however often it is tried."""
PR_SET_PDEATHSIG = 1


class Supervisor:
    """`count` processes of `command`. With `burst`, one that ended well is not replaced."""

    def __init__(self, command: Sequence[str], count: int, *, burst: bool = False) -> None:
        self._command = command
        self._count = count
        self._burst = burst
        self._alive: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._told: set[asyncio.subprocess.Process] = set()
        """Those that a reload told to end."""
        self._wake = asyncio.Event()
        """Ends the wait before a process is replaced."""
        self._reloads = False
        self._proven = False
        """Whether any process lived long enough to show that the command can work at all."""

    async def run(self, changes: AsyncIterable[object] | None = None) -> int:
        """Supervise until told to stop. Each of `changes` restarts all processes. Returns 0, or the code of a process that ended badly."""
        self._reloads = changes is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        reloading = asyncio.create_task(self._reload(changes)) if changes is not None else None
        try:
            codes = await asyncio.gather(*(self._keep_one() for _ in range(self._count)))
        finally:
            if reloading is not None:
                reloading.cancel()
        return max(codes)

    def stop(self) -> None:
        """Pass SIGTERM on; again when told again."""
        spared = set[asyncio.subprocess.Process]() if self._stopping.is_set() else self._told
        self._stopping.set()
        self._wake.set()
        for process in self._alive - spared:
            _terminate(process)

    async def _reload(self, changes: AsyncIterable[object]) -> None:
        async for _ in changes:
            fresh = self._alive - self._told  # one that was told already lets its jobs end; told twice it would hand them back
            if fresh:
                log.info("source files changed: restarting the workers, each once its jobs have ended")
            self._wake.set()
            self._wake.clear()
            self._told |= fresh
            for process in fresh:
                _terminate(process)

    async def _keep_one(self) -> int:
        young = 0
        while True:
            born = monotonic()
            code = await self._one()
            if self._stopping.is_set() or (self._burst and code == 0):
                return 0 if code in (0, RECYCLE, -signal.SIGTERM) else _badly(code)
            self._proven = self._proven or code in (0, RECYCLE) or monotonic() - born >= YOUNG
            if not self._reloads and (code == UNUSABLE or (code > 0 and not self._proven)):
                self.stop()
                return code
            if code in (0, RECYCLE):
                young = 0
                continue
            young = young + 1 if monotonic() - born < YOUNG else 0
            wait = min(2.0**young - 1, LONGEST_WAIT)
            log.error("a worker process ended with %s; a new one starts %s", _how(code), f"in {wait:g} s" if wait else "now")
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue
            if self._stopping.is_set():
                return _badly(code)
            young = 0

    async def _one(self) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, SUPERVISED: str(os.getpid())},
            process_group=None if sys.platform == "win32" else 0,  # Ctrl-C would reach it beside our own signal: told twice, it hurries
        )
        self._alive.add(process)
        if self._stopping.is_set():
            _terminate(process)
        try:
            return await process.wait()
        finally:
            self._alive.discard(process)
            self._told.discard(process)


SUPERVISED = "OFFLOAD_SUPERVISED_BY"
"""Environment variable that carries the supervisor's process id to its workers."""


def follow_supervisor() -> bool:
    """In a worker process: be told to stop when the supervisor dies, however it dies. False when there is no supervisor."""
    parent = os.environ.pop(SUPERVISED, None)
    if parent is None:
        return False
    if sys.platform == "linux":
        # Not SIGTERM: the kernel sends this once for each thread of the dying parent, and a second SIGTERM would cut the grace short.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGHUP)
    return True


def _terminate(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM. `process.terminate()` would look first whether it has ended, and so take its exit code from who waits for it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def _badly(code: int) -> int:
    return code if code > 0 else 1


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
