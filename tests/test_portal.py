"""The sync door."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from typing import Any

import pytest

from offload import BrokerError, Offload
from offload.errors import LoopRunning
from offload.portal import portal, sync


class Door:
    async def aknock(self, times: int = 1) -> list[str]:
        """Knock."""
        await asyncio.sleep(0)
        return [threading.current_thread().name] * times

    knock = sync(aknock)

    async def abreak(self) -> None:
        raise ValueError("broken")

    break_ = sync(abreak)

    async def await_(self, event: asyncio.Event) -> None:
        await event.wait()

    wait = sync(await_)


def test_the_sync_twin_runs_on_the_loop_of_the_portal() -> None:
    assert Door().knock(2) == ["offload-portal"] * 2


def test_errors_come_back_to_the_caller() -> None:
    with pytest.raises(ValueError, match="broken"):
        Door().break_()


@pytest.mark.parametrize("way", ["enqueue", "aenqueue", "record", "arecord"])
@pytest.mark.parametrize("url", ["postgresql://localhost:1/shop?timeout=0", "redis://localhost:1/0?timeout=0"])
def test_a_broker_that_cannot_be_reached_is_told_in_few_lines(url: str, way: str) -> None:
    app = Offload(url)

    @app.task
    def greet() -> None: ...

    calls: dict[str, Any] = {
        "enqueue": greet.enqueue,
        "aenqueue": lambda: asyncio.run(greet.aenqueue()),
        "record": app.handle("j1").record,
        "arecord": lambda: asyncio.run(app.handle("j1").arecord()),
    }
    with pytest.raises(BrokerError) as caught:
        calls[way]()
    cause = caught.value.__cause__
    assert cause is not None
    assert cause.__cause__ is None or not type(cause).__module__.startswith("offload.")
    told = "".join(traceback.format_exception(caught.value))
    assert "offload/brokers" not in told
    assert "site-packages" not in told
    frames = [frame for frame in traceback.extract_tb(caught.value.__traceback__) if "/offload/" in frame.filename]
    assert len(frames) <= 4


def test_the_twin_looks_like_a_plain_function() -> None:
    assert Door.knock.__name__ == "knock"
    assert Door.knock.__qualname__ == "Door.knock"
    assert Door.knock.__doc__ == "Knock."
    assert not inspect.iscoroutinefunction(Door.knock)
    assert list(inspect.signature(Door.knock).parameters) == ["self", "times"]


def test_inside_a_running_loop_it_refuses_and_names_the_async_form() -> None:
    async def main() -> None:
        with pytest.raises(LoopRunning, match=r"knock\(\) would block the running event loop; use: await aknock\(\)"):
            Door().knock()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert caught == []


def test_the_callers_context_is_seen_inside() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def look() -> str:
        return variable.get()

    variable.set("set")
    assert portal.run(look) == "set"


def test_many_threads_may_call_at_once() -> None:
    arrived = threading.Barrier(8)
    answers: list[list[str]] = []

    def call() -> None:
        arrived.wait()
        answers.append(Door().knock())

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["offload-portal"]] * 8


def test_an_interrupted_wait_cancels_the_call() -> None:
    ended = threading.Event()
    started = threading.Event()

    async def linger() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def interrupt() -> None:
        started.wait()
        caller = threading.main_thread().ident or 0
        while sys._current_frames()[caller].f_code.co_name != "run":
            os.sched_yield()
        signal.pthread_kill(caller, signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever an earlier test, or its event loop, has left there
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            portal.run(linger)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert ended.wait(5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_a_portal_of_its_own() -> None:
    program = """
import os, sys
from offload.portal import portal
async def pid(): return os.getpid()
assert portal.run(pid) == os.getpid()
child = os.fork()
if child == 0:
    os._exit(0 if portal.run(pid) == os.getpid() else 1)
assert os.waitpid(child, 0)[1] == 0
assert portal.run(pid) == os.getpid()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_the_process_ends_after_calls_under_way_and_farewells() -> None:
    program = """
import asyncio, threading
from offload.portal import portal
async def work():
    started.set()
    await asyncio.sleep(0.1)
    print("worked", flush=True)
class Guest:
    def __init__(self, name): self.name = name
    async def leave(self):
        if self.name == "rude": raise OSError("slammed")
        print(self.name, "left", flush=True)
guests = [Guest("rude"), Guest("polite")]
for guest in [*guests, Guest("forgotten")]: portal.at_close(guest.leave)
del guest
started = threading.Event()
threading.Thread(target=portal.run, args=(work,), daemon=True).start()
started.wait()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["worked", "polite left"]
    assert "OSError: slammed" in done.stderr
