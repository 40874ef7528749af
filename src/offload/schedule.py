"""When a schedule fires: checks its rule and computes its ticks. No I/O but for reading the time zone database.

A rule is a cron expression in a time zone, or `every` so many seconds. cronsim reads the expression and finds the matching
wall-clock times; what a night with a clock change makes of them is decided here, as Vixie cron does it:

* A rule whose minute or hour begins with `*` follows real time: it fires at every moment whose wall-clock time matches, so twice
  in the hour that is repeated and never in the hour that is left out.
* Any other rule names times of day, and each happens once: at its first occurrence in a repeated hour, and right after the jump
  (once, however many of its times fall into it) when its hour is left out.

Moments are compared in UTC only: adding to an aware local time drops `fold`, and a loop over it can repeat an hour for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from itertools import islice, takewhile
from typing import NamedTuple

from offload.errors import BadDeclaration
from offload.job import Schedule

GRACE = 60.0
"""Seconds that a tick may be late under `missed="skip"` and still fire."""
MOST_MADE_UP = 1_000
"""The most ticks that `missed="all"` fires at once: the latest; those before them are dropped."""
SHORTEST_EVERY = 0.001
LONGEST_EVERY = 100 * 366 * 86_400.0
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)

FIELDS = (
    ("second", "0-59"),
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of month", "1-31, L (the last) or LW (the last weekday)"),
    ("month", "1-12 or JAN-DEC"),
    ("day of week", "0-7 (0 and 7 are Sunday), SUN-SAT, 5L (the last Friday) or MON#2 (the second Monday)"),
)


class Ticks(NamedTuple):
    """What a schedule does now: the ticks to fire, oldest first, and the tick to come (None: the rule has no more)."""

    fire: tuple[datetime, ...]
    next_at: datetime | None


def validate(schedule: Schedule) -> None:
    """Raise BadDeclaration, saying what to write instead, when the schedule can never work."""
    what = f"schedule {schedule.name!r}"
    if (schedule.cron is None) == (schedule.every is None):
        given = "neither is given" if schedule.cron is None else "both are given"
        raise BadDeclaration(f"{what} needs either cron= or every=, and {given}")
    if schedule.overlap not in ("skip", "allow", "replace"):
        raise BadDeclaration(f"{what}: overlap={schedule.overlap!r} is unknown; use 'skip', 'allow' or 'replace'")
    if schedule.missed not in ("latest", "skip", "all"):
        raise BadDeclaration(f"{what}: missed={schedule.missed!r} is unknown; use 'latest', 'skip' or 'all'")
    if schedule.missed == "all" and schedule.overlap != "allow":
        raise BadDeclaration(
            f"{what}: missed='all' needs overlap='allow', for its made-up ticks run beside each other; add it, or use missed='latest'"
        )
    for option, text in (("cron", schedule.cron), ("timezone", schedule.timezone)):
        if text is not None and not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"{what}: {option} must be a text, not {text!r}")
    _zone(schedule.timezone, what)
    if schedule.every is not None:
        _check_every(schedule.every, what)
    if schedule.cron is not None:
        _check_cron(schedule.cron, what)


def next_tick(schedule: Schedule, after: datetime) -> datetime | None:
    """The first tick strictly after the aware moment `after`, in UTC; None when the rule has no more.

    A rule of `every` has no calendar of its own: its first tick is `every` seconds after `after`.
    """
    return next(_moments(schedule, after), None)


def preview(schedule: Schedule, after: datetime, n: int) -> list[datetime]:
    """The next `n` ticks strictly after the aware moment `after`, in UTC; fewer when the rule ends."""
    return list(islice(_moments(schedule, after), n))


def ticks(schedule: Schedule, next_at: datetime, now: datetime) -> Ticks:
    """What the schedule, whose stored next tick is `next_at`, does at `now`.

    Nothing when `next_at` is still to come (so a clock that jumps back fires nothing twice). Otherwise by `missed`: "latest" fires
    only the last tick due; "skip" fires it only when it is at most GRACE seconds late; "all" fires every tick due, and of more
    than MOST_MADE_UP the latest. The work is bounded whatever was missed. Ticks of `every` keep the phase of `next_at`.
    """
    next_at, now = next_at.astimezone(UTC), now.astimezone(UTC)
    if next_at > now:
        return Ticks((), next_at)
    due = _last_due(schedule, next_at, now, MOST_MADE_UP if schedule.missed == "all" else 1)
    if schedule.missed == "skip" and (now - due[-1]).total_seconds() > GRACE:
        due = ()
    return Ticks(due, _following(schedule, next_at, now))


def _following(schedule: Schedule, next_at: datetime, now: datetime) -> datetime | None:
    """The first tick after `now`."""
    if schedule.every is None:
        return next_tick(schedule, now)
    every = timedelta(seconds=schedule.every)
    return next_at + ((now - next_at) // every + 1) * every


def _last_due(schedule: Schedule, next_at: datetime, now: datetime, most: int) -> tuple[datetime, ...]:
    """The last `most` ticks from `next_at` to `now`, oldest first; at least one."""
    if schedule.every is not None:
        every = timedelta(seconds=schedule.every)
        last = (now - next_at) // every
        return tuple(next_at + number * every for number in range(max(0, last - most + 1), last + 1))
    # Halving the time looked at finds a start with enough ticks after it but not many more; a start that is too late is `end`.
    start, end = next_at, now
    found = (next_at, *_up_to(schedule, start, now, 2 * most))
    while len(found) > 2 * most:
        middle = start + (end - start) / 2
        later = _up_to(schedule, middle, now, 2 * most + 1)
        if len(later) < most:
            end = middle
        else:
            start, found = middle, later
    return found[-most:]


def _up_to(schedule: Schedule, after: datetime, now: datetime, most: int) -> tuple[datetime, ...]:
    """The first `most` ticks after `after` that are due at `now`."""
    return tuple(islice(takewhile(lambda tick: tick <= now, _moments(schedule, after)), most))


def _moments(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """All ticks strictly after `after`, in UTC."""
    after = after.astimezone(UTC)
    if schedule.cron is None:
        return _every(timedelta(seconds=schedule.every or 0), after)
    what = f"schedule {schedule.name!r}"
    zone = _zone(schedule.timezone, what)
    fields = _fields(schedule.cron, what)
    follows_real_time = fields[1].startswith("*") or fields[2].startswith("*")
    return (_in_real_time if follows_real_time else _at_times_of_day)(" ".join(fields), zone, after)


def _every(every: timedelta, after: datetime) -> Iterator[datetime]:
    while True:
        after += every
        yield after


def _at_times_of_day(cron: str, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """The ticks of a rule that names times of day: each wall-clock time that matches, once."""
    for wall in _matching(cron, after.astimezone(zone).replace(tzinfo=None)):
        tick = _first_occurrence(wall, zone)
        if tick > after:  # also false for the second of two times of day that fall into one gap
            yield tick
            after = tick


def _first_occurrence(wall: datetime, zone: tzinfo) -> datetime:
    """The first moment at which clocks in `zone` show `wall` or, where they jump over it, the moment of the jump."""
    early = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if early.astimezone(zone).replace(tzinfo=None) == wall:
        return early
    before_jump = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return _change(zone, before_jump, early)


def _in_real_time(cron: str, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """The ticks of a rule that follows real time: every moment whose wall-clock time matches.

    From one clock change to the next the offset from UTC stays, and there matching is a matter of wall-clock time alone.
    """
    offset = _offset(zone, after)
    while True:
        for wall in _matching(cron, after.replace(tzinfo=None) + offset):
            tick = wall.replace(tzinfo=UTC) - offset
            change = _first_change(zone, after, tick, offset)
            if change is not None:
                break
            yield tick
            after = tick
        else:
            return
        after, offset = change - SECOND, _offset(zone, change)


def _first_change(zone: tzinfo, after: datetime, until: datetime, offset: timedelta) -> datetime | None:
    """The first moment in (after, until] at which the offset from UTC is no longer `offset`.

    Looks once a day: no zone changes its clocks and changes them back within one.
    """
    if zone is UTC:
        return None
    while after < until:
        step = min(after + DAY, until)
        if _offset(zone, step) != offset:
            return _change(zone, after, step)
        after = step
    return None


def _change(zone: tzinfo, before: datetime, after: datetime) -> datetime:
    """The moment in (before, after] from which on clocks have the offset that they have at `after`."""
    low, high = int(before.timestamp()), math.ceil(after.timestamp())
    offset = _offset(zone, after)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, datetime.fromtimestamp(middle, UTC)) == offset:
            high = middle
        else:
            low = middle
    return datetime.fromtimestamp(high, UTC)


def _offset(zone: tzinfo, moment: datetime) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None, "an aware moment has an offset"
    return offset


def _matching(cron: str, after: datetime) -> Iterator[datetime]:
    """The naive wall-clock times that match, strictly after the second of `after`; ends when 50 years hold none."""
    from cronsim import CronSim  # costs 3 ms, and most programs declare no schedule

    return CronSim(cron, after)


def _fields(cron: str, what: str) -> list[str]:
    """The six fields of a rule."""
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise BadDeclaration(
            f"{what}: cron={cron!r} has {len(fields)} field{'' if len(fields) == 1 else 's'}; write five (minute, hour, day of month, "
            "month, day of week) or six (second first), as in '0 9 * * MON'"
        )
    return fields if len(fields) == 6 else ["0", *fields]


def _check_cron(cron: str, what: str) -> None:
    """Refuse a malformed rule, naming the field, and one that never fires."""
    from cronsim import CronSimError  # see _matching

    start = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    fields = _fields(cron, what)
    for place, ((name, allowed), field) in enumerate(zip(FIELDS, fields, strict=True)):
        alone = ["*"] * place + [field] + ["*"] * (5 - place)
        try:
            _matching(" ".join(alone), start)
        except (CronSimError, ValueError) as error:
            raise BadDeclaration(
                f"{what}: cron={cron!r} has a bad {name}, {field!r}; allowed are * and {allowed}, with lists (a,b), ranges (a-b) "
                "and steps (*/n)"
            ) from error
    try:
        first = next(_matching(" ".join(fields), start), None)
    except CronSimError:  # every field is well formed, so it is their combination: such as the 31st of February
        first = None
    if first is None:
        raise BadDeclaration(f"{what}: cron={cron!r} never fires, for no date fits both its days and its months; correct one of them")


def _check_every(every: float, what: str) -> None:
    if not SHORTEST_EVERY <= every <= LONGEST_EVERY:
        raise BadDeclaration(
            f"{what}: every={every!r} must be between {SHORTEST_EVERY} seconds and 100 years; write seconds or a timedelta"
        )


def _zone(name: str, what: str) -> tzinfo:
    """The time zone called `name`; raises BadDeclaration with the names that look like it."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, available_timezones  # costs 5 ms, and most schedules are in UTC

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        known = available_timezones()
        alike = get_close_matches(name, known, n=3, cutoff=0.5)
        advice = (
            f"did you mean {' or '.join(map(repr, alike))}?"
            if alike
            else "use a name such as 'Europe/Berlin'"
            if known
            else "this machine has no time zone database: pip install tzdata"
        )
        raise BadDeclaration(f"{what}: time zone {name!r} is unknown; {advice}") from error
