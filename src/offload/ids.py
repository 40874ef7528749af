"""Job ids: UUIDs of version 7 (RFC 9562) as text, which sort by the time they were made."""

from __future__ import annotations

import os
from datetime import datetime

BLOCK = 0x8000
"""The most ids that share one start of the counter."""


def new_ids(count: int, now: datetime) -> list[str]:
    """`count` fresh ids of the moment `now`; up to 32,768 of them ascend.

    After the 48 bits of milliseconds come a counter of 42 bits with a random start and 32 random bits (RFC 9562, 6.2, method 1). Nothing is
    kept between calls, so neither threads nor forks can make the same id.
    """
    if count > BLOCK:
        return [id for start in range(0, count, BLOCK) for id in new_ids(min(BLOCK, count - start), now)]
    milliseconds = int(now.timestamp() * 1000)
    random = os.urandom(6 + 4 * count)
    seed = int.from_bytes(random[:6], "big")
    time = f"{milliseconds << 16 | 0x7000 | seed >> 36:016x}"
    head = f"{time[:8]}-{time[8:12]}-{time[12:]}-{0x8000 | (seed >> 16) & 0x3FFF:04x}-"
    start = seed & (BLOCK - 1)
    tails = random[6:].hex(" ", 4).split()
    return [f"{head}{n:04x}{tail}" for n, tail in enumerate(tails, start)]
