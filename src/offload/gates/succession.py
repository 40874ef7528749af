"""Who comes after jobs that leave their gates, told without a ledger, as mostly it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from offload.gates.rules import Rules, slots_of
from offload.gates.wants import Want


class Succession(NamedTuple):
    """What comes after the holders of a gate, as far as it was read."""

    complex: bool
    """Whether more is known of the gate than who holds it and who waits in the lane of its name."""
    held: int
    heirs: Sequence[int | None]
    """The first in that lane; None for one who does not want the very same as a holder that leaves."""


def depth_for(leaving: Sequence[Want]) -> int:
    """How many heirs of each gate to read: one more than can come after those that leave it."""
    gates = Counter(want.gate for want in leaving)
    return 1 + max(gates.values(), default=0)


def heirs(leaving: Iterable[Want], successions: Mapping[str, Succession], depth: int, rules: Rules) -> list[int] | None:
    """Who passes when jobs leave that need no more than each of these, in their order: what `Ledger.leave` comes to, without a ledger.

    None where it takes more care, as others may be concerned, or more than `depth` heirs of a gate.
    """
    passing: list[int] = []
    wanted: dict[str, Want] = {}
    inside: dict[str, int] = {}
    passed: dict[str, int] = {}
    for want in leaving:
        gate = successions[want.gate]
        if gate.complex or wanted.setdefault(want.gate, want) != want:
            return None
        held, nth = inside.get(want.gate, gate.held) - 1, passed.get(want.gate, 0)
        width = 1 if want.limit is None else slots_of(want.limit, rules)
        while nth < len(gate.heirs):
            heir = gate.heirs[nth]
            if heir is None:
                return None
            if held >= width:
                break
            passing.append(heir)
            held, nth = held + 1, nth + 1
        if nth == depth:
            return None
        inside[want.gate], passed[want.gate] = held, nth
    return passing
