"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple


class Machine(NamedTuple):
    """What matters for the figures."""

    cores: int
    system: str
    python: str
    loop_ms: float
    """How long a million turns of a Python loop take."""
    uvloop: str | None
    sqlite: str
    fsync_ms: float

    def __str__(self) -> str:
        python = f"{self.python} (a million turns of a loop: {self.loop_ms} ms), uvloop {self.uvloop or 'not installed'}"
        return f"{self.cores} cores, {self.system}, {python}, SQLite {self.sqlite}, fsync {self.fsync_ms} ms"


def machine(folder: Path) -> Machine:
    """This machine. `folder` is where the database files lie."""
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        loop_ms=round(loop_seconds() * 1000, 1),
        uvloop=version("uvloop") if find_spec("uvloop") else None,
        sqlite=sqlite3.sqlite_version,
        fsync_ms=round(fsync_seconds(folder) * 1000, 3),
    )


def loop_seconds() -> float:
    """How long a million turns of a Python loop take; builds of the same version differ by a factor of up to 2. The best of five."""
    took: list[float] = []
    for _ in range(5):
        begin, total = time.perf_counter(), 0
        for n in range(1_000_000):
            total += n
        took.append(time.perf_counter() - begin)
    return min(took)


def fsync_seconds(folder: Path, times: int = 100) -> float:
    """How long it takes to append 4 KiB to a file and have it on the disk; the median."""
    took: list[float] = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(times):
            begin = time.monotonic()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            took.append(time.monotonic() - begin)
    return median(took)
