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

    def __str__(self) -> str:
        """As people read it: `all queues`, `queues vip,default`, `queues vip:3,default:1`."""
        if self.names is None:
            return "all queues"
        named = self.names if self.weights is None else [f"{name}:{weight}" for name, weight in zip(self.names, self.weights, strict=True)]
        return f"queues {','.join(named)}"

    def order(self, random: random.Random) -> tuple[str, ...] | None:
        """The order for one fetch. By weight: drawn without putting back, so that each queue is first as often as it weighs."""
        if self.names is None or self.weights is None:
            return self.names
        return tuple(_drawn(dict(zip(self.names, self.weights, strict=True)), random))

    def portions(self, limit: int, random: random.Random) -> list[tuple[tuple[str, ...] | None, int]]:
        """What to claim from where, for one round of at most `limit` jobs: (queues in order, at most so many).

        With weights each queue first gets its share, the odd ones by lot; what the shares left unclaimed goes to any, in drawn order.
        """
        order = self.order(random)
        if self.names is None or self.weights is None or order is None or limit <= 1:
            return [(order, limit)]
        total = sum(self.weights)
        weights = dict(zip(self.names, self.weights, strict=True))
        shares = {name: limit * weight // total for name, weight in weights.items()}
        fractions = {name: fraction for name, weight in weights.items() if (fraction := limit * weight % total)}
        for name in _drawn(fractions, random)[: limit - sum(shares.values())]:
            shares[name] += 1
        return [*(((name,), share) for name, share in shares.items() if share), (order, limit)]


def _drawn(weights: dict[str, int], random: random.Random) -> list[str]:
    """All names, drawn one after the other by weight, without putting back."""
    left = dict(weights)
    order: list[str] = []
    while left:
        (name,) = random.choices(tuple(left), tuple(left.values()))
        order.append(name)
        del left[name]
    return order
