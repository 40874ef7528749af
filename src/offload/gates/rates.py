"""The generic cell rate algorithm: when tokens are there.

After ITU-T I.371, annex A. `tat` is the theoretical arrival time, when the next token is due at the pace of one an interval; it may lie up
to `burst` intervals ahead.
"""

from __future__ import annotations

LATENESS = 20_000
"""Microseconds by which a start may be late without the next ones being late too; after a longer pause a rate begins anew."""


def settled(tat: int, now: int, interval: int, burst: int) -> int:
    """The theoretical arrival time as it counts now: not far in the past, where nobody came, nor beyond what a clock set back explains."""
    return now if tat < now - LATENESS else min(tat, now + burst * interval)


def tokens(tat: int, now: int, interval: int, burst: int) -> int:
    """How many tokens are there."""
    return (now - settled(tat, now, interval, burst)) // interval + burst


def token_at(tat: int, now: int, interval: int, burst: int, number: int) -> int:
    """When `number` tokens will be there if none is taken; `now` at the earliest."""
    return max(settled(tat, now, interval, burst) + (number - burst) * interval, now)
