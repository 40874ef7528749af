"""What a ledger knows of gates and lanes, in part, and what it has changed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from offload.gates.wants import Member
from offload.job import Kind

T = TypeVar("T")


class Need(NamedTuple):
    """Asks for more of what is stored: gates by their ids, lanes by theirs, more lanes parked at a gate, or more jobs of a lane."""

    what: Literal["gates", "lanes", "parked", "line"]
    ids: Sequence[str]


Steps: TypeAlias = Generator[Need, None, T]

Place: TypeAlias = tuple[int, str]
"""Of a lane at its gate: the seat of its first job, and its id."""

LAST: Place = (2**62, "")
"""Behind all places."""


@dataclass(slots=True)
class Gate:
    """What is known of a gate."""

    id: str
    kind: Kind
    holders: dict[int, int] = field(default_factory=dict[int, int])
    """Who has passed and not left, with their costs."""
    parked: list[Place] = field(default_factory=list[Place])
    """The first lanes that wait here, by the seats of their first jobs."""
    more: bool = False
    """Whether there may be others behind them."""
    read_to: Place = (-1, "")
    """The last one that was read."""
    n: int | None = None
    """Slots, where a person has set them."""
    interval: int | None = None
    burst: int | None = None
    """The rate, where a person has set it."""
    paused: bool = False
    shut_until: int = 0
    """Until then nobody passes."""
    tat: int = 0
    owed: int = 0
    """When the next token is due, and how many intervals at most that is ahead: see rates.py."""
    wake_at: int | None = None
    """When it is to be looked at again, because time alone lets somebody pass."""


@dataclass(slots=True)
class Lane:
    """What is known of a lane."""

    id: str
    gate: str | None = None
    """Where it is parked; None while it is empty."""
    line: list[Member] = field(default_factory=list[Member])
    """Its first jobs."""
    more: bool = False
    """Whether there may be others behind them."""
    read_to: int = -1
    """The seat of the last one that was read."""


@dataclass(slots=True)
class Changes:
    """What a ledger has changed and is still to be written."""

    held: dict[tuple[str, int], int | None] = field(default_factory=dict[tuple[str, int], int | None])
    """(gate, job) -> cost, of those who have passed; None of those who have left."""
    waiting: dict[int, tuple[Member, bool]] = field(default_factory=dict[int, tuple[Member, bool]])
    """By their numbers jobs, and whether they wait from now on, or wait no more."""
    lanes: set[str] = field(default_factory=set[str])
    gates: set[str] = field(default_factory=set[str])


def answered(steps: Steps[T], answer: Callable[[Need], None]) -> T:
    """Carry out steps whose needs are answered at once."""
    try:
        while True:
            answer(next(steps))
    except StopIteration as end:
        return end.value
