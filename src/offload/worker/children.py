"""Runs attempts in child processes that are spawned, reused, and can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from offload.broker import SqlStore
from offload.errors import BadDeclaration, SessionLost
from offload.job import Done, Outcome
from offload.worker.source import Source, homes_of
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
    to_parent,
)

if TYPE_CHECKING:
    from offload.worker.attempt import LocalAttempt


class ChildDied(Exception):
    """The child process that ran the attempt died."""


class ChildUnready(Exception):
    """A child process could not be started; no task was run in it."""


class Child:
    """One child process and the two streams to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.killed = False

    @classmethod
    async def spawn(cls, source: Source) -> Child:
        """Start a child and wait until it has imported the app. Raises ChildUnready when it cannot."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "offload.worker.child", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        child = cls(process)
        try:
            child.send(Start(source.module, source.attribute, source.file, tuple(sys.path), os.getpid()))
            match await child.receive():
                case Ready():
                    return child
                case Unready(error):
                    raise ChildUnready(f"a child process could not import the app: {error}")
                case other:
                    raise ChildUnready(f"a child process answered {other!r} instead of being ready")
        except ChildDied as error:
            await child.end()
            raise ChildUnready(f"a child process could not be started: {error}") from None
        except BaseException:
            await child.end()
            raise

    def send(self, message: ToChild) -> None:
        """Write a message; what a dead child does not read is lost, and `receive` tells."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(frame(message))

    async def receive(self) -> ToParent:
        """The next message. Raises ChildDied at the end of the stream."""
        if self.process.stdout is None:
            raise ChildDied("the child process has no stream to read from")
        try:
            (size,) = HEADER.unpack(await self.process.stdout.readexactly(HEADER.size))
            return to_parent.decode(await self.process.stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            raise ChildDied(f"the child process died: {_how(await self.process.wait())}") from None

    def lives(self) -> bool:
        """Whether it has not ended, asked of the system: the event loop may learn of it only later."""
        if self.process.returncode is not None:
            return False
        if not hasattr(os, "waitid"):  # Windows
            return True
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # the event loop was told, and tells us soon
            return False

    def signal(self, number: int) -> None:
        """Send a signal, if it still lives."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def end(self) -> None:
        """Kill it and wait for its end."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Children:
    """At most `size` children at work; idle ones are kept for the next attempt."""

    def __init__(self, size: int, source: Source | None) -> None:
        self.size = size
        self._source = source
        self._idle: list[Child] = []
        self._all: set[Child] = set()

    async def run(self, attempt: LocalAttempt, begun: Callable[[LocalAttempt], None]) -> Outcome:
        """Run one attempt in a child; `begun` is told when there is one. Raises ChildDied when the child dies of it, ChildUnready."""
        child = await self._take()
        lease = attempt.lease
        attempt.place = child
        begun(attempt)
        sound = False
        try:
            ref = lease.ref if issubclass(attempt.task.producer.clients.kind, SqlStore) else None
            child.send(
                Run(
                    attempt.job,
                    lease.claim,
                    lease.attempt,
                    lease.crashes,
                    lease.steps,
                    attempt.session_id,
                    homes_of(attempt.task),
                    ref,
                )
            )
            if attempt.stop_reason is not None:  # it was told to stop while the child was starting
                self.tell(attempt)
                self.stop(attempt, hard=False)
            outcome = await self._converse(child, attempt)
            sound = not child.killed
            return outcome
        finally:
            attempt.place = None
            if sound:
                self._idle.append(child)
            else:
                self._all.discard(child)
                await child.end()

    async def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.lives():
                return child
            self._all.discard(child)
        if self._source is None:
            raise BadDeclaration("this app cannot be imported by a child process; make it an attribute of a module")
        child = await Child.spawn(self._source)
        self._all.add(child)
        return child

    async def _converse(self, child: Child, attempt: LocalAttempt) -> Outcome:
        while True:
            match await child.receive():
                case Ended(outcome):
                    if isinstance(outcome, Done):
                        attempt.added = outcome.added
                    return outcome
                case Unready(error):
                    raise ChildUnready(error)
                case Report(progress):
                    attempt.report(progress)
                case Committing():
                    attempt.committing()
                case Committed(outcome, settled):
                    attempt.committed(outcome, settled=settled)
                case Keep(step, value):
                    try:
                        await attempt.remember(step, value)
                    except SessionLost:
                        child.send(Kept(stored=False))
                    else:
                        child.send(Kept(stored=True))
                case other:
                    raise ChildDied(f"a child process sent {other!r} out of turn")

    def tell(self, attempt: LocalAttempt) -> None:
        """Let the task see that it was asked to stop."""
        if isinstance(attempt.place, Child):
            attempt.place.send(Stop())

    def stop(self, attempt: LocalAttempt, *, hard: bool) -> None:
        """SIGTERM, which ends the task where it stands, or SIGKILL."""
        if isinstance(attempt.place, Child):
            attempt.place.killed = True
            attempt.place.send(Stop(now=True))
            attempt.place.signal(signal.SIGKILL if hard else signal.SIGTERM)

    async def close(self) -> None:
        """End all children."""
        children, self._all = self._all, set()
        self._idle.clear()
        for child in children:
            await child.end()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
