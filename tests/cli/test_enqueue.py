"""`offload enqueue`."""

from __future__ import annotations

import json
import threading

import pytest
from tests.cli.project import Project

from offload import State


def test_it_prints_the_id_of_what_it_enqueued(project: Project) -> None:
    id = project.ok("enqueue", "greet", "user_id=7", "note=see you").strip()
    assert json.loads(project.record(id).payload) == {"user_id": 7, "note": "see you"}


def test_values_are_json_where_they_can_be_and_text_where_not(project: Project) -> None:
    project.write(
        "free.py", "from offload import Offload\napp = Offload('sqlite:///shop.db')\n@app.task(name='any')\ndef any(**rest): ...\n"
    )
    id = project.ok("enqueue", "-A", "free:app", "any", '{"a": [1]}', "b=null", "c=1.5", "d=x=y", "e=NaN", 'f="7"', "g=").strip()
    stored = json.loads(project.record(id).payload)["rest"]
    assert stored == {"a": [1], "b": None, "c": 1.5, "d": "x=y", "e": "NaN", "f": "7", "g": ""}


def test_its_options_are_those_of_using(project: Project) -> None:
    args = ("enqueue", "greet", "user_id=1", "--queue", "vip", "--priority", "9", "--delay", "2h", "--id", "one", "--unique", "u:1")
    assert project.json(*args) == {"id": "one", "task": "greet", "stored": True}
    record = project.record("one")
    assert (record.queue, record.priority, record.state) == ("vip", 9, State.SCHEDULED)
    assert record.unique is not None
    assert record.unique.key == "u:1"
    assert record.run_at is not None
    assert (record.run_at - record.enqueued_at).total_seconds() == 7200


def test_an_id_used_with_other_arguments_is_refused(project: Project) -> None:
    project.ok("enqueue", "greet", "user_id=1", "--id", "one")
    project.ok("enqueue", "greet", "user_id=1", "--id", "one")
    result = project.run("enqueue", "greet", "user_id=2", "--id", "one")
    assert result.exit_code == 1
    assert "already used" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("gret", "user_id=1"), "did you mean greet?"),
        (("zzzzzzzz",), "its tasks are: boom, crash, greet"),
        (("greet",), "'user_id' is missing"),
        (("greet", "user_id=x"), "expected int"),
        (("greet", "user_id=1", "more=2"), "more"),
        (("greet", "user_id"), "neither a JSON object nor key=value"),
        (("greet", "[1]"), "neither a JSON object nor key=value"),
        (("greet", "{1}"), "is no JSON"),
        (("greet", '{"user_id": 1}', "user_id=2"), "'user_id' is given twice"),
        (("greet", "user_id=1", "--delay", "soon"), "is no duration"),
        (("greet", "user_id=1", "--priority", "101"), "101"),
        (("greet", "user_id=1", "--timeout", "3"), "--wait"),
    ],
)
def test_what_cannot_be_enqueued_exits_2_and_stores_nothing(project: Project, args: tuple[str, ...], said: str) -> None:
    result = project.run("enqueue", *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (project.folder / "shop.db").exists()


def test_by_url_any_name_is_enqueued_unchecked(project: Project) -> None:
    id = project.ok("enqueue", "--url", "sqlite:///shop.db", "elsewhere.task", "a=1").strip()
    assert project.record(id).task == "elsewhere.task"


def _drained_beside(project: Project) -> threading.Thread:
    """Runs what is due as soon as something is."""

    def drain() -> None:
        while project.drain() == 0:
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    return thread


def test_wait_prints_the_result(project: Project) -> None:
    beside = _drained_beside(project)
    result = project.run("enqueue", "greet", "user_id=7", "--wait", "--timeout", "30s")
    beside.join()
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"user": 7, "note": ""}


def test_wait_exits_1_and_says_how_the_job_failed(project: Project) -> None:
    beside = _drained_beside(project)
    result = project.run("enqueue", "boom", "n=3", "--wait", "--json")
    beside.join()
    assert result.exit_code == 1
    assert json.loads(result.stdout)["state"] == "DEAD"
    assert "ValueError: no user 3" in result.stderr


def test_wait_gives_up_after_its_timeout_and_the_job_goes_on(project: Project) -> None:
    result = project.run("enqueue", "greet", "user_id=1", "--wait", "--timeout", "0", "--id", "one")
    assert result.exit_code == 1
    assert "job one has not ended within 0 seconds; it goes on, see `offload why one`" in result.stderr
    assert "No worker is alive; start one with `offload worker`." in result.stderr
    assert project.record("one").state is State.READY


def test_who_waits_learns_that_nobody_is_there_to_run_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.cli.enqueue.PATIENCE", 0.01)
    result = project.run("enqueue", "greet", "user_id=1", "--wait", "--timeout", "0.5")
    assert result.stderr.count("No worker is alive") == 2  # after a while, and at the end
    assert "within 0.5 seconds" in result.stderr


@pytest.mark.parametrize("option", ["--unique", "--id"])
def test_what_is_enqueued_again_says_that_nothing_was_stored(project: Project, option: str) -> None:
    id = project.ok("enqueue", "greet", "user_id=1", option, "one").strip()
    again = project.run("enqueue", "greet", "user_id=1", option, "one")
    assert (again.exit_code, again.stdout) == (0, f"{id}\n")
    assert again.stderr == f"Already enqueued as {id}; nothing was stored.\n"
    assert project.json("enqueue", "greet", "user_id=1", option, "one") == {"id": id, "task": "greet", "stored": False}


def test_arguments_that_an_earlier_job_takes_are_not_said_to_be_lost(project: Project) -> None:
    project.write(
        "late.py",
        "from offload import Offload, Unique\napp = Offload('sqlite:///shop.db')\n"
        "@app.task(name='sync', unique=Unique('s', until='started', on_conflict='replace'))\ndef sync(n: int): ...\n",
    )
    id = project.ok("enqueue", "-A", "late:app", "sync", "n=1").strip()
    again = project.run("enqueue", "-A", "late:app", "sync", "n=2")
    assert again.stderr == f"Already enqueued as {id}; it takes these arguments unless it has started.\n"
    assert json.loads(project.record(id).payload) == {"n": 2}


def test_the_examples_of_its_help_stand_on_lines_of_their_own(project: Project) -> None:
    shown = project.ok("enqueue", "--help")
    assert "\\b" not in shown
    assert """\n    offload enqueue mail.digest user_id=7 note="see you"\n""" in shown
