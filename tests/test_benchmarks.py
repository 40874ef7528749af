"""The benchmark runs, and finds each job run exactly once. How fast is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

JOBS = 150
RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"

pytestmark = pytest.mark.process


def bench(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(RUN), "--quick", "--jobs", str(JOBS), "--folder", str(folder), *arguments]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90)
    if "cannot measure" in ran.stderr and not os.environ.get("CI"):
        pytest.skip(ran.stderr.strip())
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_measurement_runs_each_job_exactly_once(tmp_path: Path) -> None:
    found = json.loads(bench(tmp_path, "--json", "--engine", "sqlite-full"))

    assert found["exactly_once"]["problems"] == []
    assert found["exactly_once"]["jobs"] == 2 * (5 * JOBS + 20 + 1)
    assert found["machine"]["cores"] > 0
    names = {row["name"] for row in found["rows"]}
    assert names >= {"enqueue in bulk", "process async, 1 worker", "process sync, 2 workers", "memory of one worker"}
    assert names >= {"idle pickup p50", "start to first job", "idle worker"}
    assert all(len(row["offload"]) == len(row["floor"]) == 1 for row in found["rows"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["postgresql", "redis-always"])
def test_on_a_server_too(tmp_path: Path, engine: str) -> None:
    found = json.loads(bench(tmp_path, "--json", "--engine", engine, "--only", "process"))

    assert found["exactly_once"]["problems"] == []
    assert found["exactly_once"]["jobs"] == 2 * 5 * JOBS
    assert found["servers"][engine].startswith(engine.partition("-")[0].title().replace("sql", "SQL"))
    assert list(tmp_path.iterdir()) == []


def test_on_a_server_it_counts_the_commands_of_an_idle_worker(tmp_path: Path) -> None:
    found = json.loads(bench(tmp_path, "--json", "--engine", "postgresql", "--only", "idle"))

    [commands] = [row for row in found["rows"] if row["name"] == "idle worker" and row["unit"] == "commands/s"]
    assert commands["floor"][0] > 0
    assert commands["offload"][0] > 0
    assert list(tmp_path.iterdir()) == []


def test_in_memory_one_process_enqueues_and_works(tmp_path: Path) -> None:
    found = json.loads(bench(tmp_path, "--json", "--engine", "memory", "--only", "process", "--only", "pickup"))

    assert found["exactly_once"]["problems"] == []
    assert found["exactly_once"]["jobs"] == 2 * (3 * JOBS + 20)
    assert {"process sync, 1 worker", "idle pickup p50"} <= {row["name"] for row in found["rows"]}


def test_the_table_shows_both_sides_and_their_ratio(tmp_path: Path) -> None:
    shown = bench(tmp_path, "--engine", "sqlite-normal", "--only", "enqueue", "--loop", "asyncio")

    assert "sqlite-normal, asyncio" in shown
    [row] = [line for line in shown.splitlines() if line.startswith("enqueue in bulk, jobs/s")]
    offload, floor, ratio = (float(figure.replace(",", "")) for figure in row.split()[4:7])
    assert offload > 0
    assert floor > 0
    assert ratio == pytest.approx(offload / floor, rel=0.01, abs=0.001)


def test_what_keys_cost_is_measured_and_what_blocked_jobs_do_to_others(tmp_path: Path) -> None:
    sizes = ["--jobs", "150", "--keys", "10", "--free", "50", "--blocked", "300", "--rounds", "2"]
    command = [sys.executable, str(RUN.with_name("keys.py")), "--engine", "sqlite-normal", "--folder", str(tmp_path), *sizes]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout

    rows = [line.split("  ")[1] for line in shown.splitlines()[1:]]
    assert rows == ["unlimited", "one at a time per key", "in order per key", "50 free", "behind 300 blocked"]


def test_a_job_that_was_not_run_exactly_once_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    part, stage = import_module("part"), import_module("stage")  # benchmarks are programs, not a package

    account = stage.Account()
    floor = part.Part(side="floor", engine="memory", loop="asyncio", duty="work", url="memory://", jobs=3)

    account.check(floor, [part.Told(runs=[1, 0, 1]), part.Told(runs=[0, 0, 1])], left=1)

    assert account.problems == ["floor on memory: 1 jobs not run, 1 run again, 1 not settled"]
