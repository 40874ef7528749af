"""Gathers what the rounds measured, pair by pair, and shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from part import Engine, Loop


@dataclass
class Row:
    """One figure of both sides, in every round."""

    engine: Engine
    loop: Loop
    name: str
    unit: str
    offload: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Offload's part of the floor, round by round."""
        return [ours / floor for ours, floor in zip(self.offload, self.floor, strict=True) if floor]

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "engine": self.engine,
            "loop": self.loop,
            "name": self.name,
            "unit": self.unit,
            "offload": self.offload,
            "floor": self.floor,
            "offload_median": median(self.offload),
            "floor_median": median(self.floor),
            "ratio_median": median(self.ratios) if self.ratios else None,
        }


class Report:
    """All rows, in the order in which they were first measured."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Engine, Loop, str], Row] = {}

    def add(self, engine: Engine, loop: Loop, offload: dict[str, float], floor: dict[str, float]) -> None:
        """Add one pair of measurements."""
        for name, value in offload.items():
            what, _, unit = name.rpartition(", ")
            row = self._rows.setdefault((engine, loop, name), Row(engine, loop, what, unit))
            row.offload.append(value)
            row.floor.append(floor[name])

    def rows(self) -> list[Row]:
        """The rows, an engine and a loop at a time."""
        places = list(dict.fromkeys((row.engine, row.loop) for row in self._rows.values()))
        return [row for place in places for row in self._rows.values() if (row.engine, row.loop) == place]


def table(rows: Sequence[Row]) -> str:
    """The rows for people: medians, and the median and the range of the ratios."""
    lines: list[str] = []
    heading = None
    for row in rows:
        if heading != (row.engine, row.loop):
            heading = (row.engine, row.loop)
            lines += ["", f"{f'{row.engine}, {row.loop}':<52}{'offload':>12}{'floor':>12}{'ratio':>9}   (range of {len(row.offload)})"]
        ratios = row.ratios
        ratio = f"{median(ratios):>9.3f}   ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else f"{'-':>9}"
        lines.append(f"{f'{row.name}, {row.unit}':<52}{shown(median(row.offload)):>12}{shown(median(row.floor)):>12}{ratio}")
    return "\n".join(lines)


def shown(value: float) -> str:
    """Three digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
