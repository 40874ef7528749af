"""Schedules: declared in code, or made at run time."""

from __future__ import annotations

import asyncio
import importlib
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from offload import BadDeclaration, Offload
from offload.job import Schedule, State
from offload.testing.clock import START, TestClock


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def app(clock: TestClock) -> Offload:
    return Offload("memory://", clock=clock)


async def report(year: int = 2030) -> None: ...


def test_cron_above_a_task_declares_a_schedule(app: Offload) -> None:
    task = app.task(name="report", queue="slow")(report)
    assert app.cron("0 9 * * MON", timezone="Europe/Berlin", overlap="allow", missed="all")(task) is task
    draft = replace(task.job(), producer=None)
    assert app.declared == {
        "report": Schedule(name="report", draft=draft, cron="0 9 * * MON", timezone="Europe/Berlin", overlap="allow", missed="all")
    }


def test_a_task_may_have_several_crons_of_different_names(app: Offload) -> None:
    task = app.task(name="report")(report)
    app.cron("0 9 * * *")(task)
    app.cron("0 18 * * *", name="evening")(task)
    assert set(app.declared) == {"report", "evening"}
    with pytest.raises(BadDeclaration, match="two schedules are named 'report'"):
        app.cron("0 21 * * *")(task)


def test_cron_below_the_task_is_told_how_to_turn_it_round(app: Offload) -> None:
    with pytest.raises(BadDeclaration, match=r"put @app\.cron above @app\.task"):
        app.cron("0 9 * * *")(report)  # pyright: ignore[reportArgumentType]


def test_a_schedule_passes_no_arguments(app: Offload) -> None:
    @app.task(name="needy")
    def needy(user_id: int) -> None: ...

    with pytest.raises(BadDeclaration, match=r"a schedule passes no arguments, but needy.* 'user_id' is missing"):
        app.cron("0 9 * * *")(needy)
    assert app.declared == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cron": "0 25 * * *"}, "hour"),
        ({"cron": "0 9 * * *", "timezone": "Europe/Berlon"}, "Berlon"),
        ({}, "cron= or every="),
        ({"cron": "0 9 * * *", "every": 60}, "cron= or every="),
        ({"every": -60}, "every"),
        ({"every": "1m"}, "every must be seconds or a timedelta"),
        ({"every": 60, "overlap": "queue"}, "overlap"),
        ({"every": 60, "missed": "all"}, "overlap"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(app: Offload, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        app.schedule("s", app.task(report).job(), **options)
    assert app.schedules() == []


def test_a_draft_with_a_time_of_its_own_is_refused(app: Offload) -> None:
    task = app.task(report)
    for draft in (task.using(delay=5).job(), task.using(id="x").job(), task.using(run_at=START).job()):
        with pytest.raises(BadDeclaration, match="leave id, delay and run_at out"):
            app.schedule("s", draft, every=60)
    with pytest.raises(BadDeclaration, match=r"takes what task.job\(...\) gives"):
        app.schedule("s", task, every=60)  # pyright: ignore[reportArgumentType]


MODULE = """
from datetime import timedelta
from offload import Offload
app = Offload("memory://")
@app.task
def clean(): ...
def declare():
    app.schedule("cleanup", clean.job(), every=timedelta(minutes=15))
declare()
"""


def test_while_a_module_is_imported_a_schedule_is_declared_in_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_with_schedule.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> Any:
        return importlib.import_module("shop_with_schedule")  # as uvicorn does, with a loop running

    module = asyncio.run(main())
    try:
        assert module.app.declared["cleanup"].every == 900
        assert module.app.schedules() == []
        module.app.declared.clear()
        module.declare()
        assert (list(module.app.declared), len(module.app.schedules())) == ([], 1)
    finally:
        del sys.modules["shop_with_schedule"]


def test_at_run_time_a_schedule_is_stored_at_once(app: Offload) -> None:
    app.schedule("report", app.task(report).job(2031), every=timedelta(minutes=15), overlap="replace")
    [record] = app.schedules()
    assert (record.schedule.name, record.schedule.every, record.schedule.overlap) == ("report", 900.0, "replace")
    assert (record.next_at, record.declared, app.declared) == (START + timedelta(minutes=15), False, {})


def test_a_schedule_is_paused_resumed_and_removed(app: Offload, clock: TestClock) -> None:
    app.schedule("report", app.task(report).job(), every=60)
    assert app.pause_schedule("report")
    assert app.schedules()[0].paused
    clock.advance(600)
    assert app.resume_schedule("report")
    assert (app.schedules()[0].paused, app.schedules()[0].next_at) == (False, START + timedelta(seconds=660))
    assert app.unschedule("report")
    assert not app.unschedule("report")
    assert not app.pause_schedule("report")
    assert not app.resume_schedule("report")


def test_a_schedule_can_be_run_now(app: Offload) -> None:
    app.schedule(
        "report",
        app.task(report).job(),
        every=60,
    )
    handle = app.run_schedule_now("report")
    assert handle is not None
    assert (handle.record().state, handle.record().schedule) == (State.READY, "report")
    assert app.run_schedule_now("report") is None  # overlap="skip": the first has not ended
    assert app.schedules()[0].next_at == START + timedelta(seconds=60)
    with pytest.raises(BadDeclaration, match="there is no schedule 'other'"):
        app.run_schedule_now("other")


def test_every_schedule_function_has_an_async_form(app: Offload) -> None:
    async def main() -> None:
        await app.aschedule("report", app.task(report).job(), cron="0 9 * * *")
        assert [record.schedule.name for record in await app.aschedules()] == ["report"]
        assert await app.apause_schedule("report")
        assert await app.aresume_schedule("report")
        assert await app.arun_schedule_now("report") is not None
        assert await app.aunschedule("report")

    asyncio.run(main())
