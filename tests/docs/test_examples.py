"""The examples do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(name: str, **environment: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.process
def test_a_card_is_charged_once_although_the_worker_is_killed_after_the_charge(tmp_path: Path) -> None:
    said = run("charge_once.py", OFFLOAD_URL=f"sqlite:///{tmp_path}/unused.db")
    assert "was killed after the charge (exit code -9); the job is RUNNING" in said
    assert "state SUCCEEDED, crashes 1" in said
    assert "the provider saw 2 requests and charged 1 time" in said
    assert len(set(re.findall(r"receipt-\w+", said))) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_each_user_gets_the_digest_at_nine_by_the_clocks_of_the_own_zone(tmp_path: Path) -> None:
    lines = run("nine_in_each_zone.py", OFFLOAD_URL=f"sqlite:///{tmp_path}/unused.db").splitlines()
    assert len(lines) == 8
    assert all(" 09:00 in " in line for line in lines)
    # Berlin's clocks go forward on the second day, so there it comes an hour earlier by UTC than before.
    assert [line[:20] for line in lines if line.endswith("user 1")] == ["2030-03-30 08:00 UTC", "2030-03-31 07:00 UTC"]
    assert not (tmp_path / "unused.db").exists()


@pytest.mark.process
def test_what_redis_pubsub_says_to_nobody_is_gone_and_a_job_is_not(shared_valkey: object) -> None:
    said = run("redis_pubsub_loses.py")
    assert "Pub/Sub: published to 0 listeners" in said
    assert "Pub/Sub: the worker is back and hears nothing" in said
    assert "Offload: a worker has come, and has welcomed user 7; the job is SUCCEEDED" in said


@pytest.mark.process
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
@pytest.mark.parametrize("say", [lambda url: run("orders_with_sqlalchemy.py", **url), lambda url: run("orders_with_django.py", **url)])
def test_orders_bills_and_jobs_are_one_transaction(
    say: Callable[[dict[str, str]], str], engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    if engine == "postgresql":
        url = request.getfixturevalue("shared_postgres")(None).database()
    first = say({"OFFLOAD_URL": url}).splitlines()
    assert first == [
        "rolled back: the card of Bob was refused",
        "order of Ann: billed True, 1 bill",
        "order of Cleo: billed True, 1 bill",
        "2 letters, 2 jobs that billed",
    ]
    again = say({"OFFLOAD_URL": url}).splitlines()
    assert (again[0], again[-1]) == (first[0], "4 letters, 4 jobs that billed")
    assert again[1:-1] == first[1:-1] * 2


def test_every_example_is_tested() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*examples.py"))
    named = set(re.findall(r'run\("(\w+\.py)"', tests))
    assert {path.name for path in EXAMPLES.glob("*.py")} == named
