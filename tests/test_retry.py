"""When a failed attempt is followed by another one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from offload.errors import BadDeclaration, OffloadError, RetryLater, Unsupported
from offload.retry import Again, Enough, Retry, decide, policy_of

MIDDLE = 0.5
"""The random number at which jitter changes nothing."""


def delays(policy: Retry) -> list[float]:
    """The delays until the policy gives up."""
    found: list[float] = []
    while isinstance(verdict := decide(policy, ValueError(), len(found) + 1, 0.0, MIDDLE), Again):
        found.append(verdict.delay)
    return found


def test_the_default_waits_a_minute_and_doubles_five_times() -> None:
    assert delays(Retry()) == [60, 120, 240, 480, 960]


def test_five_seconds_times_five() -> None:
    assert delays(Retry(initial=5, factor=5, max_retries=3)) == [5, 25, 125]


def test_no_delay_is_longer_than_the_maximum() -> None:
    assert delays(Retry(initial=timedelta(seconds=10), maximum=timedelta(seconds=35))) == [10, 20, 35, 35, 35]
    assert decide(Retry(max_retries=10_000), ValueError(), 5_000, 0, MIDDLE) == Again(21_600)


@given(random=some.floats(0, 1, exclude_max=True), attempt=some.integers(1, 5))
def test_jitter_stays_within_its_fraction(random: float, attempt: int) -> None:
    verdict = decide(Retry(jitter=0.1), ValueError(), attempt, 0, random)
    middle = 60 * 2 ** (attempt - 1)
    assert isinstance(verdict, Again)
    assert 0.9 * middle <= verdict.delay <= 1.1 * middle


def test_jitter_goes_both_ways() -> None:
    assert [decide(Retry(), ValueError(), 1, 0, random) for random in (0.0, MIDDLE, 1.0)] == [Again(54), Again(60), Again(66)]


def test_retries_are_used_up() -> None:
    assert decide(Retry(max_retries=2), ValueError(), 2, 0, MIDDLE) == Again(120)
    assert decide(Retry(max_retries=2), ValueError(), 3, 0, MIDDLE) == Enough("retries used up after 3 attempts")
    assert decide(Retry(max_retries=0), ValueError(), 1, 0, MIDDLE) == Enough("retries used up after 1 attempt")


@pytest.mark.parametrize("error", [Unsupported("no"), BadDeclaration("no")])
def test_what_can_never_succeed_ends_at_once_unless_it_is_named(error: OffloadError) -> None:
    name = type(error).__name__
    for policy in (Retry(), Retry(on=(ValueError, RuntimeError)), Retry(never=(KeyError,))):
        assert decide(policy, error, 1, 0, MIDDLE) == Enough(f"{name} is never retried")
    assert decide(Retry(on=(Exception, OffloadError)), error, 1, 0, MIDDLE) == Again(60)
    assert decide(Retry(on=(type(error),)), error, 1, 0, MIDDLE) == Again(60)
    assert decide(lambda _attempt, _error: 7.0, error, 1, 0, MIDDLE) == Again(7.0)


def test_a_class_that_is_never_retried_ends_at_once() -> None:
    policy = Retry(never=(LookupError,))
    assert decide(policy, KeyError("x"), 1, 0, MIDDLE) == Enough("KeyError is never retried")
    assert decide(policy, ValueError(), 1, 0, MIDDLE) == Again(60)


def test_only_the_classes_named_are_retried() -> None:
    policy = Retry(on=(OSError,), never=(PermissionError,))
    assert decide(policy, TimeoutError(), 1, 0, MIDDLE) == Again(60)
    assert decide(policy, ValueError(), 1, 0, MIDDLE) == Enough("ValueError is not among the errors that are retried")
    assert decide(policy, PermissionError(), 1, 0, MIDDLE) == Enough("PermissionError is never retried")


def test_one_class_needs_no_tuple() -> None:
    assert Retry(on=OSError, never=PermissionError) == Retry(on=(OSError,), never=(PermissionError,))


def test_no_retry_starts_beyond_the_age_that_is_allowed() -> None:
    policy = Retry(within=timedelta(minutes=5))
    assert decide(policy, ValueError(), 1, 240, MIDDLE) == Again(60)
    assert decide(policy, ValueError(), 1, 241, MIDDLE) == Enough("the next attempt would come later than 300 seconds after the enqueue")


def test_retry_later_names_its_delay_and_counts() -> None:
    policy = Retry(max_retries=1, on=(OSError,), within=100)
    assert decide(policy, RetryLater(30), 1, 0, MIDDLE) == Again(30)
    assert decide(policy, RetryLater(-1), 1, 0, MIDDLE) == Again(0)
    assert decide(policy, RetryLater(30), 2, 0, MIDDLE) == Enough("retries used up after 2 attempts")
    assert isinstance(decide(policy, RetryLater(30), 1, 71, MIDDLE), Enough)


def test_a_callable_decides_by_itself() -> None:
    def policy(attempt: int, error: BaseException) -> float | None:
        return 7.0 * attempt if isinstance(error, OSError) and attempt < 3 else None

    assert decide(policy, OSError(), 2, 0, MIDDLE) == Again(14)
    assert decide(policy, OSError(), 3, 0, MIDDLE) == Enough("the retry policy gave up after 3 attempts")
    assert decide(policy, RetryLater(5), 3, 0, MIDDLE) == Again(5)


def test_a_callable_that_answers_no_duration_ends_the_job_with_a_reason() -> None:
    def odd(attempt: int, error: BaseException) -> Any:
        return "soon"

    assert decide(odd, OSError(), 1, 0, MIDDLE) == Enough("the delay of a retry policy must be seconds or a timedelta, not 'soon'")


def test_short_forms() -> None:
    assert policy_of(None) == policy_of(False) == policy_of(0) == Retry(max_retries=0)
    assert policy_of(True) == Retry()
    assert policy_of(3) == Retry(max_retries=3)
    assert policy_of(Retry(initial=1)) == Retry(initial=1)


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": True},
        {"initial": -1},
        {"initial": "60"},
        {"initial": float("nan")},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"maximum": float("inf")},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"on": ("ValueError",)},
        {"never": int},
        {"within": -1},
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadDeclaration, match=next(iter(options))):
        Retry(**options)


@pytest.mark.parametrize("retry", [-1, "often", 1.5, (1, 2)])
def test_what_is_no_policy_is_refused(retry: Any) -> None:
    with pytest.raises(BadDeclaration):
        policy_of(retry)
