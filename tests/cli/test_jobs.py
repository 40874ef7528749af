"""`offload jobs` and `offload why`."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.cli.project import Project

from offload import Offload, State
from offload.job import WorkerInfo
from offload.portal import portal

URL = ("--url", "sqlite:///shop.db")


@contextmanager
def running(project: Project) -> Iterator[str]:
    """A job that runs for the time of the block; then its worker leaves."""
    app = Offload("sqlite:///shop.db")
    left = asyncio.Event()

    async def work(claimed: threading.Event) -> None:
        worker = WorkerInfo(name="w", host="here", pid=1, tasks={"greet": "async"})
        async with (await app.store()).session(worker) as session:
            await session.fetch(None, 1, {"async": 1})
            claimed.set()
            await left.wait()

    id = project.ok("enqueue", "greet", "user_id=1", *URL).strip()
    claimed = threading.Event()
    thread = threading.Thread(target=portal.run, args=(work, claimed))
    thread.start()
    try:
        assert claimed.wait(30)
        yield id
    finally:
        portal.run(_set, left)
        thread.join()
        app.close()


async def _set(event: asyncio.Event) -> None:
    event.set()


def test_the_list_shows_whole_ids_states_and_what_went_wrong(project: Project) -> None:
    done = project.ok("enqueue", "greet", "user_id=1").strip()
    dead = project.ok("enqueue", "boom", "n=3").strip()
    project.drain()
    listed = project.ok("jobs").splitlines()
    assert listed[0].split() == ["id", "state", "task", "queue", "attempt", "when", "note"]
    assert listed[1].split()[:5] == [dead, "DEAD", "boom", "bad", "1"]
    assert listed[1].endswith("s ago  ValueError: no user 3")
    assert listed[2].split()[:5] == [done, "SUCCEEDED", "greet", "default", "1"]


def test_an_empty_list_says_so_beside_the_answer(project: Project) -> None:
    result = project.empty().run("jobs")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No job matches.\n")


@pytest.mark.parametrize(
    "filter",
    [("--state", "dead"), ("--task", "boom"), ("--queue", "bad"), ("--text", "NO USER"), ("--key", "only-one")],
)
def test_filters_narrow_the_list(project: Project, filter: tuple[str, str]) -> None:
    project.ok("enqueue", "greet", "user_id=1", "--unique", "another")
    dead = project.ok("enqueue", "boom", "--unique", "only-one").strip()
    project.drain()
    assert [job["id"] for job in project.json("jobs", *filter)] == [dead]


def test_the_list_goes_page_by_page(project: Project) -> None:
    for number in range(3):
        project.ok("enqueue", "boom", "--id", f"job-{number}")
    first = project.run("jobs", "--limit", "2")
    assert [line.split()[0] for line in first.stdout.splitlines()[1:]] == ["job-2", "job-1"]
    assert "--after job-1" in first.stderr
    assert [job["id"] for job in project.json("jobs", "--limit", "2", "--after", "job-1")] == ["job-0"]


def test_json_has_always_the_same_keys_and_utc_times(project: Project) -> None:
    project.ok("enqueue", "greet", "user_id=1", "--unique", "u:1")
    project.ok("enqueue", "boom", "--delay", "1h")
    project.drain()
    waiting, done = project.json("jobs")
    assert waiting.keys() == done.keys()
    assert done["state"] == "SUCCEEDED"
    assert done["result"] == {"user": 1, "note": ""}
    assert done["unique"] == {"key": "u:1", "until": "finished", "on_conflict": "skip"}
    for job, name in ((done, "enqueued_at"), (done, "finished_at"), (waiting, "run_at")):
        assert job[name].endswith("Z")
    assert waiting["finished_at"] is None


def test_show_tells_all_with_every_traceback(project: Project) -> None:
    dead = project.ok("enqueue", "boom", "n=3").strip()
    project.drain()
    shown = project.ok("jobs", "show", dead)
    assert dead in shown
    assert "n = 3" in shown
    assert "attempt 1 failed at" in shown
    assert 'raise ValueError(f"no user {n}")' in shown
    [error] = project.json("jobs", "show", dead)["errors"]
    assert (error["attempt"], error["type"], error["message"]) == (1, "ValueError", "no user 3")
    assert "Traceback" in error["traceback"]


ASKING = """
import time
from offload import Offload, RetryLater, current

app = Offload("sqlite:///shop.db", session_timeout=2, heartbeat=0.1)

@app.task(name="later")
def later() -> None:
    raise RetryLater(3)

@app.task(name="part")
def part() -> None:
    current.progress(0.08, "cutting")
    while app.handle(current.job.id).record().progress is None:  # it comes up with a heartbeat
        time.sleep(0.05)
"""


def test_a_retry_that_was_asked_for_is_told_with_its_unit(project: Project) -> None:
    project.write("shop.py", ASKING)
    id = project.ok("enqueue", "later").strip()
    project.drain()
    assert project.ok("jobs").splitlines()[1].endswith("asked to be run again in 3 s")
    assert "Attempt 1 asked to be run again in 3 s; it is tried again at" in project.ok("why", id)
    assert re.search("attempt 1 asked at .+Z to be run again in 3 s", project.ok("jobs", "show", id))
    assert project.json("jobs", "show", id)["errors"][0]["message"] == "3.0"


def test_no_progress_is_shown_of_a_job_that_has_succeeded(project: Project) -> None:
    project.write("shop.py", ASKING)
    id = project.ok("enqueue", "part").strip()
    project.drain()
    assert project.json("jobs", "show", id)["progress"] == {"fraction": 0.08, "message": "cutting"}
    assert "cutting" not in project.ok("jobs", "show", id)


def test_masked_arguments_are_never_shown_unless_asked_for(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=7", "token=hush").strip()
    for args in (("jobs",), ("jobs", "--json"), ("jobs", "show", id), ("jobs", "show", id, "--json")):
        assert "hush" not in project.ok(*args)
    assert project.json("jobs", "show", id)["payload"] == {"user_id": 7, "token": "***"}
    assert "hush" in project.ok("jobs", "show", id, "--reveal")


def test_without_the_app_all_arguments_are_hidden_for_any_may_be_masked(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=7", "token=hush").strip()
    shown = project.ok("jobs", "show", id, "--url", "sqlite:///shop.db")
    assert "hush" not in shown
    assert "--reveal" in shown
    assert project.json("jobs", "show", id, "--url", "sqlite:///shop.db", "--reveal")["payload"] == {"user_id": 7, "token": "hush"}


def test_nothing_that_a_terminal_would_obey_is_printed(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=7", '{"note": "\\u001b[2J"}').strip()
    project.drain()
    assert "\x1b" not in project.ok("jobs", "show", id, "--reveal")
    project.ok("enqueue", "--url", "sqlite:///shop.db", "evil\x1b[2J\ntask")
    assert "\x1b" not in project.ok("jobs")
    assert len(project.ok("jobs").splitlines()) == 3


def test_what_is_not_there_exits_1(project: Project) -> None:
    for args in (("jobs", "show", "nothing"), ("why", "nothing")):
        result = project.empty().run(*args)
        assert result.exit_code == 1
        assert "no job nothing" in result.stderr


def test_cancel_by_id_needs_no_confirmation(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    assert project.ok("jobs", "cancel", id) == "1 job cancelled.\n"
    assert project.record(id).state is State.CANCELLED


def test_what_was_left_alone_is_named_and_exits_1(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    result = project.run("jobs", "cancel", id, "nothing", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"cancelled": [id], "asked_to_stop": [], "left_alone": ["nothing"]}
    assert "nothing was left alone: there is no such job" in result.stderr


def test_each_job_left_alone_is_told_why(project: Project) -> None:
    done, first = project.ok("enqueue", "greet", "user_id=1").strip(), project.ok("enqueue", "boom", "--unique", "b").strip()
    project.drain()
    second = project.ok("enqueue", "boom", "--unique", "b").strip()
    refused = project.run("jobs", "retry", done, first, second, "nothing")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        f"{done} was left alone: it is SUCCEEDED already.",
        f"{first} was left alone: its unique key 'b' is held by job {second}, which is READY.",
        f"{second} was left alone: it is READY.",
        "nothing was left alone: there is no such job: it was never enqueued, was deleted, or its record is forgotten.",
    ]


def test_a_running_job_is_asked_to_stop_and_says_so_everywhere(project: Project) -> None:
    with running(project) as id:
        assert project.ok("jobs", "cancel", id, *URL) == "1 running job was asked to stop.\n"
        waiting = project.ok("enqueue", "greet", "user_id=1", "--queue", "later", *URL).strip()
        assert project.ok("jobs", "cancel", id, waiting, *URL) == "1 job cancelled.\n1 running job was asked to stop.\n"
        assert project.json("jobs", "cancel", id, *URL) == {"cancelled": [], "asked_to_stop": [id], "left_alone": []}
        assert "Its cancellation was asked for" in project.ok("why", id, *URL)
        assert "RUNNING (asked to stop)" in project.ok("jobs", "show", id, *URL)
        assert project.json("jobs", "show", id, *URL)["cancel_asked"] is True
        assert "asked to stop" in project.ok("jobs", *URL)
        deleted = project.run("jobs", "delete", id, "--yes", *URL)
        assert f"{id} was left alone: it is RUNNING: cancel it first." in deleted.stderr
    assert project.json("jobs", "show", id)["cancel_asked"] is False


def test_a_job_is_followed_until_it_has_ended(project: Project) -> None:
    with running(project) as id:
        followed = project.start("jobs", "show", id, "--follow", *URL)
        assert followed.stdout is not None
        assert followed.stdout.readline() == "RUNNING, attempt 1\n"
        project.ok("jobs", "cancel", id, *URL)
    output, _ = followed.communicate(timeout=30)
    assert "CANCELLED, attempt 1" in output
    assert "arguments" in output


def test_following_a_job_as_json_keeps_standard_output_for_the_record(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    project.drain()
    result = project.run("jobs", "show", id, "--follow", "--json")
    assert json.loads(result.stdout)["state"] == "SUCCEEDED"
    assert result.stderr == "SUCCEEDED, attempt 1\n"


def test_the_page_after_a_job_that_is_not_there_is_refused(project: Project) -> None:
    result = project.empty().run("jobs", "list", "--after", "nope")
    assert result.exit_code == 1
    assert "--after nope: there is no such job" in result.stderr


def test_no_text_finds_a_job_by_what_is_masked(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=7", "token=hush", "note=Loud").strip()
    assert project.json("jobs", "--text", "hush") == []
    assert project.ok("jobs", "delete", "--all-matching", "--text", "hush", "--yes") == "0 jobs deleted.\n"
    assert [each["id"] for each in project.json("jobs", "--text", "loud")] == [id]
    assert [each["id"] for each in project.json("jobs", "--text", "hush", "--reveal")] == [id]
    assert project.json("jobs", "--text", "loud", "--url", "sqlite:///shop.db") == []
    assert len(project.json("jobs", "--text", "GREET", "--url", "sqlite:///shop.db")) == 1


def test_a_page_is_filled_although_masked_matches_fall_out(project: Project) -> None:
    for number in range(6):
        secret, shown = ("word", "") if number % 2 else ("", "word")
        project.ok("enqueue", "greet", "user_id=1", f"token={secret}", f"note={shown}", "--id", f"job-{number}")
    assert [each["id"] for each in project.json("jobs", "--text", "word", "--limit", "2")] == ["job-4", "job-2"]


def test_show_speaks_of_durations_and_shares_as_people_do(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    assert "keep         1 day\n" in project.ok("jobs", "show", id)


def test_errors_from_before_a_retry_by_hand_are_told_apart(project: Project) -> None:
    id = project.ok("enqueue", "boom", "n=3").strip()
    project.drain()
    assert "by hand" not in project.ok("jobs", "show", id)
    project.ok("jobs", "retry", id)
    shown = project.ok("jobs", "show", id)
    assert "READY (retried by hand, with fresh attempts)" in shown
    assert "attempt 1 (before it was last retried by hand) failed at" in shown
    assert "retried after ValueError: no user 3" in project.ok("jobs")
    project.drain()
    assert project.ok("jobs", "show", id).count("(before it was last retried by hand)") == 1


def test_a_question_that_nobody_answers_is_followed_by_the_error_on_its_own_line(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    assert "\nError: nothing was changed" in project.run("jobs", "delete", id, input="").stderr


def test_retry_revives_with_another_payload_that_is_checked(project: Project) -> None:
    id = project.ok("enqueue", "boom", "n=3").strip()
    project.drain()
    refused = project.run("jobs", "retry", id, "--payload", '{"n": "x"}')
    assert refused.exit_code == 2
    assert project.record(id).state is State.DEAD
    assert project.ok("jobs", "retry", id, "--payload", '{"n": 4}') == "1 job retried.\n"
    assert project.record(id).state is State.READY
    assert json.loads(project.record(id).payload) == {"n": 4}


def test_delete_asks_first(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    for answer in ("n\n", ""):
        refused = project.run("jobs", "delete", id, input=answer)
        assert refused.exit_code == 1
        assert "nothing was changed" in refused.stderr
        assert project.record(id).state is State.READY
    assert project.ok("jobs", "delete", id, input="y\n") == "1 job deleted.\n"
    assert project.json("jobs") == []


def test_actions_on_all_matching_count_first_and_ask(project: Project) -> None:
    for number in range(3):
        project.ok("enqueue", "boom", f"n={number}")
    other = project.ok("enqueue", "greet", "user_id=1").strip()
    assert project.ok("jobs", "cancel", "--all-matching", "--task", "boom", "--dry-run") == "3 jobs would be cancelled.\n"
    refused = project.run("jobs", "cancel", "--all-matching", "--task", "boom", input="n\n")
    assert refused.exit_code == 1
    assert "Cancel 3 jobs?" in refused.stderr
    assert project.app.counts()["bad"] == {State.READY: 3}
    assert project.ok("jobs", "cancel", "--all-matching", "--task", "boom", "--yes") == "3 jobs cancelled.\n"
    assert project.app.counts()["bad"] == {State.CANCELLED: 3}
    assert project.record(other).state is State.READY
    assert project.ok("jobs", "retry", "--all-matching", "--yes") == "3 jobs retried.\n"
    assert project.ok("jobs", "delete", "--all-matching", "--state", "READY", "-y") == "4 jobs deleted.\n"


def test_all_matching_goes_through_more_than_one_page(project: Project) -> None:
    task = project.app.tasks["greet"]
    project.app.enqueue_many([task.job(number) for number in range(1_101)])
    assert len(project.json("jobs", "cancel", "--all-matching", "--yes")["cancelled"]) == 1_101
    assert project.ok("jobs", "cancel", "--all-matching") == "0 jobs cancelled.\n"


@pytest.mark.parametrize(
    "args",
    [(), ("some-id", "--all-matching"), ("some-id", "--task", "boom"), ("--task", "boom")],
    ids=["nothing", "both", "mixed", "unsaid"],
)
def test_which_jobs_are_meant_must_be_said_in_one_way(project: Project, args: tuple[str, ...]) -> None:
    result = project.run("jobs", "delete", *args, "--yes")
    assert result.exit_code == 2
    assert "either their ids, or filters" in result.stderr


def test_why_says_why(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    assert "No worker is alive" in project.ok("why", id)
    answer = project.json("why", id)
    assert answer["id"] == id
    assert "No worker is alive" in answer["why"]
