"""A child process of a worker: imports the app, runs one attempt at a time, and can be killed without harm to others.

Standard input and output carry the messages of `wire`; what the task prints goes to standard error.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import random
import signal
import sys
import threading
from contextlib import AsyncExitStack
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO

from offload.current import Attempt, attempt_var
from offload.errors import BadPayload, SessionLost, TaskNotFound
from offload.job import Dead, Done, Lease, Outcome, Progress, Release
from offload.worker.outcome import AttemptStopped, after, failure_of
from offload.worker.source import Home, Source, load, task_of
from offload.worker.wire import (
    HEADER,
    Committed,
    Committing,
    Ended,
    Keep,
    Kept,
    Ready,
    Report,
    Run,
    Start,
    Stop,
    ToChild,
    ToParent,
    Unready,
    frame,
    to_child,
)

if TYPE_CHECKING:
    from types import FrameType

    from offload.app import Offload
    from offload.task import Task

PR_SET_PDEATHSIG = 1
MOST_SPARED = 3
"""So many signals, a second apart, a statement has time to end."""


class Parent:
    """The streams to the worker. A thread reads, so that a stop is seen while the task runs."""

    def __init__(self, reading: BinaryIO, writing: BinaryIO) -> None:
        self._reading = reading
        self._writing = writing
        self._lock = threading.Lock()
        self.inbox: SimpleQueue[Run] = SimpleQueue()
        self.answers: SimpleQueue[bool] = SimpleQueue()
        self.attempt: ChildAttempt | None = None

    def send(self, message: ToParent) -> None:
        """Write a message whole."""
        with self._lock:
            self._writing.write(frame(message))
            self._writing.flush()

    def receive(self) -> ToChild | None:
        """The next message, None when the worker is gone."""
        header = self._reading.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        return to_child.decode(self._reading.read(HEADER.unpack(header)[0]))

    def read_on(self) -> None:
        """Sort messages until the worker is gone; then this process has nothing left to do."""
        while (message := self.receive()) is not None:
            match message:
                case Run():
                    self.inbox.put(message)
                case Kept(stored):
                    self.answers.put(stored)
                case Stop(now):
                    if (attempt := self.attempt) is not None:
                        attempt.asked_to_stop = True
                        if now and attempt.completion is not None:
                            attempt.completion.interrupt()
                case Start():
                    raise RuntimeError("a child process is started once")
        os._exit(0)


class ChildAttempt(Attempt):
    """What `current` talks to in a child process."""

    def __init__(self, run: Run, task: Task[..., Any], state: Any, parent: Parent) -> None:
        self.job = run.job
        self.task = task
        self.lease = Lease(run.job, run.claim, run.attempt, run.crashes, ref=run.ref)
        self.session_id = run.session
        self.number = run.attempt
        self.state = state
        self.steps = dict(run.steps)
        self.asked_to_stop = False
        self.spared = 0
        """How many signals it was not ended by, because the statement that it waited for was."""
        self._parent = parent

    @property
    def cancelled(self) -> bool:
        """True once it was asked to stop."""
        return self.asked_to_stop

    def spares(self) -> bool:
        """Whether the end of a statement is to end it, and not a signal; not for ever, for the server may be out of reach."""
        if self.spared >= MOST_SPARED or self.completion is None or not self.completion.waits:
            return False
        self.spared += 1
        return True

    def report(self, progress: Progress) -> None:
        """Pass progress on to the worker."""
        self._parent.send(Report(progress))

    async def remember(self, step: str, value: bytes) -> None:
        """Store a step's result. Raises SessionLost when the lease is lost."""
        await asyncio.to_thread(self.remember_blocking, step, value)

    def remember_blocking(self, step: str, value: bytes) -> None:
        """The same, from sync code."""
        self._parent.send(Keep(step, value))
        if not self._parent.answers.get():
            raise SessionLost(f"job {self.job.id} is no longer this worker's; step {step!r} was not remembered")
        self.steps[step] = value

    def committing(self) -> None:
        """Tell the worker, which is to know where this process dies of the commit."""
        super().committing()
        self._parent.send(Committing())

    def committed(self, outcome: Done, *, settled: bool) -> None:
        """Tell the worker: from here on the job has ended, whatever becomes of this process."""
        super().committed(outcome, settled=settled)
        self._parent.send(Committed(outcome, settled))


class Runner:
    """Runs attempts one after the other in the main thread, where a signal can end them."""

    def __init__(self, app: Offload, state: Any, parent: Parent, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._state = state
        self._parent = parent
        self._loop = loop
        self._in_task = False
        self._coroutine: asyncio.Task[Any] | None = None

    def terminated(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM: end the attempt where it stands; with none under way, end the process.

        Where psycopg waits for a statement, the statement is ended instead: that leaves the connection able to roll back.
        """
        attempt = self._parent.attempt
        if self._coroutine is not None:
            self._loop.call_soon_threadsafe(self._coroutine.cancel)
        elif self._in_task and attempt is not None and attempt.spares():
            return
        elif self._in_task:
            self._in_task = False
            raise AttemptStopped
        elif self._parent.attempt is None:
            os._exit(0)

    def run(self, run: Run) -> Outcome:
        """Run one attempt to its outcome. Raises TaskNotFound."""
        task = task_of(self._app, run.job.task, [Home(*home) for home in run.homes])
        attempt = self._parent.attempt = ChildAttempt(run, task, self._state, self._parent)
        try:
            return copy_context().run(self._outcome, attempt)
        except AttemptStopped:
            return Release()  # the worker knows why it was stopped, and puts its own outcome in place
        finally:
            self._parent.attempt = None

    def _outcome(self, attempt: ChildAttempt) -> Outcome:
        attempt_var.set(attempt)
        now, task, lease = self._app.clock.now, attempt.task, attempt.lease
        try:
            args, kwargs = task.arguments.decode(lease.job.payload)
        except BadPayload as error:
            return Dead("payload", failure_of(error, lease.attempt, now()))
        try:
            value = self._call(task.function, args, kwargs)
        except AttemptStopped:
            raise
        except BaseException as error:
            if attempt.spared:
                raise AttemptStopped from error
            return after(error, task.retry, lease, now(), random.random())
        try:
            return attempt.with_additions(Done(task.arguments.encode_result(value)))
        except BadPayload as error:
            return Dead("result", failure_of(error, lease.attempt, now()))

    def _call(self, function: Any, args: Any, kwargs: Any) -> Any:
        if not inspect.iscoroutinefunction(function):
            try:
                self._in_task = True
                return function(*args, **kwargs)
            finally:
                self._in_task = False
        self._coroutine = self._loop.create_task(function(*args, **kwargs))
        try:
            return self._loop.run_until_complete(self._coroutine)
        except asyncio.CancelledError:
            if self._coroutine.cancelling():  # by `terminated`; a task may also raise this by itself
                raise AttemptStopped from None
            raise
        finally:
            self._coroutine = None


def _claim_streams() -> Parent:
    """Keep the two streams for messages, and send what the task prints to standard error."""
    reading, writing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return Parent(reading, writing)


def _die_with(parent: int) -> None:
    """On Linux the kernel kills this process when the worker dies, even while C code holds the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    """Serve the worker until it goes away."""
    parent = _claim_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = parent.receive()
    if not isinstance(start, Start):
        return
    _die_with(start.parent)
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()
    try:
        sys.path[:] = start.path
        app = load(Source(start.module, start.attribute, start.file))
        state = loop.run_until_complete(stack.enter_async_context(app.opened_lifespan()))
    except BaseException as error:  # noqa: BLE001 - the worker must learn of whatever the import raised
        parent.send(Unready(f"{type(error).__name__}: {error}"))
        return
    runner = Runner(app, state, parent, loop)
    signal.signal(signal.SIGTERM, runner.terminated)
    threading.Thread(target=parent.read_on, name="offload-parent", daemon=True).start()
    parent.send(Ready())
    while True:
        try:
            parent.send(Ended(runner.run(parent.inbox.get())))
        except TaskNotFound as error:  # no crash of the job: it failed to start, as where the app cannot be imported
            parent.send(Unready(str(error)))


if __name__ == "__main__":
    main()
