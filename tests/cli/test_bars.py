"""The bars that say how far a workflow or batch is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from offload.cli.tallies import BAR, bar, plain_bar
from offload.records import Tally

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def tally(numbers: dict[str, int], *, ended: bool = True) -> Tally:
    total = sum(numbers.get(name, 0) for name in ("waiting", "running", "succeeded", "dead", "cancelled", "expired"))
    known = {"total": total, **{name: number for name, number in numbers.items() if name != "waiting"}}
    return Tally(kind="workflow", id="w", created_at=NOW, finished_at=NOW if ended else None, **known)  # pyright: ignore[reportArgumentType] - flags, too


@pytest.mark.parametrize(
    ("numbers", "drawn"),
    [
        ({"dead": 1, "cancelled": 2}, "X" * 6 + "▒" * 14),
        ({"succeeded": 1, "cancelled": 2}, "█" * 6 + "▒" * 14),
        ({"succeeded": 999_997, "dead": 1, "expired": 1, "cancelled": 1}, "█" * 17 + "Xx▒"),
        ({"succeeded": 1, "size": 3, "abandoned": 1}, "█" * 20),
        ({}, "█" * 20),
        ({"abandoned": 1}, "X" * 20),
    ],
)
def test_what_has_ended_fills_the_bar(numbers: dict[str, int], drawn: str) -> None:
    assert plain_bar(tally(numbers)) == drawn
    assert bar(tally(numbers)).plain.startswith(f"{drawn} ")


@pytest.mark.parametrize(
    ("numbers", "drawn"),
    [
        ({"waiting": 1, "succeeded": 999_999}, "█" * 19 + "·"),
        ({"waiting": 1, "running": 1, "dead": 1}, "X" * 8 + "▓" * 6 + "·" * 6),
        ({"succeeded": 1, "size": 4}, "█" * 5 + "·" * 15),
        ({}, "·" * 20),
    ],
)
def test_what_waits_leaves_dots(numbers: dict[str, int], drawn: str) -> None:
    assert plain_bar(tally(numbers, ended=False)) == drawn
    assert len(drawn) == BAR
