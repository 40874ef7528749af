"""Decides whether and when a failed attempt is followed by another one. Pure: chance and age are handed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

from offload.duration import Duration, seconds
from offload.errors import BadDeclaration, OffloadError, RetryLater, Unsupported

HOPELESS: tuple[type[OffloadError], ...] = (Unsupported, BadDeclaration)
"""What Offload refuses by what the program is, which no later attempt changes; retried only where `on` names such a class."""

Classes: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Exponential backoff: retry n waits `initial * factor ** (n - 1)` seconds, at most `maximum`, give or take `jitter`.

    `max_retries` is the number of attempts after the first. `initial`, `maximum` are seconds or timedeltas; `jitter` is a fraction of the
    delay, both ways. An error is retried when it is one of the classes `on` and none of `never`. `within` bounds the job's whole
    age: a retry that would start later than that after the enqueue is not made. Unsupported and BadDeclaration, which can never succeed,
    are retried only where `on` names them. Raises BadDeclaration for values that cannot work.
    """

    max_retries: int = 5
    initial: Duration = 60.0
    factor: float = 2.0
    maximum: Duration = 21_600.0
    jitter: float = 0.1
    on: Classes = (Exception,)
    never: Classes = ()
    within: Duration | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_retries, bool) or not isinstance(self.max_retries, int) or self.max_retries < 0:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"Retry(max_retries=...) must be a whole number of at least 0, not {self.max_retries!r}")
        if not (isinstance(self.factor, int | float) and math.isfinite(self.factor) and self.factor >= 1):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"Retry(factor=...) must be at least 1, not {self.factor!r}")
        if not (isinstance(self.jitter, int | float) and 0 <= self.jitter <= 1):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"Retry(jitter=...) must be a fraction from 0 to 1, not {self.jitter!r}")
        settle: Callable[[str, Any], None] = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        settle("initial", seconds(self.initial, "Retry(initial=...)"))
        settle("maximum", seconds(self.maximum, "Retry(maximum=...)"))
        settle("within", None if self.within is None else seconds(self.within, "Retry(within=...)"))
        settle("on", _classes(self.on, "on"))
        settle("never", _classes(self.never, "never"))

    def delay(self, attempt: int, random: float) -> float:
        """Seconds to wait after the failure of `attempt` (1 for the first), with `random` from 0 up to 1 for the jitter."""
        maximum = seconds(self.maximum, "maximum")
        try:
            delay = min(seconds(self.initial, "initial") * float(self.factor) ** (attempt - 1), maximum)
        except OverflowError:
            delay = maximum
        return delay * (1 + self.jitter * (2 * random - 1))


RetryPolicy: TypeAlias = Retry | Callable[[int, BaseException], float | None]
"""A `Retry`, or a callable `(attempt, error) -> seconds`, None to give up."""


class Again(NamedTuple):
    """Run it again after `delay` seconds."""

    delay: float


class Enough(NamedTuple):
    """Do not run it again, because of `reason`."""

    reason: str


def policy_of(retry: RetryPolicy | int | bool | None) -> RetryPolicy:
    """What a task's `retry=` means: False and None never retry, True is the default, a number is `max_retries`."""
    match retry:
        case None | False:
            return Retry(max_retries=0)
        case True:
            return Retry()
        case int():
            return Retry(max_retries=retry)
        case Retry():
            return retry
        case _ if callable(retry):
            return retry
        case _:
            raise BadDeclaration(f"retry must be a Retry, a number, False or a callable (attempt, error) -> seconds, not {retry!r}")


def decide(policy: RetryPolicy, error: BaseException, attempt: int, age: float, random: float) -> Again | Enough:
    """What follows the failure of `attempt` (1 for the first) with `error`, `age` seconds after the enqueue.

    `random` is a number from 0 up to 1. A RetryLater names its own delay and passes `on` and `never`, but counts as a retry.
    A callable is not asked about it.
    Raises what a callable policy raises.
    """
    if not isinstance(policy, Retry):
        return Again(max(0.0, error.delay)) if isinstance(error, RetryLater) else _ask(policy, attempt, error)
    name = type(error).__name__
    asked = isinstance(error, RetryLater)
    if not asked and (isinstance(error, policy.never) or _hopeless(error, policy)):
        return Enough(f"{name} is never retried")
    if not asked and not isinstance(error, policy.on):
        return Enough(f"{name} is not among the errors that are retried")
    if attempt > policy.max_retries:
        return Enough(f"retries used up after {attempt} attempt{'s' if attempt != 1 else ''}")
    delay = max(0.0, error.delay) if isinstance(error, RetryLater) else policy.delay(attempt, random)
    if policy.within is not None and age + delay > (within := seconds(policy.within, "within")):
        return Enough(f"the next attempt would come later than {within:g} seconds after the enqueue")
    return Again(delay)


def _hopeless(error: BaseException, policy: Retry) -> bool:
    named = tuple(kind for kind in cast(tuple[type[BaseException], ...], policy.on) if issubclass(kind, OffloadError))
    return isinstance(error, HOPELESS) and not isinstance(error, named)


def _ask(policy: Callable[[int, BaseException], float | None], attempt: int, error: BaseException) -> Again | Enough:
    """What a policy of the user's own says. What is no duration ends the job: its answers come from code that nobody checked."""
    delay: Any = policy(attempt, error)
    if delay is None:
        return Enough(f"the retry policy gave up after {attempt} attempt{'s' if attempt != 1 else ''}")
    try:
        return Again(seconds(delay, "the delay of a retry policy"))
    except BadDeclaration as fault:
        return Enough(str(fault))


def _classes(given: Any, which: str) -> tuple[type[BaseException], ...]:
    classes = cast(tuple[Any, ...], given if isinstance(given, tuple) else (given,))
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise BadDeclaration(f"Retry({which}=...) takes exception classes, not {each!r}")
    return classes
