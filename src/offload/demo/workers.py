"""Starts `offload worker` with two processes, the very command that a deployment runs, and ends it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from offload import Offload
from offload.demo.diary import Diary
from offload.demo.place import Place

COMMAND = (sys.executable, "-m", "offload", "worker", "offload.demo.tasks:app", "-p", "2", "--grace", "3")
PATIENCE = 10.0
LOOK_EVERY = 0.25
PR_SET_PDEATHSIG = 1


@asynccontextmanager
async def workers(place: Place) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run the worker for the time of the block. What it writes goes to the place's worker.log.

    It gets a process group of its own, so that Ctrl-C in the terminal reaches only the demo, which then ends it in order; and
    the kernel tells it to stop should the demo be killed.
    """
    with place.worker_log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            env=os.environ | place.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_follower(),
        )
    try:
        yield process
    finally:
        await _end(process)


@asynccontextmanager
async def attendance(app: Offload, diary: Diary) -> AsyncGenerator[None]:
    """For the time of the block, note in the diary which worker processes come and go."""
    watching = asyncio.create_task(_watch(app, diary))
    try:
        yield
    finally:
        watching.cancel()


async def _watch(app: Offload, diary: Diary) -> None:
    known = set[int]()
    while True:
        present = {each.info.pid for each in await app.aworkers()}
        for pid in sorted(present - known):
            diary.note("worker", f"process {pid} is at work")
        for pid in sorted(known - present):
            diary.note("worker", f"process {pid} is gone", bad=True)
        known = present
        await asyncio.sleep(LOOK_EVERY)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM: running jobs have the grace to end. Whoever is left then is killed with the whole group."""
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _follower() -> Callable[[], None] | None:
    """What to call in the new process so that it does not outlive this one. Nothing where the system is not Linux.

    Code between fork and exec must not wait for locks that other threads hold: this makes two system calls.
    """
    if sys.platform != "linux":
        return None
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def follow() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return follow


def newest_lines(place: Place, most: int = 15) -> str:
    """The end of the worker's log, for when something went wrong."""
    if not place.worker_log.exists():
        return ""
    return "\n".join(place.worker_log.read_text(encoding="utf-8", errors="replace").splitlines()[-most:])
