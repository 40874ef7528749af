"""The app of these tests that child processes can import, with tasks of every isolation."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from offload import Cancel, Discard, Offload, Retry, RetryLater, current

ONCE = Retry(max_retries=1, initial=0)
NEVER = Retry(max_retries=0)

note: contextvars.ContextVar[str] = contextvars.ContextVar("note", default="nothing")


class Unprintable(Exception):
    """Its text cannot be made, and it cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda: None

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


async def lifespan(app: Offload) -> AsyncIterator[dict[str, Any]]:
    """What the tasks of one process share."""
    yield {"pid": os.getpid(), "url": app.url}


app = Offload(os.environ.get("OFFLOAD_URL", "memory://"), lifespan=lifespan, heartbeat=0.05, session_timeout=30)


def mark(folder: str, word: str) -> None:
    """Leave a line for the test to read."""
    with (Path(folder) / "marks").open("a") as file:
        file.write(f"{word}\n")


class Marks:
    """What was marked in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self._file = folder / "marks"

    def __call__(self) -> list[str]:
        return self._file.read_text().splitlines() if self._file.exists() else []


def hang() -> None:
    """Python code that never ends, and can be stopped at any line."""
    while True:
        time.sleep(0.01)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("wrong"),
    "Unprintable": Unprintable,
    "sys.exit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": lambda: MemoryError("no more"),
    "StopIteration": StopIteration,
    "CancelledError": asyncio.CancelledError,
    "RetryLater": lambda: RetryLater(0),
    "Discard": lambda: Discard("no such user"),
    "Cancel": lambda: Cancel("changed my mind"),
}
DEATHS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "os._exit": lambda: os._exit(9),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def end_somehow(way: str) -> str:
    """Return, raise or die, as asked for."""
    if way in DEATHS:
        DEATHS[way]()
    if way in ERRORS:
        raise ERRORS[way]()  # noqa: RSE102 - a function that gives an error, not a class
    return way


def watch(folder: str, end: str) -> None:
    """Work until asked to stop, and then end by oneself."""
    mark(folder, "started")
    while not current.cancelled:
        time.sleep(0.005)
    mark(folder, "saw it")
    if end != "return":
        raise ValueError("stopped half way")


def count_steps(folder: str) -> list[int]:
    """Fail once after a step that is remembered."""

    def first() -> int:
        mark(folder, "first")
        return 1

    def second() -> int:
        mark(folder, "second")
        return 2

    one = current.step("first", first)
    if current.attempt == 1:
        raise ValueError("between the steps")
    return [one, current.step("second", second), current.attempt]


def look() -> dict[str, Any]:
    """What `current` shows."""
    return {
        "id": current.job.id,
        "attempt": current.attempt,
        "cancelled": current.cancelled,
        "state": current.state,
        "pid": os.getpid(),
    }


def report(folder: str) -> None:
    """Report progress and wait until the test has seen it."""
    current.progress(0.4, "resizing")
    while not (Path(folder) / "seen").exists():
        time.sleep(0.01)


def leave_note() -> str:
    """Read a context variable that an earlier attempt may have set."""
    before = note.get()
    note.set("left behind")
    return before


@app.task(name="async.end", retry=ONCE)
async def end_async(way: str) -> str:
    return end_somehow(way)


@app.task(name="thread.end", retry=ONCE)
def end_thread(way: str) -> str:
    return end_somehow(way)


@app.task(name="process.end", retry=ONCE, isolation="process")
def end_process(way: str) -> str:
    return end_somehow(way)


@app.task(name="async.look")
async def look_async() -> dict[str, Any]:
    return look()


@app.task(name="thread.look")
def look_thread() -> dict[str, Any]:
    return look()


@app.task(name="process.look", isolation="process")
def look_process() -> dict[str, Any]:
    return look()


@app.task(name="coroutine.look", isolation="process")
async def look_in_a_child() -> dict[str, Any]:
    return look()


@app.task(name="async.hang", retry=NEVER)
async def hang_async(folder: str) -> None:
    mark(folder, "started")
    await asyncio.Event().wait()


@app.task(name="thread.hang", retry=NEVER)
def hang_thread(folder: str) -> None:
    mark(folder, "started")
    hang()


@app.task(name="process.hang", retry=NEVER, isolation="process")
def hang_process(folder: str) -> None:
    mark(folder, "started")
    hang()


@app.task(name="coroutine.hang", retry=NEVER, isolation="process")
async def hang_in_a_child(folder: str) -> None:
    mark(folder, "started")
    await asyncio.Event().wait()


@app.task(name="process.stubborn", retry=NEVER, isolation="process")
def stubborn_process(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark(folder, "started")
    hang()


@app.task(name="thread.watch", retry=ONCE)
def watch_thread(folder: str, end: str) -> None:
    watch(folder, end)


@app.task(name="process.watch", retry=ONCE, isolation="process")
def watch_process(folder: str, end: str) -> None:
    watch(folder, end)


@app.task(name="async.steps", retry=ONCE)
async def steps_async(folder: str) -> list[int]:
    async def first() -> int:
        mark(folder, "first")
        return 1

    one = await current.astep("first", first)
    if current.attempt == 1:
        raise ValueError("between the steps")
    return [one, await current.astep("second", lambda: 2), current.attempt]


@app.task(name="thread.steps", retry=ONCE)
def steps_thread(folder: str) -> list[int]:
    return count_steps(folder)


@app.task(name="process.steps", retry=ONCE, isolation="process")
def steps_process(folder: str) -> list[int]:
    return count_steps(folder)


@app.task(name="async.report")
async def report_async(folder: str) -> None:
    await asyncio.to_thread(report, folder)


@app.task(name="thread.report")
def report_thread(folder: str) -> None:
    report(folder)


@app.task(name="process.report", isolation="process")
def report_process(folder: str) -> None:
    report(folder)


@app.task(name="async.note")
async def note_async() -> str:
    return leave_note()


@app.task(name="thread.note")
def note_thread() -> str:
    return leave_note()


@app.task(name="process.note", isolation="process")
def note_process() -> str:
    return leave_note()


@app.task(name="async.enqueue")
async def enqueue_async() -> str:
    return (await look_async.aenqueue()).id


@app.task(name="thread.enqueue")
def enqueue_thread() -> str:
    return look_async.enqueue().id


@app.task(name="process.enqueue", isolation="process")
def enqueue_process() -> str:
    return look_async.enqueue().id


@app.task(name="process.result", retry=NEVER, isolation="process")
def result_process(size: int) -> Any:
    return "x" * size if size else object()


@app.task(name="process.print", isolation="process")
def print_process() -> str:
    print("to the terminal")  # must not end up among the messages to the worker
    sys.stdout.flush()
    return "printed"


@app.task(name="process.double", isolation="process")
def double_process(n: int) -> int:
    return 2 * n


@app.task(name="process.grow", isolation="process")
def grow_process(n: int) -> None:
    """Adds a job to its workflow and one to its batch, as far as it has such."""
    if current.job.workflow is not None:
        current.workflow.add(double_process.job(n))
    if current.job.batch is not None:
        current.batch.add(double_process.job(n))
