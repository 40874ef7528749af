"""Short ways to make jobs with keys, and to ask what became of them."""

from __future__ import annotations

from typing import Any

from offload.broker import Session, Store
from offload.job import Done, Job, Limit, Outcome, RateLimit, SlotLimit, State, WorkerInfo
from offload.records import LimitRecord
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, ids, info, job, record

SECOND = 1_000_000


def turn(clock: TestClock, id: str, key: str = "k", **fields: Any) -> Job:
    """A job of the order `key`."""
    return job(clock, id, order_by=key, **fields)


def slot(clock: TestClock, id: str, n: int = 1, key: str = "k", **fields: Any) -> Job:
    """A job that takes one of `n` slots of `key`."""
    return job(clock, id, limits=(SlotLimit(key, n),), **fields)


def token(clock: TestClock, id: str, every: float = 1, burst: int = 1, cost: int = 1, key: str = "k", **fields: Any) -> Job:
    """A job that takes `cost` tokens of `key`, of which there is another `every` so many seconds."""
    return job(clock, id, limits=(RateLimit(key, round(every * SECOND), burst, cost),), **fields)


async def run(session: Session, outcome: Outcome | None = None) -> list[str]:
    """Claim all there is and settle it. Returns the ids."""
    leases = await claim(session)
    await session.settle([(lease, outcome or Done()) for lease in leases])
    return ids(leases)


async def waits(store: Store, id: str) -> str | None:
    """What a waiting job waits for."""
    shown = await record(store, id)
    assert shown.state is State.WAITING
    return shown.reason


async def limit(store: Store, key: str = "k") -> LimitRecord:
    """The one limit of a key."""
    (found,) = [each for each in await store.limits() if each.key == key]
    return found


def declaring(*limits: Limit, name: str = "worker") -> WorkerInfo:
    """A worker that declares limits."""
    plain = info(name)
    return WorkerInfo(name=plain.name, host=plain.host, pid=plain.pid, tasks=plain.tasks, limits=limits)
