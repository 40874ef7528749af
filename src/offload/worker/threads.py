"""Runs sync tasks in threads that can be told to stop.

Attempts cross to the threads in groups, and outcomes come back in groups: one wake-up of the event loop for all that ended
meanwhile (a hop of its own for each would cost 20 to 80 µs, `asyncio.to_thread` most).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context

from offload.job import Outcome
from offload.worker.attempt import LocalAttempt, take_back, throw
from offload.worker.outcome import AttemptStopped


class Threads:
    """A pool of daemon threads, started as they are needed, at most `size` at work at once."""

    def __init__(
        self,
        size: int,
        run: Callable[[LocalAttempt], Outcome],
        stopped: Callable[[LocalAttempt, BaseException], Outcome],
        done: Callable[[Sequence[tuple[LocalAttempt, Outcome]]], None],
    ) -> None:
        self._size = size
        self._run = run
        self._stopped = stopped
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[LocalAttempt] = deque()
        self._ready = threading.Condition()
        self._guard = threading.Lock()
        """A plain lock: an exception raised in a thread from outside can leave a Condition locked for ever, never a lock in C."""
        self._idle = 0
        self._alive = 0
        self._closed = False
        self._ended: deque[tuple[LocalAttempt, Outcome]] = deque()
        self._told = False

    def submit(self, attempts: Sequence[LocalAttempt]) -> None:
        """Run attempts as threads come free."""
        with self._ready:
            self._waiting.extend(attempts)
            for _ in range(min(len(self._waiting) - self._idle, self._size - self._alive)):
                self._start()
            self._ready.notify()

    def _start(self) -> None:
        self._alive += 1
        threading.Thread(target=self._work, name="offload-thread", daemon=True).start()

    def close(self) -> None:
        """Let idle threads end."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def give_up_on(self, attempt: LocalAttempt) -> None:
        """Make room for another thread beside one that will not end."""
        with self._ready:
            self._alive -= 1
            attempt.stuck = True

    def stop(self, attempt: LocalAttempt) -> None:
        """Raise AttemptStopped in the thread of `attempt`, where it still runs the task; a statement that it waits for is ended."""
        with self._guard:
            if not isinstance(attempt.place, int) or attempt.shielded:
                return
            attempt.thrown = True
            throw(attempt.place)
            completion = attempt.completion
        if completion is not None:
            threading.Thread(target=completion.interrupt, name="offload-interrupt", daemon=True).start()

    def _next(self) -> LocalAttempt | None:
        with self._ready:
            self._idle += 1
            while not self._waiting and not self._closed:
                self._ready.wait()
            self._idle -= 1
            if not self._waiting:
                return None
            attempt = self._waiting.popleft()
            if self._waiting and self._idle:  # wake them one by one: short tasks are then run by few threads, without a stampede
                self._ready.notify()
            return attempt

    def _work(self) -> None:
        while (attempt := self._next()) is not None:
            self._ended.append((attempt, self._outcome(attempt)))
            self._tell()
            if attempt.stuck:  # another thread has taken this one's place
                return

    def _outcome(self, attempt: LocalAttempt) -> Outcome:
        """Run it. AttemptStopped may arrive at any bytecode from `_take_up` until `_let_go` is through: all of it stands inside the try."""
        outcome: Outcome | None = None
        while True:
            try:
                if outcome is None:
                    self._take_up(attempt)
                    outcome = copy_context().run(self._run, attempt)
                self._let_go(attempt)
            except AttemptStopped as error:
                outcome = outcome or self._stopped(attempt, error)
            else:
                return outcome

    def _take_up(self, attempt: LocalAttempt) -> None:
        """From here on it can be stopped in this thread; one that was told to stop before does not start."""
        with self._guard:
            attempt.place, attempt.guard = threading.get_ident(), self._guard
        if attempt.stop_reason is not None:
            raise AttemptStopped

    def _let_go(self, attempt: LocalAttempt) -> None:
        """From here on nothing is raised in this thread; what was raised but has not arrived is taken back."""
        with self._guard:
            attempt.place = None
        if attempt.thrown:
            take_back()

    def _tell(self) -> None:
        if self._told:
            return
        self._told = True
        try:
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:  # the loop is closed: the worker is gone, and its leases with it
            return

    def _collect(self) -> None:
        self._told = False
        ended: list[tuple[LocalAttempt, Outcome]] = []
        while self._ended:
            ended.append(self._ended.popleft())
        if ended:
            self._done(ended)
