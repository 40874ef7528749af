"""The clock jumps under real workers, and under their server (through libfaketime; monotonic time goes on, as it does in life)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.chaos.conftest import Stage
from tests.chaos.places import SERVERS, Places, missing

from offload import State
from offload.testing.servers import Server, ServerMissing

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

JUMPS = ("+0", "+3600", "+0", "-3600", "+0")


class Moved:
    """The moved clock of some processes."""

    def __init__(self, faketime: str, folder: Path) -> None:
        self._file = folder / "offset"
        self.shift("+0")
        self.environment = {
            "LD_PRELOAD": library(faketime),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def shift(self, offset: str) -> None:
        """Move the clock, whole, so that none reads half a line."""
        new = self._file.with_suffix(".new")
        new.write_text(offset)
        new.replace(self._file)


@pytest.fixture
def moved(faketime: str) -> Iterator[Moved]:
    """In a folder that the user may enter as whom the server runs: pytest's own is closed to others, and the clock would stay as it is."""
    with TemporaryDirectory(prefix="offload-clock-") as folder:
        Path(folder).chmod(0o755)
        yield Moved(faketime, Path(folder))


@pytest.fixture
def stage_in_moved_time(request: pytest.FixtureRequest, moved: Moved, tmp_path: Path) -> Iterator[Stage]:
    """A stage whose server, if it has one, goes by the moved clock too."""
    places = Places()
    try:
        place = places.place(request.param, tmp_path)
    except ServerMissing as error:
        missing(error)
    if place.server is not None:
        in_moved_time(place.server, moved)
    stage = Stage(tmp_path, place, CHAOS_SESSION_TIMEOUT="2")
    yield stage
    stage.close()
    places.close()


def in_moved_time(server: Server, moved: Moved) -> None:
    """Start a server again, with the moved clock.

    Not through the environment of this process: the library must first be loaded by the user as whom the server runs.
    """
    command = server.command
    server.command = lambda: ["/usr/bin/env", *(f"{name}={value}" for name, value in moved.environment.items()), *command()]
    server.stop()
    server.start()


@pytest.mark.parametrize("stage_in_moved_time", ["sqlite", "postgresql", "valkey"], indirect=True)  # Redis does not start under libfaketime
def test_a_clock_that_jumps_an_hour_both_ways_rescues_nothing_and_fires_nothing_twice(stage_in_moved_time: Stage, moved: Moved) -> None:
    stage = stage_in_moved_time
    start(stage, moved)
    handle = stage.app.enqueue("program.long", seconds=8.0)
    for jump in JUMPS:
        moved.shift(jump)
        fired = len(ticks(stage))
        if jump == "-3600":  # the next tick is an hour away now: nothing may fire, so wait for beats instead of for ticks
            wait_for_beats(stage, 2)  # a worker learns its server's time by its beats
            stage.until(lambda: all_ran(stage), 60, "the ticks that had fired have run")
            fired = len(ticks(stage))
            wait_for_beats(stage, 3)
            assert len(ticks(stage)) - fired <= 1
        else:
            if jump != "+0":
                stage.until(lambda fired=fired: len(ticks(stage)) > fired, 60, f"a tick fires at {jump}")
            wait_for_beats(stage, 3)
    stage.until(lambda: handle.record().state is State.SUCCEEDED, 60, "the long job ends")
    record = handle.record()
    assert (record.attempt, record.crashes) == (1, 0), "nothing is rescued because of the clock"
    nothing_fired_twice(stage)
    moments = [datetime.fromisoformat(tick) for tick in ticks(stage)]
    assert max(moments) - min(moments) > timedelta(minutes=50), "the clock was moved"


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_worker_whose_own_clock_jumps_goes_by_the_servers(stage: Stage, moved: Moved) -> None:
    begun = datetime.now(UTC)
    start(stage, moved)
    handle = stage.app.enqueue("program.long", seconds=3.0)
    for jump in JUMPS:
        moved.shift(jump)
        wait_for_beats(stage, 2)
        fired = len(ticks(stage))
        stage.until(lambda fired=fired: len(ticks(stage)) > fired + 1, 60, f"ticks go on at {jump}")
    stage.until(lambda: handle.record().state is State.SUCCEEDED, 60, "the long job ends")
    record = handle.record()
    assert (record.attempt, record.crashes) == (1, 0)
    nothing_fired_twice(stage)
    moments = [datetime.fromisoformat(tick) for tick in ticks(stage)]
    assert all(begun - timedelta(seconds=2) < moment < datetime.now(UTC) + timedelta(seconds=2) for moment in moments), moments


def start(stage: Stage, moved: Moved) -> None:
    """Start two workers that go by the moved clock and share a schedule of a tick a second."""
    for _ in range(2):
        stage.start("worker", CHAOS_SCHEDULE="* * * * * *", **moved.environment)
    stage.until(lambda: len(stage.app.workers()) == 2, 60, "both workers are there")


def nothing_fired_twice(stage: Stage) -> None:
    twice = [tick for tick, number in Counter(ticks(stage)).items() if number > 1]
    assert twice == [], "no tick fires twice"
    assert "lost its session" not in stage.log()


def all_ran(stage: Stage) -> bool:
    """Whether no job but the long one waits or runs."""
    counts = stage.counts()
    return counts.get(State.READY, 0) + counts.get(State.RUNNING, 0) <= 1


def library(faketime: str) -> str:
    """The library that the program `faketime` preloads."""
    found = [str(path) for folder in ("/usr/lib", "/usr/local/lib") for path in Path(folder).glob("**/libfaketime.so.1")]
    assert found, f"{faketime} is installed, its library is not where libraries are"
    return found[0]


def ticks(stage: Stage) -> list[str]:
    return [words[1] for _, words in stage.ledger() if words[0] == "tick"]


def wait_for_beats(stage: Stage, more: int) -> None:
    """Wait until every session has beaten so many times more."""
    begun = {session.id: session.beat for session in stage.app.workers()}
    deadline = time.monotonic() + 60
    while any(session.beat < begun.get(session.id, 0) + more for session in stage.app.workers()):
        assert time.monotonic() < deadline, "the sessions do not beat"
        time.sleep(0.05)
