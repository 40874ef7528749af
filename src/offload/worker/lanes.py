"""Counts the worker's slots, by isolation, and decides how many jobs to claim ahead. Pure arithmetic over injected time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from offload.job import Isolation

AHEAD = 0.02
"""Seconds of work that may be claimed ahead: what starts within that time is not hoarded."""
MOST_AHEAD = 500
"""Larger batches gain nothing and make a crash repeat more."""
_WEIGHT = 0.3


@dataclass(slots=True)
class Pace:
    """How many attempts end each second, as a moving average."""

    per_second: float = 0.0
    _since: float = 0.0
    _ended: int = 0

    def count(self, ended: int, now: float) -> None:
        """Note that `ended` attempts ended until `now` (seconds, monotonic)."""
        self._ended += ended
        elapsed = now - self._since
        if elapsed >= AHEAD:
            rate = self._ended / elapsed
            self.per_second += _WEIGHT * (rate - self.per_second) if elapsed < 1 else rate - self.per_second
            self._since, self._ended = now, 0

    def ahead(self) -> int:
        """How many would start within AHEAD seconds."""
        return min(int(self.per_second * AHEAD), MOST_AHEAD)


@dataclass(slots=True)
class Lane:
    """The slots of one isolation."""

    size: int
    running: int = 0
    waiting: int = 0
    """Claimed but not started."""
    ended: int = 0
    """Attempts that ended since the pace was last noted."""
    pace: Pace = field(default_factory=Pace)
    paced: bool = False
    """True where jobs with a rate may come: the claim takes their token, so it must not be long before they start."""
    moved: float = 0.0
    """When an attempt last started in it, in seconds, monotonic."""

    @property
    def free(self) -> int:
        """Slots in which nothing runs."""
        return max(self.size - self.running, 0)

    def note_pace(self, now: float) -> None:
        """Count what ended until `now` (seconds, monotonic)."""
        if self.ended:
            self.pace.count(self.ended, now)
            self.ended = 0

    def forget_pace(self) -> None:
        """Claim nothing ahead until attempts end again."""
        self.pace, self.ended = Pace(), 0

    @property
    def ahead(self) -> int:
        """How many may be claimed before there are slots for them."""
        return 0 if self.paced else self.pace.ahead()

    @property
    def room(self) -> int:
        """How many more to claim; none while half of what may be claimed ahead still waits: few large claims, not many small ones."""
        ahead = self.ahead
        return 0 if self.waiting > ahead // 2 else self.free + ahead - self.waiting


def demand(lanes: Mapping[Isolation, Lane], concurrency: int) -> tuple[int, dict[Isolation, int]]:
    """How many to claim in all, and at most of each isolation, for a worker that runs `concurrency` jobs at once."""
    room: dict[Isolation, int] = {isolation: lane.room for isolation, lane in lanes.items()}
    running = sum(lane.running for lane in lanes.values())
    waiting = sum(lane.waiting for lane in lanes.values())
    ahead = sum(lane.ahead for lane in lanes.values())
    limit = max(concurrency - running, 0) + min(ahead, MOST_AHEAD) - waiting
    return max(min(limit, sum(room.values())), 0), room
