"""The machine's clock jumps under real workers (through libfaketime; monotonic time goes on, as it does in life)."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from tests.chaos.conftest import Stage

from offload import State

pytestmark = pytest.mark.process


def test_a_clock_that_jumps_an_hour_both_ways_rescues_nothing_and_fires_nothing_twice(stage: Stage, faketime: str, tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    shift(offset, "+0")
    moved = {
        "LD_PRELOAD": library(faketime),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    for _ in range(2):
        stage.start("worker", CHAOS_SCHEDULE="* * * * * *", **moved)
    stage.until(lambda: len(stage.app.workers()) == 2, 20, "both workers are there")
    handle = stage.app.enqueue("program.long", seconds=8.0)
    for jump in ("+0", "+3600", "+0", "-3600", "+0"):
        shift(offset, jump)
        fired = len(ticks(stage))
        if jump == "-3600":  # the next tick is an hour away now: nothing may fire, so wait for beats instead of for ticks
            wait_for_beats(stage, 3)
            assert len(ticks(stage)) - fired <= 1
        else:
            if jump != "+0":
                stage.until(lambda fired=fired: len(ticks(stage)) > fired, 10, f"a tick fires at {jump}")
            wait_for_beats(stage, 3)
    stage.until(lambda: handle.record().state is State.SUCCEEDED, 30, "the long job ends")
    record = handle.record()
    assert (record.attempt, record.crashes) == (1, 0), "nothing is rescued because of the clock"
    twice = [tick for tick, number in Counter(ticks(stage)).items() if number > 1]
    assert twice == [], "no tick fires twice"
    assert "lost its session" not in stage.log()


def library(faketime: str) -> str:
    """The library that the program `faketime` preloads."""
    found = [str(path) for folder in ("/usr/lib", "/usr/local/lib") for path in Path(folder).glob("**/libfaketime.so.1")]
    assert found, f"{faketime} is installed, its library is not where libraries are"
    return found[0]


def shift(file: Path, offset: str) -> None:
    """Move the clock of the workers, whole, so that none reads half a line."""
    new = file.with_suffix(".new")
    new.write_text(offset)
    new.replace(file)


def ticks(stage: Stage) -> list[str]:
    return [words[1] for _, words in stage.ledger() if words[0] == "tick"]


def wait_for_beats(stage: Stage, more: int) -> None:
    """Wait until every session has beaten so many times more."""
    begun = {session.id: session.beat for session in stage.app.workers()}
    deadline = time.monotonic() + 20
    while any(session.beat < begun.get(session.id, 0) + more for session in stage.app.workers()):
        assert time.monotonic() < deadline, "the sessions do not beat"
        time.sleep(0.05)
