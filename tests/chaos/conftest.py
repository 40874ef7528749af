"""Starts, stops, freezes and kills the program's processes, and reads what they wrote."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from tests.chaos.places import ENGINES, Place, Places, missing

from offload import Offload, State
from offload.testing.servers import Server, ServerMissing

PROGRAM = Path(__file__).with_name("program.py")
MANY = 1_000_000
"""More jobs than any producer comes to enqueue."""


class Stage:
    """One queue, the processes that work on it, and their ledgers."""

    def __init__(self, folder: Path, place: Place, **settings: str) -> None:
        self.folder = folder
        self.place = place
        self.url = place.url
        self.settings = settings
        self.alive: list[subprocess.Popen[bytes]] = []
        self.killed: set[int] = set()
        self.app = Offload(self.url)

    @property
    def server(self) -> Server:
        """The server that keeps the queue."""
        assert self.place.server is not None, f"{self.place.engine} has no server"
        return self.place.server

    def start(self, *words: object, **settings: str) -> subprocess.Popen[bytes]:
        """Start the program; its log goes to a file."""
        return self._start([str(PROGRAM), *map(str, words)], settings)

    def start_other(self, program: Path, *words: object) -> subprocess.Popen[bytes]:
        """Start another program than the usual one."""
        return self._start([str(program), *map(str, words)], {})

    def produce(self, producers: int, *, chunk: int, pause: float, **settings: str) -> None:
        """Start producers that enqueue, each jobs of numbers of its own, until told that it is `enough`."""
        for producer in range(producers):
            self.start("produce", producer * MANY, MANY, chunk, pause, **settings)

    def enough(self) -> set[int]:
        """Tell the producers to end, wait until they have, and return the numbers of all jobs that they know to be stored."""
        (self.folder / "enough").touch()
        producers = {pid for pid, words in self.ledger() if words == ["ready"]} - self.killed
        done = lambda: producers == {pid for pid, words in self.ledger() if words == ["done"]}
        self.until(done, 60, "the producers end")
        return {n for first, jobs, _ in self.calls("accepted") for n in range(first, first + jobs)}

    def command(self, *words: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a command of `offload`."""
        return self._start(["-m", "offload", *words], settings)

    def _start(self, arguments: list[str], settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "CHAOS_FOLDER": str(self.folder), "CHAOS_URL": self.url, **self.settings, **settings}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log, cwd=PROGRAM.parent)
        self.alive.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL."""
        self.killed.add(process.pid)
        process.kill()
        process.wait()
        self.alive.remove(process)

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """SIGSTOP; on SQLite at a moment when the process is in no transaction: frozen there it would hold the lock for everyone."""
        while True:
            process.send_signal(signal.SIGSTOP)
            if self.place.engine != "sqlite":
                return
            try:
                with closing(sqlite3.connect(self.folder / "queue.db", timeout=1, isolation_level=None)) as connection:
                    connection.execute("begin immediate")
                    connection.execute("rollback")
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)

    def ledger(self) -> list[tuple[int, list[str]]]:
        """All lines of all ledgers: (process id, words)."""
        return [
            (int(file.name.rpartition("-")[2]), line.split())
            for file in self.folder.glob("ledger-*")
            for line in file.read_text().splitlines()
        ]

    def ran(self) -> dict[int, list[int]]:
        """Number of a short job to the processes that ran it."""
        runs: dict[int, list[int]] = defaultdict(list)
        for pid, words in self.ledger():
            if words[0] == "ran":
                runs[int(words[1])].append(pid)
        return runs

    def calls(self, answer: str) -> list[tuple[int, int, float]]:
        """The producers' calls that were "accepted" or "refused": (first number, jobs, seconds)."""
        return [(int(words[1]), int(words[2]), float(words[3])) for _, words in self.ledger() if words[0] == answer]

    def counts(self) -> dict[State, int]:
        """How many jobs are in which state."""
        return self.app.counts().get("default", {})

    def log(self) -> str:
        """What the processes logged."""
        return (self.folder / "log").read_text()

    def until(self, condition: Callable[[], object], within: float, what: str) -> None:
        """Wait until something holds. Fails, with the end of the log, when it does not hold `within` seconds."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within:g} s: {what}\n{self.log()[-4000:]}")
            time.sleep(0.05)

    def close(self) -> None:
        """Leave nothing running."""
        for process in self.alive:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.app.close()


@pytest.fixture(scope="session")
def places() -> Iterator[Places]:
    """What makes queues, and stops their servers at the end."""
    places = Places()
    yield places
    places.close()


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, places: Places, tmp_path: Path) -> Place:
    """An empty queue, on each engine in turn."""
    try:
        return places.place(request.param, tmp_path)
    except ServerMissing as error:
        return missing(error)


@pytest.fixture
def stage(tmp_path: Path, place: Place) -> Iterator[Stage]:
    """A stage whose sessions die after two seconds, so that rescues come soon."""
    stage = Stage(tmp_path, place, CHAOS_SESSION_TIMEOUT="2")
    yield stage
    stage.close()


@pytest.fixture
def stage_at_defaults(tmp_path: Path, place: Place) -> Iterator[Stage]:
    """A stage with the default timings."""
    stage = Stage(tmp_path, place)
    yield stage
    stage.close()
