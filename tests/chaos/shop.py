"""Tasks that write a row each, in the transaction that ends their job; a worker is started by `offload worker shop:app`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

from offload import Offload, Retry, current
from offload.current import Attempt

TIMEOUT = float(os.environ.get("CHAOS_SESSION_TIMEOUT", "15"))
FREEZES = os.environ.get("CHAOS_FREEZES", "")
"""The task whose first commit freezes its worker, between the recording of the success and the commit itself."""
SOON = Retry(initial=0.1)

app = Offload(os.environ.get("CHAOS_URL", "memory://"), session_timeout=TIMEOUT, heartbeat=TIMEOUT / 5)


@app.task(retry=SOON)
def entry(n: int) -> None:
    """Linger before, in and after the block, so that kills find jobs in each of them."""
    time.sleep(0.002 * (n % 5))
    with current.transaction() as connection:
        connection.execute(f"insert into entries (n) values ({n})")
        receipt.enqueue(n)
        time.sleep(0.002 * (n % 3))
        current.complete(n)
    time.sleep(0.002 * (n % 5))


@app.task(retry=SOON)
async def aentry(n: int) -> None:
    """The same in a coroutine."""
    await asyncio.sleep(0.002 * (n % 5))
    async with current.atransaction() as connection:
        done: Any = connection.execute(f"insert into entries (n) values ({n})")
        if hasattr(done, "__await__"):
            await done
        await receipt.aenqueue(n)
        await asyncio.sleep(0.002 * (n % 3))
        current.complete(n)
    await asyncio.sleep(0.002 * (n % 5))


@app.task(retry=SOON, isolation="process")
def child_entry(n: int) -> None:
    """The same in a child process."""
    entry(n)


@app.task(retry=SOON)
async def receipt(n: int) -> int:
    """Enqueued by each entry, as part of it."""
    return n


def _frozen(self: Attempt) -> None:
    _committing(self)
    if self.job.task == FREEZES and self.lease.claim == 1 and _first.acquire(blocking=False):
        if self.job.task == child_entry.name:
            os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)


_first = threading.Lock()
"""Never let go of: of several threads that commit together one freezes the process, and not another again once it goes on."""
_committing = Attempt.committing
if FREEZES:
    Attempt.committing = _frozen
