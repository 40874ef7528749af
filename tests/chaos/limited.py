"""The program of jobs with keys under chaos: what each saw, and when, is written to the ledgers of its processes.

python limited.py worker
python limited.py produce TASK JOBS KEYS
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from program import app, note

from offload import Concurrency, Rate, Retry, current
from offload.broker import Feature
from offload.worker import Worker
from offload.worker.process import leave, work

FAILS_EVERY = 10
"""Of so many attempts one fails."""


@app.task(order_by="account:{key}", retry=Retry(max_retries=10, initial=0.05, jitter=0))
async def ordered(key: int, n: int) -> None:
    """The jobs of a key are numbered in the order in which they were enqueued."""
    note("began", key, n, time.monotonic())
    await asyncio.sleep(0.001)
    if current.attempt == 1 and (key + n) % FAILS_EVERY == 0:
        raise ValueError(n)
    note("did", key, n, time.monotonic())


@app.task(limits=[Concurrency(3, key="tenant:{key}")])
async def together(key: int) -> None:
    """At most three of a key at a time."""
    note("in", key, time.monotonic())
    await asyncio.sleep(0.05)
    note("out", key, time.monotonic())


@app.task(limits=[Rate("200/s", key="mailgun")])
async def paced() -> None:
    """Two hundred a second."""


@app.task(fair_by="{key}" if Feature.FAIRNESS in app.broker.features else None)
async def fairly(key: int) -> None:
    """Tenants take turns."""
    note("served", key, time.monotonic())
    await asyncio.sleep(0.01)


def produce(task: str, jobs: int, keys: int) -> None:
    """Enqueue jobs, of each key in turn."""
    make = {
        "ordered": lambda n: ordered.job(n % keys, n // keys),
        "together": lambda n: together.job(n % keys),
        "paced": lambda _: paced.job(),
        "fairly": lambda _: fairly.job(keys),
    }[task]
    made = [make(n) for n in range(jobs)]
    app.enqueue_many(made)
    note("enqueued", keys, time.monotonic())  # from now on they stand in line, and turns are counted


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    if sys.argv[1] == "worker":
        leave(work(lambda: Worker(app, concurrency=20)))
    else:
        produce(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
