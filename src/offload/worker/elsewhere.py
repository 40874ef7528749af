"""How the outcomes of threads and child processes pass through middlewares."""

from __future__ import annotations

from offload.job import Dead, Failure, Outcome, Retried


class EndedElsewhere(BaseException):
    """Carries an outcome that is no failure through the middlewares, past their `except Exception`, as a directive would go."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the attempt ended as {type(outcome).__name__}")
        self.outcome = outcome


class FailedInChild(Exception):
    """What a middleware sees of the error that a task raised in a child process: its type and text."""

    def __init__(self, failure: Failure, outcome: Outcome) -> None:
        super().__init__(f"{failure.type}: {failure.message}")
        self.failure = failure
        self.outcome = outcome


def seen_from_outside(outcome: Outcome) -> BaseException:
    """How an outcome that is no success passes through middlewares."""
    if isinstance(outcome, Retried | Dead) and outcome.failure is not None and outcome.failure.type not in _NOT_RAISED:
        return FailedInChild(outcome.failure, outcome)
    return EndedElsewhere(outcome)


_NOT_RAISED = frozenset({"Discard", "RetryLater", "offload.errors.BadPayload"})
"""Failures that are a task's own wish, or none of its doing."""
