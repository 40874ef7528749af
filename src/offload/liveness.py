"""Judges which sessions are dead, by beat numbers and the observer's own monotonic clock only."""

from __future__ import annotations

from collections.abc import Mapping


class Watch:
    """What one live session has seen of the others.

    A session is dead when its beat number stayed the same for `timeout` seconds of the observer's monotonic clock while the
    observer's own beats succeeded. An observer that was itself away (frozen, or cut off from the broker) for longer than
    two heartbeats starts its observations anew: it cannot tell its own absence from another's.
    """

    def __init__(self, timeout: float, heartbeat: float) -> None:
        self._timeout = timeout
        self._longest_gap = min(2 * heartbeat + 1, timeout)
        self._seen: dict[str, tuple[int, float]] = {}
        self._last: float | None = None

    def observe(self, beats: Mapping[str, int], now: float) -> list[tuple[str, int]]:
        """Take note of the beat numbers of all other sessions, just after an own beat succeeded at `now` seconds.

        Returns (session id, beat number seen) of those that are dead; the rescue must hold only while the number is still that.
        """
        if self._last is not None and now - self._last > self._longest_gap:
            self._seen.clear()
        self._last = now
        self._seen = {
            session: seen if (seen := self._seen.get(session)) is not None and seen[0] == beat else (beat, now)
            for session, beat in beats.items()
        }
        return [(session, beat) for session, (beat, since) in self._seen.items() if now - since >= self._timeout]
