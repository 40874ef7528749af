"""What a task sees of its own attempt: `from offload import current`."""

from __future__ import annotations

import inspect
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, overload

from offload import completing
from offload.adding import Additions, OwnBatch, OwnWorkflow
from offload.codec import Returns
from offload.completing import Completion, Transaction
from offload.errors import BadDeclaration, NotInTask
from offload.job import Done, Job, Lease, Progress
from offload.limits import given_key
from offload.portal import refuse_inside_loop
from offload.task import Task

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("offload.worker")

_counting = threading.Lock()
"""Held while the uses of a step's name are counted: an attempt may take steps in several threads."""


class Attempt(ABC):
    """One execution of one job, as the worker carries it out."""

    job: Job
    number: int
    """1 for the first."""
    state: Any
    """What the app's lifespan gave."""
    steps: dict[str, bytes]
    """JSON of the steps remembered so far."""
    named: dict[str, int] | None = None
    """How often this attempt has used the name of each step; None before the first."""
    lease: Lease
    session_id: str
    """The session that holds the lease."""
    task: Task[..., Any]
    completion: Completion | None = None
    """The transaction that is open to end the job."""
    block: Transaction | None = None
    """What ends that transaction, in sync code: to be closed where the task was stopped just before that."""
    additions: Additions | None = None
    """What the task adds to its workflow and batch."""
    completed: Done | None = None
    """The outcome that such a transaction committed; whatever comes later changes nothing."""
    settled = False
    """Whether the store has that outcome."""
    in_doubt = False
    """Whether a commit was begun whose end was not seen: the store may have the outcome, and tells by refusing another one."""

    def adding(self) -> Additions:
        """Where what the task adds is gathered."""
        if self.additions is None:
            self.additions = Additions(self.job, self.task.producer)
        return self.additions

    def with_additions(self, outcome: Done) -> Done:
        """An outcome that brings what the task added."""
        added = () if self.additions is None else self.additions.jobs()
        return Done(outcome.result, added) if added else outcome

    def shield(self) -> None:
        """From here on nothing is raised in the task's thread from outside; what was raised but has not arrived comes later."""

    def unshield(self) -> None:
        """Undo `shield`."""

    def committing(self) -> None:
        """Take note that the transaction which ends the job is about to be committed."""
        self.in_doubt = True

    def committed(self, outcome: Done, *, settled: bool) -> None:
        """Take note that it is."""
        self.completed, self.settled, self.in_doubt = outcome, settled, False
        self.adding().closed = True

    @property
    @abstractmethod
    def cancelled(self) -> bool:
        """True once cancelling, a time limit or a lost lease asks the attempt to stop."""

    @abstractmethod
    def report(self, progress: Progress) -> None:
        """Take note of the progress; it travels with the next beat."""

    @abstractmethod
    async def remember(self, step: str, value: bytes) -> None:
        """Store a step's result. Raises SessionLost when the lease is lost."""

    @abstractmethod
    def remember_blocking(self, step: str, value: bytes) -> None:
        """The same, for threads and processes."""


attempt_var: ContextVar[Attempt] = ContextVar("offload_attempt")


class Current:
    """The attempt that the calling code belongs to. Everything raises NotInTask outside of one."""

    @property
    def job(self) -> Job:
        """The job; `current.job.id` is the same in every attempt and so fits as an idempotency key."""
        return _attempt().job

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return _attempt().number

    @property
    def state(self) -> Any:
        """What the app's lifespan gave."""
        return _attempt().state

    @property
    def cancelled(self) -> bool:
        """True once this attempt was asked to stop; for threads and processes, which cannot be stopped from outside as coroutines can."""
        return _attempt().cancelled

    @property
    def workflow(self) -> OwnWorkflow:
        """The workflow of this job, to add jobs to it: `current.workflow.add(...)`. Raises BadDeclaration where it belongs to none."""
        return OwnWorkflow(_attempt().adding())

    @property
    def batch(self) -> OwnBatch:
        """The batch of this job, or the one that it is a callback of. Raises BadDeclaration where it belongs to none."""
        return OwnBatch(_attempt().adding())

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the job is: from 0 to 1, and a word about it. Shown live; cheap to call often. Raises ValueError for others."""
        if not _is_fraction(fraction):
            raise ValueError(f"progress takes a fraction from 0 to 1, not {fraction!r}, and then perhaps a text, as progress(0.5, 'half')")
        storable = str(message).encode("utf-8", "backslashreplace").decode()  # names of files may hold what UTF-8 may not
        _attempt().report(Progress(float(fraction), storable))

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` once in the life of the job: its result is stored under `name`, and later attempts get it without a call.

        A second call with the same name in one attempt gets it, too, with a warning in the worker's log: give each step a name of its
        own, in a loop such as `f"send {number}"`. The result travels as JSON and comes back by the function's return annotation, also
        the first time. A crash between the call and the storing repeats the call. Raises BadPayload for a result JSON cannot carry,
        SessionLost when another worker has the job by now, LoopRunning in a coroutine and BadDeclaration for an async function
        (use `astep`), BadDeclaration for a name of over 200 characters.
        """
        attempt, returns = _of_step(name), Returns(function)
        refuse_inside_loop("step")
        if name not in attempt.steps:
            value = _proved(returns, _not_awaitable(name, function(*args, **kwargs)))
            attempt.remember_blocking(name, value)
            attempt.steps[name] = value
        _count(attempt, name)
        return returns.decode(attempt.steps[name])

    @overload
    async def astep(self, name: str, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def astep(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def astep(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`step` for coroutines: `function` may be a coroutine function or a plain one (which is called here, on the event loop)."""
        attempt, returns = _of_step(name), Returns(function)
        if name not in attempt.steps:
            result = function(*args, **kwargs)
            value = _proved(returns, await result if inspect.isawaitable(result) else result)
            await attempt.remember(name, value)
            attempt.steps[name] = value
        _count(attempt, name)
        return returns.decode(attempt.steps[name])

    def transaction(self, connection: Any = None) -> AbstractContextManager[Any]:
        """A block whose commit ends the job: with the rows written and the jobs enqueued in it, or not at all. SQL stores only.

        Without `connection` it is one of the store's own, to its database; a transaction is begun on it, and its value is what
        stands behind `as`: psycopg's `Connection`, or sqlite3's. Or give a connection or session of your own, of any kind that
        `using(connection=...)` takes; then the block also commits what was done on it before.

        At the end of the block the success of the job is recorded and all is committed; an exception that leaves the block
        rolls back, and is the outcome of the attempt. Afterwards nothing counts any more: an error is logged, a return value
        dropped, so set the result by `complete`. Jobs enqueued inside are part of it, without `connection=`. A job has one such
        transaction; steps are refused inside. A deadlock or serialisation failure hands the job back, as does an outage of the
        store's own connection before the commit, and the attempt does not count. Raises SessionLost, with nothing committed, when
        another worker has the job; Unsupported on a broker that is no SQL database; BadDeclaration for a connection that does not
        fit; LoopRunning in a coroutine (use `atransaction`).
        """
        return completing.Transaction(_attempt(), connection)

    def atransaction(self, connection: Any = None) -> AbstractAsyncContextManager[Any]:
        """`transaction` for coroutines: `async with`. Its own connection is psycopg's `AsyncConnection`, on SQLite sqlite3's."""
        return completing.atransaction(_attempt(), connection)

    def complete(self, value: Any) -> None:
        """Set the result of the job, in a block of `transaction`. Raises BadPayload when it cannot be carried, BadDeclaration elsewhere."""
        completion = _attempt().completion
        if completion is None:
            raise BadDeclaration("current.complete() belongs into a block of current.transaction(); elsewhere return the result")
        completion.complete(value)


current = Current()


def _attempt() -> Attempt:
    attempt = attempt_var.get(None)
    if attempt is None:
        raise NotInTask("`current` is only there while a worker runs a task; in a plain call of the function there is no job")
    return attempt


def _of_step(name: str) -> Attempt:
    """The attempt that takes a step. Raises BadDeclaration inside `transaction`, which may roll back, and for a name nobody can keep."""
    attempt = _attempt()
    given_key(name, "the name of a step")
    if attempt.completion is not None:
        raise BadDeclaration("a step inside current.transaction() would be remembered although it rolls back; take the step before")
    return attempt


def _is_fraction(value: Any) -> bool:
    try:
        return bool(0 <= value <= 1)
    except TypeError:
        return False


def _not_awaitable(name: str, result: Any) -> Any:
    """What a sync step gave. Raises BadDeclaration for the coroutine of an async function, of which nothing has run."""
    if inspect.iscoroutine(result):
        result.close()
        raise BadDeclaration(
            f"the function of step {name!r} is async, and current.step() has nobody to await it: "
            "make the task an `async def`, and use `await current.astep(...)`"
        )
    return result


def _count(attempt: Attempt, name: str) -> None:
    """Count that a step has given its value, and warn at the second of one name: what it was to do may not have been done.

    A step that failed does not count, and may be tried again by the same name.
    """
    with _counting:
        named = attempt.named = attempt.named or {}
        uses = named[name] = named.get(name, 0) + 1
    if uses == 2:
        job = attempt.job
        log.warning(
            "%s %s took the step %r more than once in attempt %d: a name has one result, which all further calls get, and their functions "
            "are not called; give each step a name of its own, in a loop such as f'send {number}'",
            job.task, job.id, name, attempt.number,
            extra={"job_id": job.id, "task": job.task, "queue": job.queue, "attempt": attempt.number},
        )  # fmt: skip


def _proved(returns: Returns, result: Any) -> bytes:
    """The JSON of a step's result, known to come back, so that nothing is remembered that no attempt could read."""
    value = returns.encode(result) or b"null"
    returns.decode(value)
    return value
