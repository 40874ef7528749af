"""Gives jobs their turns among the keys of their lines, under the locks of these lines: see locking.py.

Rounds are counted from 1 whenever nobody stands in a line. In `ready` they go on from the highest that the line ever gave, so that those
who come new stand behind all who were there before, and claims may begin where they left off: see marks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking
from offload.brokers.postgres.work import Transaction, text
from offload.gates import round_of

SERVED_LONG_AGO = 1_000
"""Rounds after which a key of a line that is never empty is forgotten: far more than who is handed back may stand behind."""

LineRow = tuple[int | None, int, int, dict[str, int]]
_lines = msgspec.json.Decoder(list[LineRow]).decode
_rounds = msgspec.json.Decoder(dict[int, int]).decode


class Turn(NamedTuple):
    """The round of a job, and where the count of rounds began; together they are how `ready` counts."""

    round: int
    base: int


class Wish(NamedTuple):
    """A job wants its turn."""

    queue: str
    rank: int
    key: str
    keeps: int | None = None
    """Its number, where it goes back to the turn that it had."""


class Line:
    """A line where keys take turns, as read and as changed."""

    def __init__(self, row: LineRow) -> None:
        first, self._base, self._last, self._rounds = row
        self._serving = None if first is None else first - self._base
        self.begins = False
        """Whether its count of rounds began anew, and all are forgotten but those `given`."""
        self.given: dict[str, int] = {}

    def give(self, key: str) -> Turn:
        """The next turn of a key."""
        if self._serving is None:  # nobody stands there, so nobody is owed anything
            self._base, self._last, self._rounds, self.begins = self._base + self._last, 0, {}, True
        round = round_of(self._serving, self._rounds.get(key))
        self._rounds[key] = self.given[key] = round
        self._last = max(self._last, round)
        return self.keep(round)

    def keep(self, round: int) -> Turn:
        """The turn of a job in a round that it was given before."""
        self._serving = round if self._serving is None else min(self._serving, round)
        return Turn(round, self._base)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Where the count began, the highest round given since, and who stands first, as `ready` counts."""
        return self._base, self._last, self._base + (self._serving or 0)


def give(tx: Transaction, wishes: Sequence[Wish]) -> Work[tuple[list[Turn], dict[str, str]]]:
    """The turns of jobs, in order, and what is to be written of their lines with them. Raises Doubt when another transaction has one."""
    keys: dict[tuple[str, int], set[str]] = {}
    for wish in wishes:
        keys.setdefault((wish.queue, wish.rank), set()).add(wish.key)
    yield from locking.have(tx, [locking.line(queue, rank) for queue, rank in keys])
    asked = [(*name, sorted(wanted)) for name, wanted in keys.items()]
    kept = [wish.keeps for wish in wishes if wish.keeps is not None]
    rows, known = yield from tx.row("turns", lines=text(asked), ns=text(kept))
    lines = {name: Line(row) for name, row in zip(keys, _lines(rows), strict=True)}
    rounds = _rounds(known)
    turns: list[Turn] = []
    for queue, rank, key, keeps in wishes:
        line = lines[queue, rank]
        turns.append(line.give(key) if keeps is None else line.keep(rounds[keeps]))
    return turns, {
        "begun": text([(*name, sorted(line.given)) for name, line in lines.items() if line.begins]),
        "lines": text([(*name, *line.counts) for name, line in lines.items()]),
        "rounds": text([(*name, key, round) for name, line in lines.items() for key, round in line.given.items()]),
    }


def forget(tx: Transaction) -> Work[None]:
    """Drop the rounds of keys that were served long ago, where others have stood in line ever since."""
    yield from tx.post("forget_rounds", ago=SERVED_LONG_AGO)
