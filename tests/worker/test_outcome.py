"""What an attempt's end means for its job, decided without broker, loop or clock."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
from tests.worker.program import Unprintable

from offload import Cancel, Discard, Retry, RetryLater, Snooze, Unsupported
from offload.duration import LONGEST
from offload.job import Cancelled, Dead, Job, Lease, Outcome, Release, Retried
from offload.retry import RetryPolicy
from offload.testing.clock import START
from offload.worker.outcome import MOST_MESSAGE, MOST_TRACEBACK, after, failure_of, text_of

MIDDLE = 0.5
PLAIN = Retry(initial=10, jitter=0, max_retries=2)


def lease(attempt: int = 1) -> Lease:
    return Lease(Job(id="j", task="t", enqueued_at=START), claim=7, attempt=attempt)


def outcome(error: BaseException, policy: RetryPolicy = PLAIN, attempt: int = 1, age: float = 0.0) -> Outcome:
    return after(error, policy, lease(attempt), START + timedelta(seconds=age), MIDDLE)


def raised(error: BaseException) -> BaseException:
    """The same error with a traceback."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any error, with its traceback
        return caught


def test_a_failure_is_retried_with_its_whole_story() -> None:
    match outcome(raised(ValueError("wrong"))):
        case Retried(delay, failure):
            assert delay == 10
            assert failure is not None
            assert (failure.attempt, failure.at, failure.type, failure.message) == (1, START, "ValueError", "wrong")
            assert "raise error" in failure.traceback
        case other:
            pytest.fail(f"{other}")


def test_delays_grow_until_retries_are_used_up() -> None:
    ends = [outcome(ValueError(), attempt=attempt) for attempt in (1, 2, 3)]
    assert [end.delay for end in ends if isinstance(end, Retried)] == [10, 20]
    assert isinstance(ends[2], Dead)
    assert ends[2].reason == "retries used up after 3 attempts"
    assert ends[2].failure is not None


def test_what_the_broker_can_never_do_is_not_asked_for_again() -> None:
    end = outcome(raised(Unsupported("RedisBroker has no transactions")))
    assert isinstance(end, Dead)
    assert end.reason == "Unsupported is never retried"
    assert end.failure is not None
    assert "no transactions" in end.failure.message


def test_retry_later_names_its_delay_and_counts() -> None:
    first, last = outcome(RetryLater(33)), outcome(RetryLater(33), attempt=3)
    assert isinstance(first, Retried)
    assert first.delay == 33
    assert first.failure is not None
    assert (first.failure.type, first.failure.traceback) == ("RetryLater", "")
    assert isinstance(last, Dead)


def test_retry_later_holds_the_whole_key_back_in_the_last_attempt_too() -> None:
    first, last, alone = (outcome(RetryLater(33, whole_key=whole), attempt=n) for whole, n in ((True, 1), (True, 3), (False, 3)))
    assert isinstance(first, Retried)
    assert first.whole_key
    assert isinstance(last, Dead)
    assert isinstance(alone, Dead)
    assert (last.hold_key, alone.hold_key) == (33, 0)


def test_snooze_gives_the_attempt_back() -> None:
    assert outcome(Snooze(60), attempt=3) == Release(60)


def test_discard_is_dead_with_its_reason() -> None:
    end = outcome(Discard("no such user"))
    assert isinstance(end, Dead)
    assert end.reason == "no such user"
    assert end.failure is not None
    assert end.failure.type == "Discard"


def test_cancel_is_cancelled_with_its_reason() -> None:
    assert outcome(Cancel("changed my mind")) == Cancelled("changed my mind")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("k"), "KeyError is never retried"),
        (OSError("o"), None),
        (TypeError("t"), "TypeError is not among the errors that are retried"),
    ],
)
def test_on_and_never_choose_by_class(error: Exception, reason: str | None) -> None:
    end = outcome(error, Retry(on=(LookupError, OSError), never=(KeyError,)))
    assert (end.reason if isinstance(end, Dead) else None) == reason


def test_within_bounds_the_age_of_the_job() -> None:
    policy = Retry(initial=60, jitter=0, within=timedelta(minutes=5))
    assert isinstance(outcome(ValueError(), policy, age=200), Retried)
    end = outcome(ValueError(), policy, age=250)
    assert isinstance(end, Dead)
    assert "later than 300 seconds after the enqueue" in end.reason


def test_a_callable_decides() -> None:
    def policy(attempt: int, error: BaseException) -> float | None:
        return 5.0 * attempt if isinstance(error, OSError) else None

    retried = outcome(OSError(), policy, attempt=3)
    assert isinstance(retried, Retried)
    assert retried.delay == 15
    dead = outcome(ValueError(), policy)
    assert isinstance(dead, Dead)
    assert dead.reason == "the retry policy gave up after 1 attempt"


def broken(fault: BaseException) -> RetryPolicy:
    def policy(attempt: int, error: BaseException) -> float | None:
        raise fault

    return policy


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (broken(ZeroDivisionError("oops")), "the retry policy raised ZeroDivisionError: oops"),
        (broken(SystemExit(2)), "the retry policy raised SystemExit: 2"),
        (broken(Unprintable()), "the retry policy raised "),
        (lambda attempt, error: "soon", "must be seconds"),
        (lambda attempt, error: -1.0, "must be at least 0"),
        (lambda attempt, error: float("nan"), "must be seconds"),
    ],
)
def test_a_broken_policy_ends_the_job_and_says_why(policy: RetryPolicy, reason: str) -> None:
    end = outcome(ValueError("wrong"), policy)
    assert isinstance(end, Dead)
    assert reason in end.reason
    assert end.failure is not None
    assert end.failure.message == "wrong"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError("no more")])
def test_what_would_end_a_program_is_a_failure_like_any_other(error: BaseException) -> None:
    end = outcome(error)
    assert isinstance(end, Retried)
    assert end.failure is not None
    assert end.failure.type == type(error).__name__


def test_a_policy_sees_what_would_end_a_program_as_an_exception() -> None:
    seen: list[BaseException] = []

    def policy(attempt: int, error: BaseException) -> float | None:
        seen.append(error)
        return 1.0

    outcome(SystemExit(3), policy)
    assert [(isinstance(error, Exception), str(error)) for error in seen] == [(True, "SystemExit: 3")]


@pytest.mark.parametrize("delay", ["soon", None, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("directive", [RetryLater, Snooze])
def test_a_delay_that_is_none_is_an_error_of_the_task(directive: Any, delay: Any) -> None:
    end = outcome(directive(delay))
    assert isinstance(end, Retried)
    assert end.failure is not None
    assert end.failure.type == "offload.errors.BadDeclaration"
    assert f"{directive.__name__}(delay) must be " in end.failure.message


@pytest.mark.parametrize("directive", [RetryLater, Snooze])
def test_delays_may_be_timedeltas_and_past(directive: Any) -> None:
    ends = [outcome(directive(delay)) for delay in (timedelta(minutes=2), -3)]
    assert [end.delay for end in ends if isinstance(end, Retried | Release)] == [120, 0]


def test_the_longest_delay_has_a_date() -> None:
    end = outcome(ValueError(), lambda attempt, error: LONGEST)
    assert isinstance(end, Retried)
    assert (START + timedelta(seconds=end.delay)).year == 2129
    assert isinstance(outcome(ValueError(), lambda attempt, error: 1e300), Dead)


@pytest.mark.parametrize("directive", [Discard, Cancel])
def test_a_reason_of_any_type_becomes_a_text(directive: Any) -> None:
    for reason, text in ((ValueError("no"), "no"), (17, "17"), (Unprintable(), "<an error whose text cannot be made")):
        end = outcome(directive(reason))
        assert isinstance(end, Dead | Cancelled)
        assert end.reason.startswith(text)


def test_an_error_whose_text_cannot_be_made_is_still_recorded() -> None:
    failure = failure_of(raised(Unprintable()), 1, START)
    assert failure.type == "tests.worker.program.Unprintable"
    assert failure.message == "<an error whose text cannot be made: __str__ raised RuntimeError>"
    assert "raise error" in failure.traceback


def test_the_whole_chain_of_errors_is_recorded() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as error:
        failure = failure_of(error, 1, START)
    assert "KeyError: 'first'" in failure.traceback
    assert "direct cause" in failure.traceback


def test_long_texts_are_cut() -> None:
    failure = failure_of(raised(ValueError("x" * 100_000)), 1, START)
    assert len(failure.message) == MOST_MESSAGE + 2
    assert len(failure.traceback) < MOST_TRACEBACK + 10


def test_texts_are_storable_as_utf_8() -> None:
    error = raised(FileNotFoundError(2, "no file", os.fsdecode(b"caf\xe9")))
    failure = failure_of(error, 1, START)
    for text in (failure.message, failure.traceback, text_of(error)):
        assert "caf\\" in text
        text.encode()
