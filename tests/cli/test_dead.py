"""`offload dead`."""

from __future__ import annotations

import pytest
from tests.cli.project import Project

from offload import State


@pytest.fixture
def graves(project: Project) -> Project:
    for number in range(3):
        project.ok("enqueue", "boom", f"n={number}", "--id", f"boom-{number}")
    project.ok("enqueue", "crash", "--id", "crash-0")
    project.ok("enqueue", "greet", "user_id=1", "--id", "fine")
    project.drain()
    return project


def test_dead_jobs_are_listed_by_task_and_error(graves: Project) -> None:
    boom, crash = graves.json("dead")
    assert (boom["task"], boom["error"], boom["jobs"]) == ("boom", "ValueError", 3)
    assert boom["latest_id"].replace("boom-", "ValueError: no user ") == boom["latest"]
    assert (crash["task"], crash["error"], crash["jobs"], crash["latest"]) == ("crash", "KeyError", 1, "KeyError: 'gone'")
    assert boom["first_at"] <= boom["last_at"]
    listed = graves.ok("dead").splitlines()
    assert listed[1].split()[:3] == ["3", "boom", "ValueError"]
    assert listed[1].endswith(boom["latest"].removeprefix("ValueError: "))


@pytest.mark.parametrize(
    ("filter", "tasks"),
    [(("--task", "crash"), ["crash"]), (("--error", "ValueError"), ["boom"]), (("--text", "gone"), ["crash"]), (("--queue", "none"), [])],
)
def test_filters_narrow_the_list(graves: Project, filter: tuple[str, str], tasks: list[str]) -> None:
    assert [group["task"] for group in graves.json("dead", *filter)] == tasks


def test_nothing_dead_says_so(project: Project) -> None:
    assert project.empty().run("dead").stderr == "No job is dead.\n"


def test_none_that_matches_says_so(graves: Project) -> None:
    assert graves.run("dead", "list", "--error", "TypeError").stderr == "No dead job matches.\n"


def test_retry_takes_ids_or_what_the_filters_find(graves: Project) -> None:
    assert graves.ok("dead", "retry", "boom-0") == "1 job retried.\n"
    assert graves.record("boom-0").state is State.READY
    assert graves.ok("dead", "retry", "--error", "ValueError", "--dry-run") == "2 jobs would be retried.\n"
    assert graves.run("dead", "retry", "--error", "ValueError", input="n\n").exit_code == 1
    assert graves.ok("dead", "retry", "--error", "ValueError", "--yes") == "2 jobs retried.\n"
    assert [group["task"] for group in graves.json("dead")] == ["crash"]


def test_purge_asks_and_forgets(graves: Project) -> None:
    refused = graves.run("dead", "purge", input="n\n")
    assert refused.exit_code == 1
    assert "Delete 4 jobs? This cannot be undone." in refused.stderr
    assert graves.ok("dead", "purge", "--task", "boom", input="y\n") == "3 jobs deleted.\n"
    assert graves.json("dead", "purge", "crash-0", "--yes") == {"deleted": ["crash-0"], "left_alone": []}
    assert [job["id"] for job in graves.json("jobs")] == ["fine"]


def test_jobs_that_are_not_dead_are_out_of_reach(graves: Project) -> None:
    result = graves.run("dead", "purge", "fine", "boom-0", "--yes")
    assert result.exit_code == 1
    assert "not dead: fine; nothing was changed" in result.stderr
    assert graves.record("boom-0").state is State.DEAD
    assert graves.run("dead", "retry", "boom-0", "--task", "boom").exit_code == 2
