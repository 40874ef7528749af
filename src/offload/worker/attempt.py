"""One execution of one job, here: what `current` talks to, and what the parts of the worker share about it."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec.structs import replace

from offload.current import Attempt
from offload.errors import SessionLost
from offload.job import Done, Isolation, Job, Lease, Outcome, Progress
from offload.worker.outcome import AttemptStopped
from offload.workflow import with_inputs

if TYPE_CHECKING:
    from offload.broker import Session
    from offload.task import Task

StopReason = Literal["timeout", "cancel", "lost", "shutdown"]


class Sink(Protocol):
    """Where the outcomes and the news of attempts go: the settler of the session that leased them."""

    session: Session

    def put(self, attempt: LocalAttempt, outcome: Outcome) -> None:
        """Take an outcome to be settled."""
        ...

    def report(self, lease: Lease, progress: Progress, /) -> None:
        """Take progress to be carried up by the next beat."""
        ...

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        """Store a step's result, however long the broker is away. False when the lease is lost."""
        ...


_throw = ctypes.pythonapi.PyThreadState_SetAsyncExc


def throw(thread: int) -> None:
    """Raise AttemptStopped in a thread, at its next step in Python."""
    _throw(ctypes.c_ulong(thread), ctypes.py_object(AttemptStopped))


def take_back() -> None:
    """Have what was thrown into this thread and has not arrived arrive here, where it ends nothing.

    Not by throwing None, which leaves the interpreter looking for an exception at every step of every thread from then on; and on
    Python 3.11 a thread that a debugger, a profiler or coverage follows then never comes to look at anything else.
    """
    try:
        throw(threading.get_ident())
        while True:
            pass
    except AttemptStopped:
        return


class LocalAttempt(Attempt):
    """An attempt in this process: in a coroutine or in a thread."""

    # What few attempts change stands on the class, so that making one stays cheap.
    stop_reason: StopReason | None = None
    stopped_at = 0.0
    coroutine: asyncio.Task[None] | None = None
    place: Any = None
    """The identity of the thread, or the child process, in which the task runs; None while it runs in neither."""
    waiter: asyncio.Future[Outcome] | None = None
    """Who awaits the outcome of the thread, when a middleware stands between."""
    error: BaseException | None = None
    """What the task raised, where it ran in this process."""
    started = 0.0
    took = 0.0
    """Seconds from the start to the end, whenever that is settled."""
    added: tuple[Job, ...] = ()
    """What the task added, where it ran in a child process."""
    returned: str | None = None
    """Why it is handed back without having been started."""
    deadline: float | None = None
    ended = False
    """An outcome was given; whatever comes later is dropped."""
    stuck = False
    """Its thread would not end: the worker slot was given back, the lease was not."""
    thrown = False
    shielded = False
    """No exception may be raised in its thread just now."""
    guard: threading.Lock | None = None
    """Held by who looks at `shielded` and `place`, where it runs in a thread."""

    def __init__(
        self, lease: Lease, task: Task[Any, Any], isolation: Isolation, sink: Sink, loop: asyncio.AbstractEventLoop, state: Any
    ) -> None:
        self.lease = lease
        self.job: Job = replace(lease.job, payload=with_inputs(lease.job, lease.inputs)) if lease.inputs else lease.job
        self.number = lease.attempt
        self.task = task
        self.isolation: Isolation = isolation
        self.sink = sink
        self.loop = loop
        self.state = state
        self.steps: dict[str, bytes] = dict(lease.steps) if lease.steps else {}

    @property
    def session_id(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - read only, and read late: few attempts ask
        """The session that holds the lease."""
        return self.sink.session.id

    def with_additions(self, outcome: Done) -> Done:
        """See `Attempt.with_additions`."""
        return Done(outcome.result, self.added) if self.added else super().with_additions(outcome)

    @property
    def cancelled(self) -> bool:
        """True once it was asked to stop."""
        return self.stop_reason is not None

    def shield(self) -> None:
        """See `Attempt.shield`."""
        if self.guard is None:
            return
        with self.guard:
            self.shielded = True
            if self.thrown:
                take_back()

    def unshield(self) -> None:
        """See `Attempt.shield`."""
        self.shielded = False

    def report(self, progress: Progress) -> None:
        """Pass progress on; from any thread."""
        self.sink.report(self.lease, progress)

    async def remember(self, step: str, value: bytes) -> None:
        """Store a step's result. Raises SessionLost when the lease is lost."""
        if not await self.sink.remember(self.lease, step, value):
            raise SessionLost(f"job {self.job.id} is no longer this worker's; step {step!r} was not remembered")
        self.steps[step] = value

    def remember_blocking(self, step: str, value: bytes) -> None:
        """The same from a worker thread."""
        future = asyncio.run_coroutine_threadsafe(self.remember(step, value), self.loop)
        try:
            future.result()
        except AttemptStopped:
            future.cancel()
            raise
