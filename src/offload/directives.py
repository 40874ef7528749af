"""What a task may raise to decide its own outcome."""

from __future__ import annotations

from offload.duration import LONGEST, Duration, seconds


class Directive(BaseException):
    """Raised by a task to decide its own outcome; not an error."""


class RetryLater(Directive):
    """Try again after `delay`, in seconds or as a timedelta; counts as a retry.

    With `whole_key` no other job of the same key starts until then: what an HTTP 429 with `Retry-After` asks for. Those are the keys of its
    rates; of its concurrency limits where it has no rate; else of its order. A delay below 0 is 0: a moment that is counted down to may
    have passed. Raises BadDeclaration for one that is no duration.
    """

    def __init__(self, delay: Duration, whole_key: bool = False) -> None:
        self.delay = _delay(delay, "RetryLater(delay)")
        self.whole_key = whole_key
        super().__init__(self.delay)


class Snooze(Directive):
    """Try again after `delay`, in seconds or as a timedelta; the attempt does not count. Its delay is taken as that of `RetryLater`."""

    def __init__(self, delay: Duration) -> None:
        self.delay = _delay(delay, "Snooze(delay)")
        super().__init__(self.delay)


class Discard(Directive):
    """The job is DEAD at once, with this reason."""

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)
        self.reason = reason


class Cancel(Directive):
    """The job is CANCELLED, with this reason."""

    def __init__(self, reason: str = "cancelled by its task") -> None:
        super().__init__(reason)
        self.reason = reason


def _delay(delay: Duration, what: str) -> float:
    return max(0.0, seconds(delay, what, least=-LONGEST))
