"""Remembers what was made of the texts that SQL stores keep of jobs, as most jobs have one that others have, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

T = TypeVar("T")

MOST_COMMON = 500
"""A text of more characters is one job's alone, as one has that waits for many; it is remembered for the operation that reads it again."""


def remembered(make: Callable[[str], T]) -> Callable[[str], T]:
    """A function of a text, with what it made of the last 8,192 short ones and the last four long ones; nobody may change that."""
    common, lone = lru_cache(8192)(make), lru_cache(4)(make)

    @wraps(make)
    def looked_up(text: str) -> T:
        return common(text) if len(text) <= MOST_COMMON else lone(text)

    return looked_up
