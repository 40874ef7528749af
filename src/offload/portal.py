"""The sync door: one background thread with one event loop on which sync callers run async methods.

It starts when first needed, is made anew after a fork, and ends with the process once the calls under way are done.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from offload.errors import BrokerError, LoopRunning, OffloadError

log = logging.getLogger("offload.portal")

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

LONGEST_EXIT = 5.0
"""Seconds that the end of the process waits for calls under way (made from daemon threads; others are waited for anyway)."""


class Call(Generic[T]):
    """One call on its way to the loop and back.

    A bare lock takes half the time of the two linked futures of `run_coroutine_threadsafe` (30 against 60 to 80 µs a call).
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.ended = threading.Lock()
        self.ended.acquire()
        self._coroutine = coroutine
        self._task: asyncio.Task[None] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin, on the loop."""
        self._task = asyncio.get_running_loop().create_task(self._carry_out())

    def cancel(self) -> None:
        """Stop, on the loop."""
        if self._task is None:
            self._coroutine.close()
        else:
            self._task.cancel()

    def outcome(self) -> T:
        """What it returned, or raise what it raised; once `ended` could be acquired."""
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    async def _carry_out(self) -> None:
        try:
            self._value = await self._coroutine
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
            self._error = error
        finally:
            self.ended.release()


class Portal:
    """One thread that runs one event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._farewells: list[weakref.WeakMethod[Callable[[], Coroutine[Any, Any, None]]]] = []

    def run(self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a coroutine function on the portal's loop and wait for it. The caller's context variables are seen there.

        An OffloadError begins its traceback here: what is within is no business of the caller, and its text says all.
        """
        call = Call(function(*args, **kwargs))
        loop = self.loop()
        try:
            loop.call_soon_threadsafe(call.start)
            while not call.ended.acquire(timeout=1.0):
                pass  # an exception that a worker throws into this thread gets in between two waits only
        except BaseException:  # a KeyboardInterrupt, most likely: who does not wait for it any more does not want it
            loop.call_soon_threadsafe(call.cancel)
            raise
        try:
            return call.outcome()
        except OffloadError as error:
            raise shortened(error)  # noqa: B904 - the very error
        finally:
            del call  # an error holds this frame, which must not hold the error

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, running."""
        if self._loop is None:
            with self._lock:
                if self._loop is None:
                    loop = asyncio.new_event_loop()
                    self._thread = threading.Thread(target=loop.run_forever, name="offload-portal", daemon=True)
                    self._thread.start()
                    self._loop = loop
        return self._loop

    def at_close(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the method `farewell` run on the loop, last of all, when the process ends, if its object is still there."""
        self._farewells.append(weakref.WeakMethod(farewell))

    def close(self) -> None:
        """Wait for calls under way, say the farewells, end the thread."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._finish(), loop).add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
        thread.join(LONGEST_EXIT)
        if not thread.is_alive():
            loop.close()
        self._loop = self._thread = None

    def abandon(self) -> None:
        """In a forked child: the thread stayed in the parent, so the loop there is not ours."""
        self.__init__()

    async def _finish(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        if pending:
            await asyncio.wait(pending, timeout=LONGEST_EXIT / 2)
        for reference in self._farewells:
            if (farewell := reference()) is not None:
                try:
                    await farewell()
                except Exception:
                    log.exception("closing failed at the end of the process")


def shortened(error: OffloadError) -> OffloadError:
    """The very error as it is to leave Offload: without the frames that it has collected inside, which tell its reader nothing.

    What a BrokerError came from is the driver's error alone, without the driver's frames and without errors of ours in between.
    """
    if isinstance(error, BrokerError):
        cause = error.__cause__
        while cause is not None and cause.__cause__ is not None and type(cause).__module__.startswith("offload."):
            cause = cause.__cause__
        if cause is not None:
            error.__cause__ = cause.with_traceback(None)
            cause.__suppress_context__ = True
    return error.with_traceback(None)


portal = Portal()
atexit.register(portal.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=portal.abandon)


def refuse_inside_loop(name: str) -> None:
    """Raise LoopRunning, naming the async form of the method `name`, when the caller is on a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise LoopRunning(f"{name}() would block the running event loop; use: await a{name}()")


def sync(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], T]:
    """The sync twin of an async method `aname`: the same, run on the portal's loop. Raises LoopRunning inside a running loop."""
    name = method.__name__.removeprefix("a")

    def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        refuse_inside_loop(name)
        return portal.run(method, self, *args, **kwargs)

    shown: Any = functools.update_wrapper(twin, method)
    shown.__name__ = name
    shown.__qualname__ = f"{method.__qualname__.rpartition('.')[0]}.{name}"
    shown.__signature__ = inspect.signature(method)  # what `help` shows
    del shown.__wrapped__  # through it `inspect` would take the twin for a coroutine function
    return twin
