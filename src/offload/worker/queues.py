"""Reads `-q` and decides in which order a fetch looks at the queues."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from offload.errors import BadDeclaration


@dataclass(frozen=True, slots=True)
class Queues:
    """The queues a worker serves: all (`names` None), in strict order, or by weight."""

    names: tuple[str, ...] | None = None
    weights: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, asked: Sequence[str] | str | None) -> Queues:
        """From `"vip,default"` or `["vip", "default"]` (strict order), `"vip:3,default:1"` (by weight) or None (all).

        Raises BadDeclaration for an empty name, a name twice, or a weight that is no whole number above 0.
        """
        if asked is None:
            return cls()
        given = asked.split(",") if isinstance(asked, str) else list(asked)
        parts = [part.strip().partition(":") for part in given]
        names = tuple(name for name, _, _ in parts)
        if not names or "" in names or len(set(names)) < len(names):
            raise BadDeclaration(f"queues {asked!r}: give each queue once, such as 'vip,default' or 'vip:3,default:1'")
        if not any(colon for _, colon, _ in parts):
            return cls(names)
        weights = tuple(int(weight) if weight.isdigit() else 0 for _, _, weight in parts)
        if 0 in weights:
            raise BadDeclaration(
                f"queues {asked!r}: with weights, each queue needs one that is a whole number above 0, such as 'vip:3,default:1'"
            )
        return cls(names, weights)

    def order(self, random: random.Random) -> tuple[str, ...] | None:
        """The order for one fetch. By weight: drawn without putting back, so that each queue is first as often as it weighs."""
        if self.names is None or self.weights is None:
            return self.names
        left = dict(zip(self.names, self.weights, strict=True))
        order: list[str] = []
        while left:
            (name,) = random.choices(tuple(left), tuple(left.values()))
            order.append(name)
            del left[name]
        return tuple(order)
