"""`offload schedules`."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.cli.project import Project

from offload import State


@pytest.fixture
def scheduled(project: Project) -> Project:
    greet = project.app.tasks["greet"]
    project.app.schedule("hello", greet.job(user_id=1), every=timedelta(minutes=15))
    return project


def test_schedules_are_listed_with_those_that_no_worker_has_made_known_yet(scheduled: Project) -> None:
    hello, weekly = scheduled.json("schedules")
    assert (hello["name"], hello["every"], hello["task"], hello["known"], hello["declared"]) == ("hello", 900.0, "greet", True, False)
    assert (weekly["name"], weekly["cron"], weekly["timezone"], weekly["known"]) == ("weekly", "0 9 * * MON", "Europe/Berlin", False)
    assert hello["next_at"].endswith("Z")
    result = scheduled.run("schedules")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["hello", "weekly"]
    assert "every 15 min" in result.stdout
    assert "start with the next worker" in result.stderr


def test_a_worker_makes_declared_schedules_known(scheduled: Project) -> None:
    scheduled.drain()
    assert [each["known"] for each in scheduled.json("schedules")] == [True, True]


def test_preview_shows_the_next_ticks_in_the_schedules_own_time_zone(scheduled: Project) -> None:
    assert len(scheduled.json("schedules", "preview", "hello")["ticks"]) == 5
    header, *ticks = scheduled.ok("schedules", "preview", "weekly", "3").splitlines()
    assert header.split() == ["Europe/Berlin", "UTC"]
    assert len(ticks) == 3
    assert all(tick.startswith("Mon ") and " 09:00:00 C" in tick for tick in ticks)
    unknown = scheduled.run("schedules", "preview", "helo")
    assert unknown.exit_code == 1
    assert "did you mean hello?" in unknown.stderr


def test_preview_of_a_schedule_in_utc_shows_each_time_once(scheduled: Project) -> None:
    header, *ticks = scheduled.ok("schedules", "preview", "hello", "2").splitlines()
    assert header.split() == ["UTC"]
    assert all(tick.count(":") == 2 for tick in ticks)


def test_a_paused_schedule_is_shown_and_goes_on_when_resumed(scheduled: Project) -> None:
    assert "offload schedules resume hello" in scheduled.ok("schedules", "pause", "hello")
    assert scheduled.json("schedules")[0]["paused"] is True
    assert "paused" in scheduled.ok("schedules").splitlines()[1]
    assert scheduled.ok("schedules", "resume", "hello") == "Schedule 'hello' goes on.\n"
    assert scheduled.json("schedules")[0]["paused"] is False


def test_run_enqueues_one_now_and_says_when_overlap_forbids_it(scheduled: Project) -> None:
    id = scheduled.json("schedules", "run", "hello")["id"]
    assert scheduled.record(id).state is State.READY
    again = scheduled.run("schedules", "run", "hello")
    assert again.exit_code == 1
    assert "nothing was enqueued" in again.stderr
    scheduled.drain()
    assert scheduled.ok("schedules", "run", "hello").strip() != id


def test_remove_asks_first(scheduled: Project) -> None:
    assert scheduled.run("schedules", "remove", "hello", input="n\n").exit_code == 1
    assert scheduled.json("schedules")[0]["name"] == "hello"
    assert scheduled.ok("schedules", "remove", "hello", "--yes") == "Schedule 'hello' is removed.\n"
    assert [each["name"] for each in scheduled.json("schedules")] == ["weekly"]


def test_removing_a_declared_one_says_that_it_comes_back(scheduled: Project) -> None:
    scheduled.drain()
    assert "comes back with the next worker" in scheduled.ok("schedules", "remove", "weekly", "--yes")


@pytest.mark.parametrize("verb", ["pause", "resume", "run", "remove"])
def test_what_is_not_there_exits_1(scheduled: Project, verb: str) -> None:
    unknown = scheduled.run("schedules", verb, "helo")
    assert unknown.exit_code == 1
    assert "did you mean hello?" in unknown.stderr
    declared = scheduled.run("schedules", verb, "weekly")
    assert declared.exit_code == 1
    assert "until a worker of the app has started" in declared.stderr


def test_no_schedule_says_so(project: Project) -> None:
    assert project.empty().run("schedules", "--url", "sqlite:///shop.db").stderr == "There is no schedule.\n"
