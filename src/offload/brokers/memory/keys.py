"""Who holds a unique key and who comes after. What a conflict does is decided in `enqueueing`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from offload.clock import Clock
from offload.job import Job, UniqueKey


@dataclass(slots=True)
class Hold:
    """A key, the job that holds it, and the one job that waits for it."""

    unique: UniqueKey
    holder: str
    frees_at: datetime | None = None
    successor: str | None = None


class Keys:
    """The keys that are taken."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holds: dict[str, Hold] = {}

    def held(self, key: str) -> Hold | None:
        """Who holds `key`, None when it is free; one whose time is over is free."""
        hold = self._holds.get(key)
        if hold is not None and hold.frees_at is not None and self._clock.now() >= hold.frees_at:
            del self._holds[key]
            return None
        return hold

    def take(self, unique: UniqueKey, job: Job) -> None:
        """Give a free key to `job`."""
        seconds = unique.until if isinstance(unique.until, (int, float)) else None
        frees_at = None if seconds is None else job.enqueued_at + timedelta(seconds=seconds)
        self._holds[unique.key] = Hold(unique, job.id, frees_at)

    def give_up(self, key: str, job_id: str) -> str | None:
        """Free `key` where `job_id` holds it, or leave the line where it waits. Returns the successor that now may have it."""
        hold = self._holds.get(key)
        if hold is None:
            return None
        if hold.successor == job_id:
            hold.successor = None
            return None
        if hold.holder != job_id:
            return None
        del self._holds[key]
        return hold.successor

    def snapshot(self, key: str) -> Hold | None:
        """A copy of the hold on `key`, for `restore`."""
        hold = self._holds.get(key)
        return None if hold is None else Hold(hold.unique, hold.holder, hold.frees_at, hold.successor)

    def restore(self, key: str, hold: Hold | None) -> None:
        """Put back what `snapshot` returned."""
        if hold is None:
            self._holds.pop(key, None)
        else:
            self._holds[key] = hold
