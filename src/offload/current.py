"""What a task sees of its own attempt: `from offload import current`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, overload

from offload.codec import Returns
from offload.errors import NotInTask
from offload.job import Job, Progress
from offload.portal import refuse_inside_loop

P = ParamSpec("P")
R = TypeVar("R")


class Attempt(ABC):
    """One execution of one job, as the worker carries it out."""

    job: Job
    number: int
    """1 for the first."""
    state: Any
    """What the app's lifespan gave."""
    steps: dict[str, bytes]
    """JSON of the steps remembered so far."""

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

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the job is: from 0 to 1, and a word about it. Shown live; cheap to call often. Raises ValueError outside 0..1."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
        storable = str(message).encode("utf-8", "backslashreplace").decode()  # names of files may hold what UTF-8 may not
        _attempt().report(Progress(float(fraction), storable))

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` once in the life of the job: its result is stored under `name`, and later attempts get it without a call.

        The result travels as JSON and comes back by the function's return annotation, also the first time. A crash between
        the call and the storing repeats the call. Raises BadPayload for a result JSON cannot carry, SessionLost when
        another worker has the job by now, LoopRunning in a coroutine (use `astep`).
        """
        attempt, returns = _attempt(), Returns(function)
        refuse_inside_loop("step")
        if name not in attempt.steps:
            value = _proved(returns, function(*args, **kwargs))
            attempt.remember_blocking(name, value)
            attempt.steps[name] = value
        return returns.decode(attempt.steps[name])

    @overload
    async def astep(self, name: str, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def astep(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def astep(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`step` for coroutines: `function` may be a coroutine function or a plain one (which is called here, on the event loop)."""
        attempt, returns = _attempt(), Returns(function)
        if name not in attempt.steps:
            result = function(*args, **kwargs)
            value = _proved(returns, await result if inspect.isawaitable(result) else result)
            await attempt.remember(name, value)
            attempt.steps[name] = value
        return returns.decode(attempt.steps[name])


current = Current()


def _attempt() -> Attempt:
    attempt = attempt_var.get(None)
    if attempt is None:
        raise NotInTask("`current` is only there while a worker runs a task; in a plain call of the function there is no job")
    return attempt


def _proved(returns: Returns, result: Any) -> bytes:
    """The JSON of a step's result, known to come back, so that nothing is remembered that no attempt could read."""
    value = returns.encode(result) or b"null"
    returns.decode(value)
    return value
