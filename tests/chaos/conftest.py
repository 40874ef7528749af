"""Starts, stops, freezes and kills the program's processes, and reads what they wrote."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from offload import Offload

PROGRAM = Path(__file__).with_name("program.py")


class Stage:
    """One queue, the processes that work on it, and their ledgers."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/queue.db"
        self.settings = settings
        self.alive: list[subprocess.Popen[bytes]] = []
        self.killed: set[int] = set()
        self.app = Offload(self.url)

    def start(self, *words: object, **settings: str) -> subprocess.Popen[bytes]:
        """Start the program; its log goes to a file."""
        environment = {**os.environ, "CHAOS_FOLDER": str(self.folder), "CHAOS_URL": self.url, **self.settings, **settings}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), *map(str, words)], env=environment, stdout=log, stderr=log, cwd=PROGRAM.parent
            )
        self.alive.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL."""
        self.killed.add(process.pid)
        process.kill()
        process.wait()
        self.alive.remove(process)

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """SIGSTOP, at a moment when the process is not inside a transaction: frozen there it would hold SQLite's lock for everyone."""
        while True:
            process.send_signal(signal.SIGSTOP)
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

    def log(self) -> str:
        """What the processes logged."""
        return (self.folder / "log").read_text()

    def until(self, condition: Callable[[], object], within: float, what: str) -> None:
        """Wait until something holds. Fails, with the end of the log, when it does not hold `within` seconds."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within:g} s: {what}\n{self.log()[-4000:]}")
            time.sleep(0.02)

    def close(self) -> None:
        """Leave nothing running."""
        for process in self.alive:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.app.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage whose sessions die after two seconds, so that rescues come soon."""
    stage = Stage(tmp_path, CHAOS_SESSION_TIMEOUT="2")
    yield stage
    stage.close()


@pytest.fixture
def stage_at_defaults(tmp_path: Path) -> Iterator[Stage]:
    """A stage with the default timings."""
    stage = Stage(tmp_path)
    yield stage
    stage.close()
