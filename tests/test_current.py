"""What a task sees of its own attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest

from offload import BadDeclaration, BadPayload, Job, LoopRunning, NotInTask, Progress, current
from offload.current import Attempt, attempt_var


class FakeAttempt(Attempt):
    """An attempt that writes down what it is told."""

    def __init__(self) -> None:
        self.job = Job(id="j", task="t", enqueued_at=datetime(2030, 1, 1, tzinfo=UTC))
        self.number = 2
        self.state = {"pool": 1}
        self.steps = {"old": b'"2000-01-01"'}
        self.told: list[Any] = []

    @property
    def cancelled(self) -> bool:
        return bool(self.told)

    def report(self, progress: Progress) -> None:
        self.told.append(progress)

    async def remember(self, step: str, value: bytes) -> None:
        self.told.append((step, value))

    def remember_blocking(self, step: str, value: bytes) -> None:
        self.told.append((step, value))


@pytest.fixture
def attempt() -> Iterator[FakeAttempt]:
    attempt = FakeAttempt()
    token = attempt_var.set(attempt)
    yield attempt
    attempt_var.reset(token)


def born(year: int) -> date:
    return date(year, 1, 1)


async def aborn(year: int) -> date:
    return date(year, 1, 1)


def test_the_job_and_the_number_of_the_attempt(attempt: FakeAttempt) -> None:
    assert (current.job, current.attempt, current.state) == (attempt.job, 2, {"pool": 1})
    assert not current.cancelled


def test_progress_is_reported(attempt: FakeAttempt) -> None:
    current.progress(0.4, "resizing")
    current.progress(1)
    assert attempt.told == [Progress(0.4, "resizing"), Progress(1.0, "")]
    assert current.cancelled


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), "half", None, [0.5]])
def test_progress_is_a_fraction(attempt: FakeAttempt, fraction: Any) -> None:
    with pytest.raises(ValueError, match="a fraction from 0 to 1"):
        current.progress(fraction)
    assert attempt.told == []


def test_a_step_runs_once_and_is_remembered(attempt: FakeAttempt) -> None:
    calls: list[int] = []

    def born(year: int) -> date:
        calls.append(year)
        return date(year, 1, 1)

    assert [current.step("born", born, 1990), current.step("born", born, year=1990)] == [date(1990, 1, 1)] * 2
    assert calls == [1990]
    assert attempt.told == [("born", b'"1990-01-01"')]


def test_a_step_that_an_earlier_attempt_remembered_is_not_run(attempt: FakeAttempt) -> None:
    assert current.step("old", born, 1990) == date(2000, 1, 1)
    assert asyncio.run(current.astep("old", aborn, 1990)) == date(2000, 1, 1)
    assert attempt.told == []


@pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", 7])
def test_a_step_whose_name_no_engine_keeps_is_refused_before_it_is_taken(attempt: FakeAttempt, name: Any) -> None:
    ran: list[int] = []
    with pytest.raises(BadDeclaration, match="the name of a step"):
        current.step(name, ran.append, 1)
    with pytest.raises(BadDeclaration, match="the name of a step"):
        asyncio.run(current.astep(name, ran.append, 1))
    assert (ran, attempt.told) == ([], [])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if (record.name, record.levelname) == ("offload.worker", "WARNING")]


def test_a_name_that_is_used_twice_in_one_attempt_is_warned_of_once(attempt: FakeAttempt, caplog: pytest.LogCaptureFixture) -> None:
    assert {current.step("send", born, year) for year in (1990, 1991, 1992)} == {date(1990, 1, 1)}
    (said,) = warnings(caplog)
    assert said.startswith("t j took the step 'send' more than once in attempt 2")
    assert "give each step a name of its own" in said


def test_so_it_is_in_coroutines_and_of_what_an_earlier_attempt_remembered(attempt: FakeAttempt, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await current.astep("old", aborn, 1990)
        assert warnings(caplog) == []
        for _ in range(2):
            await current.astep("old", aborn, 1990)
        await asyncio.gather(current.astep("side", aborn, 1990), current.astep("side", aborn, 1991))

    asyncio.run(main())
    old, side = warnings(caplog)
    assert "'old'" in old
    assert "'side'" in side


def test_threads_of_one_attempt_share_its_names(attempt: FakeAttempt, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(current.step, "send", born, 1990) for _ in range(8)))

    asyncio.run(main())
    assert len(warnings(caplog)) == 1


def test_names_that_differ_and_a_step_that_is_tried_again_are_not_warned_of(attempt: FakeAttempt, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> date:
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        current.step("1990", fail)
    for year in (1990, 1991):
        current.step(str(year), born, year)
    assert warnings(caplog) == []


def test_a_step_may_be_a_coroutine_or_a_plain_function(attempt: FakeAttempt) -> None:
    async def main() -> list[date]:
        return [await current.astep("one", aborn, 1990), await current.astep("two", born, year=1991)]

    assert asyncio.run(main()) == [date(1990, 1, 1), date(1991, 1, 1)]
    assert attempt.told == [("one", b'"1990-01-01"'), ("two", b'"1991-01-01"')]


def test_the_first_run_and_a_retry_see_the_same_type(attempt: FakeAttempt) -> None:
    def untyped():  # noqa: ANN202
        return (1, 2)

    first = current.step("pair", untyped)
    assert first == current.step("pair", untyped) == [1, 2]


def test_a_step_that_gives_nothing_is_remembered_too(attempt: FakeAttempt) -> None:
    def nothing() -> str | None:
        attempt.told.append("called")

    assert current.step("nothing", nothing) is None
    assert current.step("nothing", nothing) is None
    assert attempt.told == ["called", ("nothing", b"null")]


def test_a_step_that_fails_is_not_remembered(attempt: FakeAttempt) -> None:
    def fail() -> None:
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        current.step("fail", fail)
    assert "fail" not in attempt.steps


def test_a_result_that_no_attempt_could_read_is_not_remembered(attempt: FakeAttempt) -> None:
    def wrong() -> int:
        return "x"  # pyright: ignore[reportReturnType]

    def odd() -> object:
        return object()

    for function in (wrong, odd):
        with pytest.raises(BadPayload):
            current.step("s", function)
    assert attempt.told == []
    assert "s" not in attempt.steps


def test_a_sync_step_in_a_coroutine_names_the_async_one(attempt: FakeAttempt) -> None:
    async def main() -> None:
        with pytest.raises(LoopRunning, match="await astep"):
            current.step("s", born, 1)

    asyncio.run(main())
    assert attempt.told == []


@pytest.mark.parametrize("function", [aborn, lambda year: aborn(year + 1)])
def test_a_sync_step_of_an_async_function_names_the_async_one(attempt: FakeAttempt, function: Any) -> None:
    with pytest.raises(BadDeclaration, match=r"the function of step 's' is async.*use `await current.astep\(...\)`"):
        current.step("s", function, 1990)
    assert (attempt.told, "s" in attempt.steps) == ([], False)


def test_a_step_outside_an_attempt_says_so_on_a_running_loop_too() -> None:
    async def main() -> None:
        with pytest.raises(NotInTask):
            current.step("s", born, 1)

    asyncio.run(main())


def test_outside_an_attempt_everything_says_so() -> None:
    calls: list[Any] = [
        lambda: current.job,
        lambda: current.attempt,
        lambda: current.state,
        lambda: current.cancelled,
        lambda: current.progress(0.5),
        lambda: current.step("s", born, 1),
        lambda: asyncio.run(current.astep("s", aborn, 1)),
    ]
    for call in calls:
        with pytest.raises(NotInTask, match="while a worker runs a task"):
            call()
