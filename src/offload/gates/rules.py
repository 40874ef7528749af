"""What a gate allows: what a person has set goes before what workers declare, and that before what a job carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from offload.gates.state import Gate
from offload.gates.wants import Want
from offload.job import Limit, RateLimit, SlotLimit


class Rules(Protocol):
    """What workers declare. A store need not have read more of it than jobs name."""

    def get(self, id: str, /) -> Limit | None:
        """The limit that is declared under a rule."""
        ...


def slots_of(limit: Limit, rules: Rules) -> int:
    """How many may hold a slot that no person has changed: what workers declare, else what the job says."""
    assert isinstance(limit, SlotLimit)
    declared = rules.get(f"slot {limit.rule}")
    return declared.n if isinstance(declared, SlotLimit) else limit.n


def rate_of(limit: Limit, rules: Rules) -> tuple[int, int]:
    """The interval and burst of a rate that no person has changed, in the same order."""
    assert isinstance(limit, RateLimit)
    declared = rules.get(f"token {limit.rule}")
    known = declared if isinstance(declared, RateLimit) else limit
    return known.interval, known.burst


def slots_at(gate: Gate, want: Want, rules: Rules) -> int:
    """How many may hold a slot of a gate."""
    assert want.limit is not None
    return slots_of(want.limit, rules) if gate.n is None else gate.n


def rate_at(gate: Gate, want: Want, rules: Rules) -> tuple[int, int]:
    """The interval and burst of a token gate, in the same order."""
    assert want.limit is not None
    interval, burst = rate_of(want.limit, rules)
    return gate.interval or interval, gate.burst or burst


def allowed(gate: Gate, want: Want | None, rules: Rules) -> dict[str, int | None]:
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


def rules_of(wants: Iterable[Want]) -> list[str]:
    """The rules that these name."""
    return list(dict.fromkeys(rule_id(want.limit) for want in wants if want.limit is not None))


def by_rule(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Declared limits in one order, whatever the store."""
    return tuple(sorted(limits, key=rule_id))


def new_rules(declared: Iterable[Limit], known: Mapping[str, Limit]) -> list[tuple[Limit, Limit | None]]:
    """What a worker declares that changes anything, each with what was declared before. Of two with one rule the last counts."""
    rules = {rule_id(limit): limit for limit in declared}
    return [(limit, known.get(id)) for id, limit in rules.items() if known.get(id) != limit]


def changed_gates(changed: Iterable[tuple[Limit, Limit | None]], heads: Iterable[tuple[str, Iterable[Want]]]) -> list[str]:
    """The gates where new rules change anything for the first who waits there, in order; each of `heads` is looked at once."""
    rules = {rule_id(limit): (limit, before) for limit, before in changed}
    limits = ((gate, want.limit) for gate, wants in heads for want in wants if want.gate == gate and want.limit is not None)
    return sorted({gate for gate, own in limits if (rule := rules.get(rule_id(own))) is not None and changes(*rule, own)})


def changes(declared: Limit, before: Limit | None, own: Limit | None) -> bool:
    """Whether a declaration changes what a job of its rule may do: it goes before the one before, and that before the job's own."""
    if own is None or rule_id(own) != rule_id(declared):
        return False
    return _measure(declared) != _measure(before or own)


def _measure(limit: Limit) -> tuple[int, ...]:
    return (limit.n,) if isinstance(limit, SlotLimit) else (limit.interval, limit.burst)
