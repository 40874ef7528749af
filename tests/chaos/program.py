"""The program under chaos: its workers and producers are real processes on one queue. What runs is written to a ledger.

python program.py worker
python program.py produce FIRST COUNT CHUNK PAUSE
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import sys
import time
from pathlib import Path

from offload import BrokerError, Offload, Retry, current
from offload.worker import Worker
from offload.worker.process import leave, work

if "faketime" in os.environ.get("LD_PRELOAD", ""):
    # libfaketime 0.9.10 answers EINVAL to a sleep whose absolute deadline has just passed, so short sleeps fail at random.
    time.sleep = lambda seconds, /: select.select([], [], [], float(seconds)) and None

FOLDER = Path(os.environ["CHAOS_FOLDER"])
TIMEOUT = float(os.environ.get("CHAOS_SESSION_TIMEOUT", "15"))

log = logging.getLogger("program")
app = Offload(os.environ["CHAOS_URL"], session_timeout=TIMEOUT, heartbeat=TIMEOUT / 5)


def note(*words: object) -> None:
    """Append one line to this process's ledger. One write each, so that a kill leaves whole lines."""
    with (FOLDER / f"ledger-{os.getpid()}").open("ab", buffering=0) as ledger:
        ledger.write(f"{' '.join(str(word) for word in words)}\n".encode())


@app.task(retry=Retry(initial=0.1))
async def short(n: int) -> int:
    """Some milliseconds of waiting, of a few jobs half a second, so that a kill finds jobs in every stage, and always some at work."""
    note("ran", n)
    await asyncio.sleep(0.5 if n % 97 == 0 else 0.002 * (n % 5))
    return n


@app.task
def long(seconds: float) -> int:
    """Sleeps in small pieces until the time is over. Returns the process that came to the end."""
    note("started", current.job.id)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
    note("ended", current.job.id)
    return os.getpid()


@app.task
async def tick() -> None:
    """Enqueued by a schedule only."""
    note("tick", current.job.run_at.isoformat() if current.job.run_at else None)


if os.environ.get("CHAOS_SCHEDULE"):
    app.cron(os.environ["CHAOS_SCHEDULE"], overlap="allow")(tick)


def produce(first: int, count: int, chunk: int, pause: float) -> None:
    """Enqueue `count` jobs, or while there is no file "enough", in calls of `chunk`.

    Each job has an id of its own, and what the broker refuses is called again, so that every job of a chunk is stored once.
    """
    start = first
    while start < first + count and not (FOLDER / "enough").exists():
        jobs = [short.using(id=f"short-{n}").job(n) for n in range(start, min(start + chunk, first + count))]
        answer = "refused"
        while answer == "refused":
            begun = time.monotonic()
            try:
                app.enqueue_many(jobs)
                answer = "accepted"
            except BrokerError as error:
                log.info("a call was refused: %s", error)
            note(answer, start, len(jobs), f"{time.monotonic() - begun:.3f}")
        start += len(jobs)
        time.sleep(pause)
    note("done")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    if sys.argv[1] == "worker":
        grace = float(os.environ.get("CHAOS_GRACE", "30"))
        leave(work(lambda: Worker(app, concurrency=20, grace=grace)))
    else:
        note("ready")
        first, count, chunk, pause = sys.argv[2:]
        produce(int(first), int(count), int(chunk), float(pause))
