"""When schedules fire: rules, nights with clock changes, and what happens to ticks that were missed."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import BadDeclaration
from offload.job import Draft, Missed, Overlap, Schedule
from offload.schedule import GRACE, MOST_MADE_UP, Ticks, next_tick, preview, ticks, validate

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def rule(
    cron: str | None = None,
    *,
    every: float | None = None,
    timezone: str = "UTC",
    missed: Missed = "latest",
    overlap: Overlap = "skip",
) -> Schedule:
    return Schedule(name="nightly", draft=Draft(task="clean"), cron=cron, every=every, timezone=timezone, missed=missed, overlap=overlap)


def local(cron: str, timezone: str, day: str, days: int = 1) -> list[str]:
    """The ticks from the local midnight of `day` to that of `days` later, as local times with their offset."""
    zone = ZoneInfo(timezone)
    midnight = datetime.fromisoformat(day)
    start, end = midnight.replace(tzinfo=zone), (midnight + timedelta(days=days)).replace(tzinfo=zone)
    found = [tick for tick in preview(rule(cron, timezone=timezone), start - timedelta(seconds=1), 200) if tick < end]
    return [f"{tick.astimezone(zone):%H:%M%z}" for tick in found]


SPRING = [(BERLIN, "2027-03-28", "03:00+0200"), (NEW_YORK, "2027-03-14", "03:00-0400")]
AUTUMN = [(BERLIN, "2027-10-31", "+0200", "+0100"), (NEW_YORK, "2027-11-07", "-0400", "-0500")]


class TestNightsWithAClockChange:
    @pytest.mark.parametrize(("zone", "day", "jump"), SPRING)
    def test_a_time_in_the_gap_happens_once_right_after_the_jump(self, zone: str, day: str, jump: str) -> None:
        assert local("30 2 * * *", zone, day) == [jump]

    @pytest.mark.parametrize(("zone", "day", "jump"), SPRING)
    def test_several_times_in_the_gap_make_one_tick(self, zone: str, day: str, jump: str) -> None:
        assert local("15,30,45 2 * * *", zone, day) == [jump]
        assert local("0 2,3 * * *", zone, day) == [jump]

    @pytest.mark.parametrize(("zone", "day", "first", "second"), [(z, d, a, b) for z, d, a, b in AUTUMN if z == BERLIN])
    def test_a_time_in_the_repeated_hour_happens_once(self, zone: str, day: str, first: str, second: str) -> None:
        assert local("30 2 * * *", zone, day) == [f"02:30{first}"]
        assert local("30 1,2,3 * * *", zone, day) == [f"01:30{first}", f"02:30{first}", f"03:30{second}"]

    def test_a_time_in_the_repeated_hour_of_new_york_happens_once(self) -> None:
        assert local("30 1 * * *", NEW_YORK, "2027-11-07") == ["01:30-0400"]

    @pytest.mark.parametrize(("zone", "day", "first", "second"), AUTUMN)
    def test_every_half_hour_means_real_half_hours(self, zone: str, day: str, first: str, second: str) -> None:
        found = local("*/30 * * * *", zone, day)
        doubled = "02" if zone == BERLIN else "01"
        assert len(found) == 50
        assert [tick for tick in found if tick.startswith(doubled)] == [f"{doubled}:{m}{o}" for o in (first, second) for m in ("00", "30")]

    @pytest.mark.parametrize(("zone", "day", "jump"), SPRING)
    def test_a_rule_with_a_star_does_not_make_up_the_gap(self, zone: str, day: str, jump: str) -> None:
        assert jump[:2] + ":15" + jump[5:] not in local("15 */2 * * *", zone, day)
        assert len(local("15 */2 * * *", zone, day)) == 11

    def test_six_fields_are_treated_like_five(self) -> None:
        assert local("0 30 2 * * *", BERLIN, "2027-03-28") == ["03:00+0200"]
        assert local("0 30 2 * * *", BERLIN, "2027-10-31") == ["02:30+0200"]

    def test_a_day_that_the_zone_left_out_is_made_up_once(self) -> None:
        assert local("0 9,12 30 12 *", "Pacific/Apia", "2011-12-29", days=3) == ["00:00+1400"]

    def test_a_change_of_half_an_hour_loses_nothing(self) -> None:
        assert local("40 2 * * *", LORD_HOWE, "2027-10-03") == ["02:40+1100"]
        assert "02:40+1100" in local("40 * * * *", LORD_HOWE, "2027-10-03")
        assert local("*/15 3 * * *", LORD_HOWE, "2027-10-03") == ["03:00+1100", "03:15+1100", "03:30+1100", "03:45+1100"]


def numbers(field: str, most: int) -> set[int]:
    """An independent reading of the simple fields that the property test draws."""
    if field == "*":
        return set(range(most))
    if field.startswith("*/"):
        return set(range(0, most, int(field[2:])))
    return {int(part) for part in field.split(",")}


def brute(minute: str, hour: str, zone: ZoneInfo, start: datetime, length: int) -> list[datetime]:
    """The ticks of the `length` minutes from `start`, found by looking at every one."""
    moments = [start + number * MINUTE for number in range(-1, length)]
    walls = [moment.astimezone(zone).replace(tzinfo=None) for moment in moments]
    matching = {wall for wall in walls if wall.minute in numbers(minute, 60) and wall.hour in numbers(hour, 24)}
    if minute.startswith("*") or hour.startswith("*"):
        return [moment for moment, wall in zip(moments[1:], walls[1:], strict=True) if wall in matching]
    found: set[datetime] = set()
    latest = walls[0]
    for moment, wall in zip(moments[1:], walls[1:], strict=True):
        passed = (latest + number * MINUTE for number in range(1, int((wall - latest) / MINUTE) + 1))
        if any(one.minute in numbers(minute, 60) and one.hour in numbers(hour, 24) for one in passed):
            found.add(moment)
        latest = max(latest, wall)
    return sorted(found)


NIGHTS = [
    (BERLIN, datetime(2027, 3, 28, 1, tzinfo=UTC)),
    (BERLIN, datetime(2027, 10, 31, 1, tzinfo=UTC)),
    (NEW_YORK, datetime(2027, 3, 14, 7, tzinfo=UTC)),
    (NEW_YORK, datetime(2027, 11, 7, 6, tzinfo=UTC)),
    (LORD_HOWE, datetime(2027, 4, 3, 15, tzinfo=UTC)),
    (LORD_HOWE, datetime(2027, 10, 2, 15, 30, tzinfo=UTC)),
    ("America/Havana", datetime(2027, 3, 14, 5, tzinfo=UTC)),
    ("America/Havana", datetime(2027, 11, 7, 5, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(2027, 3, 14, 5, tzinfo=UTC)),
]
"""Zones and the moments around which their clocks change: at night, at midnight, by half an hour, not at all."""


@settings(max_examples=150, deadline=None)
@given(
    night=st.sampled_from(NIGHTS),
    minute=st.sampled_from(["*", "*/7", "*/15", "*/30", "0", "30", "5,40", "0,15,30,45", "59"]),
    hour=st.sampled_from(["*", "*/2", "*/3", "0", "1", "2", "3", "1,2,3", "23", "0,12", "4"]),
    lead=st.integers(min_value=0, max_value=300),
)
def test_ticks_agree_with_looking_at_every_minute(night: tuple[str, datetime], minute: str, hour: str, lead: int) -> None:
    zone, change = night
    start, length = change - lead * MINUTE, 30 * 60
    expected = brute(minute, hour, ZoneInfo(zone), start, length)
    found = preview(rule(f"{minute} {hour} * * *", timezone=zone), start - timedelta(seconds=1), len(expected) + 1)
    assert [tick for tick in found if tick < start + length * MINUTE] == expected


class TestRules:
    def test_a_tick_is_strictly_after(self) -> None:
        assert next_tick(rule("0 12 * * *"), NOON) == NOON + timedelta(days=1)
        assert next_tick(rule("0 12 * * *"), NOON - timedelta(microseconds=1)) == NOON
        assert next_tick(rule("* * * * * *"), NOON + timedelta(microseconds=1)) == NOON + timedelta(seconds=1)

    def test_ticks_are_in_utc_whatever_the_zone_asked_in(self) -> None:
        found = next_tick(rule("0 9 * * *", timezone=BERLIN), NOON.astimezone(ZoneInfo("Asia/Tokyo")))
        assert found is not None
        assert found.isoformat() == "2026-11-22T08:00:00+00:00"

    def test_day_of_month_and_day_of_week_are_either_or(self) -> None:
        days = [tick.day for tick in preview(rule("0 9 1 * MON"), datetime(2026, 11, 1, 12, tzinfo=UTC), 6)]
        assert days == [2, 9, 16, 23, 30, 1]

    @pytest.mark.parametrize(
        ("cron", "expected"),
        [
            ("0 0 * * 0", datetime(2026, 11, 22, tzinfo=UTC)),
            ("0 0 * * 7", datetime(2026, 11, 22, tzinfo=UTC)),
            ("0 0 * * sun", datetime(2026, 11, 22, tzinfo=UTC)),
            ("0 0 L * *", datetime(2026, 11, 30, tzinfo=UTC)),
            ("0 0 LW JAN *", datetime(2027, 1, 29, tzinfo=UTC)),
            ("0 0 * * 5L", datetime(2026, 11, 27, tzinfo=UTC)),
            ("0 0 * * MON#2", datetime(2026, 12, 14, tzinfo=UTC)),
            ("0 0 29 2 *", datetime(2028, 2, 29, tzinfo=UTC)),
            ("*/10 * * * * *", NOON + timedelta(seconds=10)),
            ("30 5 12 * * *", NOON + timedelta(minutes=5, seconds=30)),
        ],
    )
    def test_names_sundays_last_days_and_seconds(self, cron: str, expected: datetime) -> None:
        assert next_tick(rule(cron), NOON) == expected

    def test_every_starts_one_period_from_now(self) -> None:
        assert preview(rule(every=900), NOON, 2) == [NOON + timedelta(minutes=15), NOON + timedelta(minutes=30)]


class TestMissedTicks:
    def test_nothing_fires_before_its_time(self) -> None:
        coming = NOON + timedelta(hours=1)
        for schedule in (rule("0 * * * *"), rule(every=60)):
            assert ticks(schedule, coming, NOON) == Ticks((), coming)

    def test_a_tick_that_is_due_fires(self) -> None:
        for missed in ("latest", "skip"):
            assert ticks(rule("0 * * * *", missed=missed), NOON, NOON) == Ticks((NOON,), NOON + timedelta(hours=1))

    def test_latest_fires_only_the_last(self) -> None:
        now = NOON + timedelta(hours=3, minutes=5)
        assert ticks(rule("0 * * * *"), NOON, now) == Ticks((NOON + timedelta(hours=3),), NOON + timedelta(hours=4))

    def test_skip_fires_the_last_only_when_it_is_hardly_late(self) -> None:
        schedule = rule("0 * * * *", missed="skip")
        last = NOON + timedelta(hours=3)
        after = last + timedelta(hours=1)
        assert ticks(schedule, NOON, last + timedelta(seconds=GRACE)) == Ticks((last,), after)
        assert ticks(schedule, NOON, last + timedelta(seconds=GRACE, microseconds=1)) == Ticks((), after)

    def test_all_fires_every_one_in_order(self) -> None:
        found = ticks(rule("0 * * * *", missed="all", overlap="allow"), NOON, NOON + timedelta(hours=3, minutes=5))
        assert found.fire == tuple(NOON + timedelta(hours=number) for number in range(4))
        assert found.next_at == NOON + timedelta(hours=4)

    @pytest.mark.parametrize("cron", ["* * * * * *", "* * * * *", "0 9 * * *", "* * * 1 1 *", "0 0 29 2 *"])
    @pytest.mark.parametrize("timezone", ["UTC", BERLIN])
    def test_all_makes_up_the_latest_thousand_of_years(self, cron: str, timezone: str) -> None:
        schedule = rule(cron, timezone=timezone, missed="all", overlap="allow")
        first = next_tick(schedule, NOON - timedelta(days=3_650))
        assert first is not None
        began = time.process_time()
        found = ticks(schedule, first, NOON)
        assert time.process_time() - began < 5
        assert len(found.fire) == (2 if "29" in cron else MOST_MADE_UP)
        assert found.next_at is not None
        assert (*found.fire[1:], found.next_at) == tuple(preview(schedule, found.fire[0], len(found.fire)))
        assert found.fire[-1] <= NOON < found.next_at
        assert ticks(rule(cron, timezone=timezone), first, NOON) == Ticks(found.fire[-1:], found.next_at)

    def test_every_keeps_its_phase(self) -> None:
        start = NOON + timedelta(seconds=7)
        now = NOON + timedelta(days=365, seconds=30)
        found = ticks(rule(every=60, missed="all", overlap="allow"), start, now)
        assert len(found.fire) == MOST_MADE_UP
        assert found.fire[-1] == NOON + timedelta(days=365, seconds=7)
        assert found.next_at == found.fire[-1] + MINUTE
        assert ticks(rule(every=60), start, now).fire == found.fire[-1:]

    def test_every_makes_up_all_of_a_few(self) -> None:
        found = ticks(rule(every=60, missed="all", overlap="allow"), NOON, NOON + timedelta(seconds=150))
        assert found == Ticks((NOON, NOON + MINUTE, NOON + 2 * MINUTE), NOON + 3 * MINUTE)


class TestDeclarations:
    @pytest.mark.parametrize(
        ("schedule", "says"),
        [
            (rule(), "neither is given"),
            (rule("* * * * *", every=1), "both are given"),
            (rule("* * *"), "has 3 fields; write five"),
            (rule("@daily"), "has 1 field;"),
            (rule(""), "has 0 fields"),
            (rule("61 * * * *"), "bad minute, '61'; allowed are \\* and 0-59"),
            (rule("61 * * * * *"), "bad second"),
            (rule("* 24 * * *"), "bad hour, '24'; allowed are \\* and 0-23"),
            (rule("0 0 32 * *"), "bad day of month"),
            (rule("0 0 L-3 * *"), "bad day of month"),
            (rule("0 0 1 13 *"), "bad month"),
            (rule("0 0 * * FRO"), "bad day of week, 'FRO'.*SUN-SAT"),
            (rule("*/0 * * * *"), "bad minute"),
            (rule("0 0 1 1 " + "9" * 5_000), "bad day of week"),
            (rule("0 0 31 2 *"), "never fires"),
            (rule("0 0 31 4,6 *"), "never fires"),
            (rule("* * */20 * 1L"), "never fires"),
            (rule("* * * * *", timezone="Europe/Berln"), "did you mean 'Europe/Berlin'"),
            (rule("* * * * *", timezone="../../etc/passwd"), "time zone '../../etc/passwd' is unknown"),
            (rule("* * * * *", timezone="Europe"), "time zone 'Europe' is unknown"),
            (rule("* * * * *", timezone=""), "time zone '' is unknown"),
            (rule(every=0), "must be between"),
            (rule(every=-5), "must be between"),
            (rule(every=float("nan")), "must be between"),
            (rule(every=float("inf")), "must be between"),
            (rule("* * * * *", missed="all"), "missed='all' needs overlap='allow'"),
            (rule("* * * * *", missed="none"), "use 'latest', 'skip' or 'all'"),  # pyright: ignore[reportArgumentType] - what is tested
            (rule("* * * * *", overlap="none"), "use 'skip', 'allow' or 'replace'"),  # pyright: ignore[reportArgumentType] - what is tested
        ],
    )
    def test_what_cannot_work_is_refused_by_name(self, schedule: Schedule, says: str) -> None:
        with pytest.raises(BadDeclaration, match=says) as caught:
            validate(schedule)
        assert "schedule 'nightly'" in str(caught.value)

    @pytest.mark.parametrize("cron", ["0 9 * * MON-FRI", "*/5 8-17 * jan,jul 1-5", "0 0 30 2 MON", "0 0 * 2 MON#5", "0 0 29 2 *"])
    def test_what_fires_now_and_then_is_accepted(self, cron: str) -> None:
        validate(rule(cron, timezone=BERLIN))

    def test_all_with_overlap_allowed_is_accepted(self) -> None:
        validate(rule(every=0.5, missed="all", overlap="allow"))
