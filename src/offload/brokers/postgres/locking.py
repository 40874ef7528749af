"""Keeps operations on the same gates apart: by advisory locks on buckets of gates, for there may be no row yet to lock.

Those who come into a line where keys take turns are kept apart by a lock of the same kind, until they have committed: who comes next
must know what was given. A claim does not need it.

Locks are taken in one order everywhere: first unique keys, then these, ascending, then rows in lines. What turns up only when rows are
locked already is taken if nobody else has it. If somebody has, the operation is undone and run again, and takes that lock first.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

import msgspec

from offload.broker import Work
from offload.brokers.postgres.work import Doubt, Transaction, text
from offload.gates import gated, wants_of
from offload.job import Job

BUCKETS = 64
"""A power of two. So many locks may one transaction hold at most, of the thousands that a server has room for."""

_locks = msgspec.json.Decoder(list[int]).decode


@lru_cache(64)
def _first(schema: str) -> int:
    """The lowest of a schema's locks."""
    return int.from_bytes(blake2b(f"offload gates of {schema}".encode(), digest_size=8).digest(), signed=True) & -BUCKETS


def lock_of(tx: Transaction, gate: str) -> int:
    """The lock under which a gate is read and changed."""
    return _first(tx.channel) | crc32(gate.encode()) & (BUCKETS - 1)


def gates_of(jobs: Iterable[Job]) -> list[str]:
    """The gates of these jobs."""
    return list(dict.fromkeys(want.gate for job in jobs if gated(job) for want in wants_of(job)))


def line(queue: str, rank: int) -> str:
    """The name by which a line where keys take turns is locked, as a gate is by its own."""
    return f"line of {rank} {queue}"


def lines_of(jobs: Iterable[Job]) -> list[str]:
    """The lines in which these jobs take turns, if they do."""
    return list(dict.fromkeys(line(job.queue, -job.priority) for job in jobs if job.fair_by is not None))


def lock(tx: Transaction, gates: Iterable[str]) -> Work[None]:
    """Wait for the gates that an operation will come to, as far as it knows now, before it locks any row in a line."""
    missing = ({lock_of(tx, gate) for gate in gates} | tx.wanted) - tx.locks
    if not missing:
        return
    if tx.locks and min(missing) < max(tx.locks):
        yield from _had(tx, missing)
        return
    yield from tx.rows("lock_buckets", locks=text(sorted(missing)))
    tx.locks |= missing


def lock_all(tx: Transaction) -> Work[None]:
    """Wait for all gates there are."""
    first = _first(tx.channel)
    tx.wanted |= set(range(first, first + BUCKETS))
    yield from lock(tx, ())


def have(tx: Transaction, gates: Iterable[str]) -> Work[None]:
    """Lock gates without waiting. Raises Doubt when another transaction has one."""
    yield from _had(tx, {lock_of(tx, gate) for gate in gates} - tx.locks)


def _had(tx: Transaction, locks: set[int]) -> Work[None]:
    busy = yield from _tried(tx, locks)
    if busy:
        tx.wanted |= busy
        raise Doubt


def try_lock(tx: Transaction, gates: Iterable[str]) -> Work[set[str]]:
    """Lock gates without waiting. Returns those that another transaction has."""
    asked = {gate: lock_of(tx, gate) for gate in gates}
    busy = yield from _tried(tx, set(asked.values()) - tx.locks)
    return {gate for gate, lock in asked.items() if lock in busy}


def _tried(tx: Transaction, locks: set[int]) -> Work[set[int]]:
    if not locks:
        return set()
    busy = set(_locks((yield from tx.value("try_buckets", locks=text(sorted(locks))))))
    tx.locks |= locks - busy
    return busy
