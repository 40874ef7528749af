"""Durations: seconds as a float inside, also a timedelta where people write them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, TypeAlias

from offload.errors import BadDeclaration

Duration: TypeAlias = float | timedelta

LONGEST = 36_500 * 86_400.0
"""A hundred years in seconds: moments much further away have no date."""


def seconds(value: Any, what: str, *, least: float = 0.0) -> float:
    """`value` as seconds. `what` names it in the BadDeclaration raised when it is no duration from `least` seconds to a hundred years."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadDeclaration(f"{what} must be seconds or a timedelta, not {value!r}")
    if value < least:
        raise BadDeclaration(f"{what} must be at least {least:g} seconds, not {value:g}")
    if value > LONGEST:
        raise BadDeclaration(f"{what} must be at most a hundred years, not {value:g} seconds")
    return float(value)
