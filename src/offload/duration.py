"""Durations: seconds as a float inside, also a timedelta where people write them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, TypeAlias

from offload.errors import BadDeclaration

Duration: TypeAlias = float | timedelta


def seconds(value: Any, what: str, *, least: float = 0.0) -> float:
    """`value` as seconds. `what` names it in the BadDeclaration raised when it is no finite duration of at least `least` seconds."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadDeclaration(f"{what} must be seconds or a timedelta, not {value!r}")
    if value < least:
        raise BadDeclaration(f"{what} must be at least {least:g} seconds, not {value:g}")
    return float(value)
