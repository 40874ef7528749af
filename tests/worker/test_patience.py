"""What a worker says of a broker that is away: when that begins, each minute, and when it is over."""

from __future__ import annotations

import logging

import pytest

from offload import BrokerBusy, BrokerError
from offload.worker import patience
from offload.worker.patience import Outage, Patience

AWAY = BrokerError("no connection")


class Time:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(patience, "monotonic", time)
    return time


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    lines = [(record.levelno, record.message) for record in caplog.records]
    caplog.clear()
    return lines


def test_of_all_parts_that_meet_an_outage_the_first_tells_it_and_the_last_that_it_is_over(
    time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage()
    parts = [Patience(name, outage) for name in ("settling", "upkeep", "heartbeat")]
    for part in parts:
        part.failed(AWAY)
    assert said(caplog) == [(logging.ERROR, "settling: the broker does not answer (no connection); trying until it does")]
    time.now += 4
    for part in parts:
        part.succeeded()
        part.succeeded()
    assert said(caplog) == [(logging.WARNING, "heartbeat: the broker answers again, after 3 tries in 4.0 s")]


def test_an_outage_that_lasts_is_told_of_each_minute(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    one, other = Patience("upkeep", outage), Patience("fetching", outage)
    for _ in range(31):
        one.failed(AWAY)
        other.failed(AWAY)
        time.now += 5
    assert said(caplog) == [
        (logging.ERROR, "upkeep: the broker does not answer (no connection); trying until it does"),
        (logging.ERROR, "upkeep: the broker has not answered for 60 s (no connection); still trying"),
        (logging.ERROR, "upkeep: the broker has not answered for 120 s (no connection); still trying"),
    ]


def test_other_transactions_that_are_in_the_way_are_no_outage(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    settling, upkeep = Patience("settling", outage), Patience("upkeep", outage)
    busy = BrokerBusy("a lock is held")
    for _ in range(13):
        settling.failed(busy)
        time.now += 5
    settling.succeeded()
    assert said(caplog) == [
        (logging.ERROR, "settling: others hold it up at the broker (a lock is held); trying until it gets through"),
        (logging.ERROR, "settling: others have held it up at the broker for 60 s (a lock is held); still trying"),
        (logging.WARNING, "settling: gets through again, after 13 tries in 65.0 s"),
    ]
    settling.failed(busy)
    upkeep.failed(AWAY)
    settling.failed(busy)
    settling.succeeded()
    upkeep.succeeded()
    assert [line for _, line in said(caplog)] == [
        "settling: others hold it up at the broker (a lock is held); trying until it gets through",
        "upkeep: the broker does not answer (no connection); trying until it does",
        "upkeep: the broker answers again, after 3 tries in 0.0 s",
    ]


def test_one_try_is_one_try(caplog: pytest.LogCaptureFixture) -> None:
    part = Patience("upkeep", Outage())
    part.failed(AWAY)
    part.succeeded()
    assert "after 1 try in 0.0 s" in said(caplog)[-1][1]


def test_a_part_that_has_nothing_to_ask_any_more_does_not_make_an_outage_last(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    settling, upkeep = Patience("settling", outage), Patience("upkeep", outage)
    settling.failed(AWAY)
    upkeep.succeeded()
    assert outage.lasts
    time.now += patience.FORGET_AFTER
    upkeep.succeeded()
    assert not outage.lasts
    assert "answers again, after 1 try" in said(caplog)[-1][1]


def test_the_parts_of_a_session_that_is_gone_do_not_make_an_outage_last(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    Patience("settling", outage).failed(AWAY)
    outage.left_to("opening a session")
    Patience("opening a session", outage).succeeded()
    assert "opening a session: the broker answers again" in said(caplog)[-1][1]
    outage.left_to("opening a session")
    assert not outage.lasts


def test_a_second_outage_is_told_as_the_first(caplog: pytest.LogCaptureFixture) -> None:
    part = Patience("upkeep", Outage())
    for _ in range(2):
        part.failed(AWAY)
        part.succeeded()
        assert [level for level, _ in said(caplog)] == [logging.ERROR, logging.WARNING]
