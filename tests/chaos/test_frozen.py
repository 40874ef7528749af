"""Workers are frozen between the success of a job and the commit that it belongs to: what they held is rescued all the same."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from tests.chaos.conftest import Stage
from tests.chaos.test_transactions import create, ended, entries

from offload import State

pytestmark = [pytest.mark.process, pytest.mark.parametrize("place", ["postgresql"], indirect=True)]

EACH = 4
"""Jobs of each kind; one is at its commit, and the others are held by the same session."""


def frozen(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process was stopped by a signal; raises ChildProcessError when it is gone."""
    return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.mark.timeout(180)
def test_what_workers_hold_that_froze_before_their_commit_is_rescued(stage: Stage) -> None:
    create(stage)
    workers: list[subprocess.Popen[bytes]] = []
    for number, task in enumerate(["shop.entry", "shop.aentry", "shop.child_entry"]):
        stage.app.enqueue_many(stage.app.using().job(task, n=number * EACH + n) for n in range(EACH))
        workers.append(stage.command("worker", "shop:app", "--children", "2", CHAOS_FREEZES=task))
        stage.until(lambda: frozen(workers[-1]), 30, f"a worker is frozen at a commit of {task}")
    stage.command("worker", "shop:app", "--children", "2")
    stage.until(lambda: ended(stage), 60, "all jobs have ended")
    assert entries(stage) == list(range(3 * EACH))
    for worker in workers[:2]:  # the third has a child that is frozen still
        worker.send_signal(signal.SIGCONT)
        worker.send_signal(signal.SIGTERM)
    for worker in workers[:2]:
        worker.wait(60)
    stage.until(lambda: ended(stage), 60, "all jobs have ended, whatever those did that were frozen")
    assert entries(stage) == list(range(3 * EACH))
    assert stage.counts() == {State.SUCCEEDED: 6 * EACH}
