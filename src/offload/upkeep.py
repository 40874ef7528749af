"""When a store's upkeep has something to do. Pure: times are whole microseconds since 1970, as SQL stores write them down."""

from __future__ import annotations

from typing import NamedTuple

SECOND = 1_000_000
LONGEST_WAIT = 60.0
"""Seconds after which upkeep is worth asking again, whatever is known."""
LOOK_EVERY = 60 * SECOND
"""How often schedules are looked for that no worker declares any more."""


class Moments(NamedTuple):
    """When something is next to be done, and when absent schedules were last looked for."""

    due: int | None
    expires: int | None
    forgets: int | None
    tick: int | None
    pruned: int | None
    wakes: int | None
    """When somebody may pass gates by time alone."""
    fades: int | None
    """When a gate may be forgotten, since it says no more than that nothing is known."""
    now: int

    def come(self, moment: int | None) -> bool:
        """Whether a moment has come."""
        return moment is not None and moment <= self.now

    @property
    def prunes(self) -> bool:
        """Whether absent schedules are to be looked for again; also after the clock was set back."""
        return self.pruned is None or not 0 <= self.now - self.pruned < LOOK_EVERY

    @property
    def set_back(self) -> bool:
        """Whether the clock was set back since then: what waits for a moment that it reckoned with before is to be looked at again."""
        return self.pruned is not None and self.pruned > self.now

    @property
    def idle(self) -> bool:
        """Whether a round would find nothing to do but, perhaps, to rescue."""
        return not (self.prunes or any(map(self.come, (self.due, self.expires, self.forgets, self.wakes, self.fades))))

    @property
    def wait(self) -> float:
        """Seconds until the next promotion, expiry or tick."""
        moments = [moment for moment in (self.due, self.expires, self.tick) if moment is not None]
        wait = (min(moments) - self.now) / SECOND if moments else LONGEST_WAIT
        return min(max(wait, 0.0), LONGEST_WAIT)
