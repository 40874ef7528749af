"""What is thrown into a thread and taken back again."""

from __future__ import annotations

import subprocess
import sys
import threading

from offload.worker.attempt import take_back, throw
from offload.worker.outcome import AttemptStopped

PROGRAM = """
import sys, threading
from offload.worker.attempt import take_back

def call(): pass

def followed():
    sys.setprofile(lambda frame, event, argument: None)
    call()

take_back()
thread = threading.Thread(target=followed, daemon=True)
thread.start()
thread.join(20)
print("stuck" if thread.is_alive() else "well")
"""


def test_once_taken_back_a_thread_that_a_profiler_follows_runs_on() -> None:
    """In a process of its own: on Python 3.11 one that is never told of the exception stays marked as having one, for all its threads."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "well\n"


def test_what_is_taken_back_arrives_nowhere() -> None:
    told, thrown = threading.Event(), threading.Event()
    seen: list[str] = []

    def work() -> None:
        try:
            told.set()
            thrown.wait()  # where it cannot arrive before the wait is over
            take_back()
            seen.append("went on")
        except AttemptStopped:  # as it left the wait, sooner than it could be taken back
            seen.append("arrived")
        take_back()
        seen.append("nothing is left")

    thread = threading.Thread(target=work)
    thread.start()
    assert told.wait(10)
    assert thread.ident is not None
    throw(thread.ident)
    thrown.set()
    thread.join(10)
    assert seen[-1] == "nothing is left"
    assert len(seen) == 2
