"""What a gate allows: what a person has set goes before what workers declare, and that before what a job carries."""

from __future__ import annotations

from collections.abc import Mapping

from offload.gates.state import Gate
from offload.gates.wants import Want
from offload.job import Limit, RateLimit, SlotLimit


def slots_of(limit: Limit, rules: Mapping[str, Limit]) -> int:
    """How many may hold a slot that no person has changed: what workers declare, else what the job says."""
    assert isinstance(limit, SlotLimit)
    declared = rules.get(f"slot {limit.rule}")
    return declared.n if isinstance(declared, SlotLimit) else limit.n


def rate_of(limit: Limit, rules: Mapping[str, Limit]) -> tuple[int, int]:
    """The interval and burst of a rate that no person has changed, in the same order."""
    assert isinstance(limit, RateLimit)
    declared = rules.get(f"token {limit.rule}")
    known = declared if isinstance(declared, RateLimit) else limit
    return known.interval, known.burst


def slots_at(gate: Gate, want: Want, rules: Mapping[str, Limit]) -> int:
    """How many may hold a slot of a gate."""
    assert want.limit is not None
    return slots_of(want.limit, rules) if gate.n is None else gate.n


def rate_at(gate: Gate, want: Want, rules: Mapping[str, Limit]) -> tuple[int, int]:
    """The interval and burst of a token gate, in the same order."""
    assert want.limit is not None
    interval, burst = rate_of(want.limit, rules)
    return gate.interval or interval, gate.burst or burst


def allowed(gate: Gate, want: Want | None, rules: Mapping[str, Limit]) -> dict[str, int | None]:
    """What a gate allows, as a `LimitRecord` has it; without a `want` of anybody, what a person has set."""
    if want is None:
        return {"n": gate.n, "interval": gate.interval, "burst": gate.burst}
    if isinstance(want.limit, SlotLimit):
        return {"n": slots_at(gate, want, rules)}
    if isinstance(want.limit, RateLimit):
        return dict(zip(("interval", "burst"), rate_at(gate, want, rules), strict=True))
    return {}


def rule_id(limit: Limit) -> str:
    """By what a declared limit is kept."""
    return f"{'slot' if isinstance(limit, SlotLimit) else 'token'} {limit.rule}"


def changes(declared: Limit, before: Limit | None, own: Limit | None) -> bool:
    """Whether a declaration changes what a job of its rule may do: it goes before the one before, and that before the job's own."""
    if own is None or rule_id(own) != rule_id(declared):
        return False
    return _measure(declared) != _measure(before or own)


def _measure(limit: Limit) -> tuple[int, ...]:
    return (limit.n,) if isinstance(limit, SlotLimit) else (limit.interval, limit.burst)
