"""`offload queues`."""

from __future__ import annotations

import pytest
from tests.cli.project import Project


def test_queues_are_listed_with_their_jobs_by_state(project: Project) -> None:
    project.ok("enqueue", "greet", "user_id=1")
    project.ok("enqueue", "greet", "user_id=1", "--delay", "60")
    project.ok("enqueue", "boom")
    bad, default = project.json("queues")
    assert (bad["queue"], bad["jobs"]["READY"], bad["paused"], bad["workers"]) == ("bad", 1, False, [])
    assert (default["jobs"]["READY"], default["jobs"]["SCHEDULED"], default["jobs"]["DEAD"]) == (1, 1, 0)
    assert default["oldest_ready_at"].endswith("Z")
    header, *rows = project.ok("queues").splitlines()
    assert header.split()[:5] == ["queue", "scheduled", "ready", "running", "dead"]
    assert [row.split()[0] for row in rows] == ["bad", "default"]


def test_a_paused_queue_is_shown_and_goes_on_when_resumed(project: Project) -> None:
    project.ok("enqueue", "greet", "user_id=1")
    assert "offload queues resume default" in project.ok("queues", "pause", "default")
    assert project.drain() == 0
    [queue] = project.json("queues")
    assert queue["paused"] is True
    assert project.ok("queues").splitlines()[1].endswith("paused")
    assert project.ok("queues", "resume", "default") == "Queue 'default' goes on.\n"
    assert project.ok("queues", "resume", "default") == "Queue 'default' was not paused.\n"
    assert project.drain() == 1


def test_no_queue_says_so(project: Project) -> None:
    assert "There is no queue yet" in project.empty().run("queues").stderr


def test_a_queue_that_nobody_knows_is_paused_with_a_warning(project: Project) -> None:
    result = project.empty().run("queues", "pause", "defualt")
    assert result.exit_code == 0
    assert "knows a queue 'defualt'; did you mean default?" in result.stderr
    assert project.app.paused() == {"defualt"}
    assert "knows a queue 'defualt'" in project.run("queues", "pause", "defualt").stderr  # that it is paused makes it no queue
    assert "No job is there, and no worker names it." in project.ok("doctor")
    assert project.run("queues", "pause", "bad").stderr == ""  # no job is there yet, but a task names it
    assert "'defalt' was not paused; did you mean defualt?" in project.ok("queues", "resume", "defalt")


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_an_empty_name_is_refused(project: Project, verb: str) -> None:
    result = project.empty().run("queues", verb, "")
    assert result.exit_code == 2
    assert "the name is empty" in result.stderr
    assert project.app.paused() == set()
