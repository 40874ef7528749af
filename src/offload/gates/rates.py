"""The generic cell rate algorithm: when tokens are there.

After ITU-T I.371, annex A. `tat` is the theoretical arrival time, when the next token is due at the pace of one an interval; it may lie
`owed` intervals ahead, as far as the last start has left it: up to the burst, or the cost of a job that takes more than gathers.
"""

from __future__ import annotations

LATENESS = 20_000
"""Microseconds by which a start may be late without the next ones being late too; after a longer pause a rate begins anew."""


def settled(tat: int, now: int, interval: int, owed: int) -> int:
    """The theoretical arrival time as it counts now: not far in the past, where nobody came, nor beyond what a clock set back explains."""
    return now if tat < now - LATENESS else min(tat, now + owed * interval)


def taken(tat: int, now: int, interval: int, owed: int, cost: int) -> tuple[int, int]:
    """`tat` and `owed` once a start has taken `cost` tokens."""
    tat = settled(tat, now, interval, owed) + cost * interval
    return tat, max(-(-(tat - now) // interval), 0)


def tokens(tat: int, now: int, interval: int, burst: int, owed: int) -> int:
    """How many tokens are there; fewer than none where a job has taken more than gathers."""
    return (now - settled(tat, now, interval, owed)) // interval + burst


def token_at(tat: int, now: int, interval: int, burst: int, owed: int, number: int) -> int:
    """When `number` tokens will be there if none is taken; `now` at the earliest."""
    return max(settled(tat, now, interval, owed) + (number - burst) * interval, now)
