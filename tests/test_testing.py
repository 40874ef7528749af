"""The kit for tests of programs that use Offload: the clock and the pytest fixtures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from offload import Offload, Rate, Retry, Worker
from offload.errors import LoopRunning, ResultTimeout
from offload.job import State
from offload.records import Record
from offload.testing.clock import START, TestClock

app = Offload("memory://")
calls: list[str] = []

Enqueued = Callable[..., list[Record]]
Advance = Callable[..., int]


@app.task(retry=Retry(initial=60, factor=2, jitter=0, max_retries=2))
def fragile(name: str) -> None:
    calls.append(name)
    raise ValueError(name)


@app.task
async def greet(name: str) -> str:
    calls.append(name)
    return f"hello {name}"


@app.task
async def greet_all(*, names: list[str]) -> None:
    for name in names:
        await greet.aenqueue(name)


@app.cron("0 * * * *")
@app.task
async def hourly() -> None:
    calls.append("hourly")


@pytest.fixture
def offload_app() -> Offload:
    calls.clear()
    return app


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_enqueued_shows_what_was_enqueued_oldest_first(enqueued: Enqueued) -> None:
    greet.enqueue("ada")
    fragile.using(delay=60).enqueue("bob")
    assert [(record.task, record.state) for record in enqueued()] == [(greet.name, State.READY), (fragile.name, State.SCHEDULED)]
    assert [record.payload for record in enqueued(greet)] == [b'{"name":"ada"}']
    assert enqueued(fragile.name) == enqueued(fragile)
    assert calls == []


def test_drain_runs_what_is_due_and_what_comes_of_it(enqueued: Enqueued, drain: Callable[[], int]) -> None:
    greet_all.enqueue(names=["ada", "bob"])
    greet.using(delay=60).enqueue("later")
    assert drain() == 3
    assert sorted(calls) == ["ada", "bob"]
    assert {record.result for record in enqueued(greet)} == {"hello ada", "hello bob", None}
    assert drain() == 0


def test_advance_brings_each_retry_at_its_moment(enqueued: Enqueued, drain: Callable[[], int], advance: Advance) -> None:
    fragile.enqueue("ada")
    assert drain() == 1
    assert advance(59) == 0
    assert advance(timedelta(hours=1) - timedelta(seconds=59)) == 3
    [record] = enqueued(fragile)
    assert record.state is State.DEAD
    assert [error.at - START for error in record.errors] == [timedelta(0), timedelta(seconds=60), timedelta(seconds=180)]


def test_advance_does_not_wait_for_what_cannot_run(enqueued: Enqueued, advance: Advance) -> None:
    greet.using(delay=10).enqueue("ada")
    app.pause("default")
    assert advance(60) == 0
    assert [record.state for record in enqueued()] == [State.READY]


def test_advance_lets_each_token_of_a_rate_come_at_its_moment(offload_app: Offload, advance: Advance) -> None:
    ran: list[int] = []
    paced = offload_app.task(name="paced", limits=Rate("1/m", key="mailgun"))(ran.append)
    try:
        for n in range(4):
            paced.enqueue(n)
        assert (advance(59), ran) == (1, [0])
        assert (advance(timedelta(minutes=2)), ran) == (2, [0, 1, 2])
    finally:
        del offload_app.tasks["paced"]


def test_advance_fires_each_tick_of_a_schedule(advance: Advance, offload_clock: TestClock) -> None:
    assert advance(timedelta(hours=3)) == 3
    assert calls == ["hourly"] * 3
    assert offload_clock.now() == START + timedelta(hours=3)


@pytest.mark.anyio
async def test_async_tests_have_the_same(
    aenqueued: Callable[..., Awaitable[list[Record]]], adrain: Callable[[], Awaitable[int]], aadvance: Callable[..., Awaitable[int]]
) -> None:
    handle = await greet.using(delay=10).aenqueue("ada")
    assert await adrain() == 0
    assert await aadvance(10) == 1
    assert await handle.aresult(timeout=5) == "hello ada"
    assert [record.id for record in await aenqueued()] == [handle.id]


@pytest.mark.anyio
async def test_the_sync_forms_refuse_a_running_loop_and_name_the_async_ones(drain: Callable[[], int]) -> None:
    with pytest.raises(LoopRunning, match="adrain"):
        drain()


@pytest.mark.parametrize("timeout", [None, 60.0, 0])
def test_to_wait_for_what_nothing_runs_is_an_error_at_once(drain: Callable[[], int], timeout: float | None) -> None:
    handle = greet.enqueue("ada")
    with pytest.raises(ResultTimeout, match=r"has not ended, and nothing runs it here: call drain\(\) or advance\(\) first"):
        handle.result(timeout=timeout)
    assert drain() == 1
    assert handle.result(timeout=timeout) == "hello ada"


@pytest.mark.anyio
async def test_a_worker_beside_the_test_is_waited_for(offload_rehearsal: object) -> None:
    async with Worker(app):
        assert await (await greet.aenqueue("ada")).aresult(timeout=10) == "hello ada"


def test_each_test_starts_with_nothing(enqueued: Enqueued) -> None:
    assert enqueued() == []


def test_a_project_without_an_app_is_told_what_to_define(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_it.py").write_text("def test_it(drain): drain()\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder)], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 1
    assert "define a fixture `offload_app`" in done.stdout


def test_a_fixture_that_gives_no_app_is_told_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_it.py").write_text(
        "import pytest\n@pytest.fixture\ndef offload_app(): return 'shop:app'\ndef test_it(drain): drain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder)], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 1
    assert "the fixture `offload_app` must return your app, an Offload, not 'shop:app'" in done.stdout


def test_the_plugin_costs_those_nothing_who_do_not_use_it() -> None:
    program = (
        "import offload, pytest, sys; before = set(sys.modules); import offload.testing.plugin; print(*sorted({*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["offload.testing", "offload.testing.plugin"]


def test_the_clock_moves_only_when_told() -> None:
    clock = TestClock()
    assert (clock.now(), clock.now()) == (START, START)
    before = clock.monotonic()
    clock.advance(1.5)
    clock.advance(timedelta(minutes=1))
    assert (clock.now() - START, clock.monotonic() - before) == (timedelta(seconds=61.5), 61.5)


@pytest.mark.parametrize("by", [3_600.0, -3_600.0])
def test_a_jump_moves_the_wall_clock_only(by: float) -> None:
    clock = TestClock()
    before = clock.monotonic()
    clock.jump(by)
    assert (clock.now() - START, clock.monotonic()) == (timedelta(seconds=by), before)


def test_time_does_not_pass_backwards() -> None:
    with pytest.raises(ValueError, match="jump"):
        TestClock().advance(-1)


def test_a_clock_starts_where_it_is_told_in_utc() -> None:
    assert TestClock(datetime(2031, 3, 4, tzinfo=UTC)).now() == datetime(2031, 3, 4, tzinfo=UTC)
    with pytest.raises(ValueError, match="naive"):
        TestClock(datetime(2031, 3, 4))
