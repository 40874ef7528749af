"""Tells which workers are alive, and what becomes of the jobs of one that shows no sign of life. Pure: for people's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from offload.records import SessionRecord
from offload.wording import number, whole

UPKEEP = 2.0
"""Seconds that a rescue may take besides the session timeout and a heartbeat."""


def quiet(session: SessionRecord, now: datetime) -> bool:
    """True when two beats are missing, by the clocks of two machines: for people's eyes."""
    return age(session.beat_at, now) > 2 * session.info.heartbeat


def silent(session: SessionRecord, now: datetime) -> bool:
    """True when the last beat shown is older than the session timeout: for people's eyes, never to rescue by."""
    return age(session.beat_at, now) > session.info.session_timeout


def live(sessions: Sequence[SessionRecord], now: datetime) -> list[SessionRecord]:
    """Those that are not silent."""
    return [session for session in sessions if not silent(session, now)]


def serves(session: SessionRecord, queue: str) -> bool:
    """Whether a worker takes jobs of a queue."""
    return session.info.queues is None or queue in session.info.queues


def age(moment: datetime, now: datetime) -> float:
    """Seconds since a moment."""
    return (now - moment).total_seconds()


def takeover(holder: SessionRecord, sessions: Sequence[SessionRecord], now: datetime, done: str) -> str:
    """When the jobs of a worker that shows no sign of life are taken from it. `done` says what becomes of them: `it is run again`.

    A worker rescues only what it has itself seen silent for its session timeout; one that has just started has yet to see that.
    """
    watchers = [session for session in sessions if session.id != holder.id and not quiet(session, now)]
    if not watchers:
        return f"no other worker shows one either: start one with `offload worker`, and {once_up(holder)} {done}"
    eldest = min(watchers, key=lambda session: session.started_at)
    timeout = eldest.info.session_timeout
    if age(max(holder.beat_at, eldest.started_at), now) >= timeout:
        return f"{done} within moments"
    if eldest.started_at <= holder.beat_at:
        return f"after {whole(timeout)} {done}"
    within, up = timeout + eldest.info.heartbeat + UPKEEP, max(age(eldest.started_at, now), 0.0)
    return (
        f"{done} within {whole(within)} of the start of worker {eldest.info.name}, {whole(up)} ago, "
        f"for a worker takes over only what it has itself seen silent for {whole(timeout)}"
    )


def once_up(holder: SessionRecord) -> str:
    """When a worker that is started now takes over what another held."""
    return f"{whole(holder.info.session_timeout)} after it came up"


def unheard(sessions: Sequence[SessionRecord], now: datetime) -> str:
    """That none of some workers is alive, and what they hold."""
    since = whole(min(age(session.beat_at, now) for session in sessions))
    held = sum(session.running for session in sessions)
    holds = number(held, "job", "jobs") if held else "no job"
    if len(sessions) == 1:
        return f"The last worker, {sessions[0].info.name}, has shown no sign of life for {since}, and holds {holds}."
    return f"None of the {len(sessions):,} workers listed has shown a sign of life for {since}; they hold {holds}."


def counted(sessions: Sequence[SessionRecord], now: datetime) -> str:
    """`3 workers`, and of how many there is no sign of life."""
    workers = number(len(sessions), "worker", "workers")
    lost = sum(quiet(session, now) for session in sessions)
    if not lost:
        return workers
    if lost == len(sessions):
        return f"{workers} without any sign of life," if lost == 1 else f"{workers}, none of which shows a sign of life,"
    return f"{workers}, {lost:,} of them without a sign of life,"
