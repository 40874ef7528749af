"""Programs that start a worker themselves, as users write them, with and without care."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

TASKS = """
from offload import Offload

app = Offload("sqlite:///q.db")

@app.task(isolation="process", retry=False)
def double(x: int) -> int:
    return 2 * x
"""

CARELESS = """
import asyncio
from offload import Worker
{tasks}
handle = double.enqueue(21)
print("began", flush=True)
print(asyncio.run(Worker(app).drain()), handle.record().state, handle.record().errors[-1:])
"""


def run(folder: Path, program: str) -> str:
    (folder / "program.py").write_text(program)
    ended = subprocess.run([sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_program_that_imports_its_app_needs_no_guard(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    said = run(tmp_path, CARELESS.format(tasks="from tasks import app, double"))
    assert said.splitlines() == ["began", "1 SUCCEEDED ()"]


def test_a_program_that_is_its_own_app_is_refused_what_would_start_it_again_and_again(tmp_path: Path) -> None:
    said = run(tmp_path, CARELESS.format(tasks=TASKS))
    assert said.count("began") == 1
    assert "1 DEAD" in said
    assert "below: if __name__ ==" in said


def test_a_program_that_runs_a_worker_is_told_to_stop_by_sigterm_and_hands_its_jobs_back(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import asyncio\nfrom offload import Offload, Worker\napp = Offload('sqlite:///q.db')\n"
        "@app.task\nasync def endless():\n    open('running', 'w').close()\n    await asyncio.Event().wait()\n"
        "if __name__ == '__main__':\n    handle = endless.enqueue()\n"
        "    print(asyncio.run(Worker(app, grace=0.1).run()))\n"
        "    record = handle.record()\n    print(record.state, record.attempt, record.crashes)\n"
    )
    program = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(program.pid, signal.SIGTERM)
    said, _ = program.communicate(timeout=30)
    assert program.returncode == 0
    assert said.splitlines() == ["stopped", "READY 0 0"]
