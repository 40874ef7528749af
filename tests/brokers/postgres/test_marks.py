"""Claims start above what they have taken, and still miss nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import psycopg
import pytest
from msgspec.structs import replace
from tests.brokers.postgres.conftest import carried_out

from offload.broker import Session
from offload.brokers.postgres import PostgresBroker
from offload.brokers.postgres.marks import HIGHEST, LOWEST, Marks
from offload.brokers.postgres.rows import placed
from offload.job import Done, Isolation, Lease, Release
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import ids, info, job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio

ROOM: dict[Isolation, int] = {"async": 100, "thread": 100, "process": 100}


async def claim(session: Session, limit: int = 1, queues: Sequence[str] | None = None) -> list[Lease]:
    return await session.fetch(queues, limit, ROOM)


async def test_what_is_committed_late_is_claimed_though_later_places_are_taken(
    broker: PostgresBroker, clock: TestClock, server: PostgresServer
) -> None:
    with psycopg.connect(server.url) as late:
        carried_out(late, broker.enqueue_on([job(clock, "late")]))
        await broker.enqueue([job(clock, id) for id in ("a", "b", "c")])
        async with broker.session(info()) as session:
            assert ids(await claim(session, 2)) == ["a", "b"]
            late.commit()
            found = [*await claim(session, 5), *await claim(session, 5)]
            assert sorted(ids(found)) == ["c", "late"], "a claim that found too little looks below its marks the next time"


async def test_what_another_session_hands_back_is_claimed_first_again(broker: PostgresBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, id) for id in ("a", "b", "c", "d")])
    async with broker.session(info()) as one, broker.session(info("other")) as other:
        (a,) = await claim(other)
        assert ids(await claim(one)) == ["b"]
        await other.settle([(a, Release())])
        assert ids(await claim(one, 2)) == ["a", "c"]


async def test_a_job_passed_over_is_claimed_once_there_is_room(broker: PostgresBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "slow", task="slow"), job(clock, "a"), job(clock, "b")])
    async with broker.session(replace(info(), tasks={"greet": "async", "slow": "thread"})) as session:
        full: dict[Isolation, int] = {"async": 10, "thread": 0, "process": 0}
        assert ids(await session.fetch(None, 2, full)) == ["a"], "of the first two one has no room"
        assert ids(await claim(session, 5)) == ["slow", "b"]


async def test_each_priority_and_queue_has_its_mark(broker: PostgresBroker, clock: TestClock) -> None:
    async with broker.session(info()) as session:
        for turn in range(3):
            jobs = [job(clock, f"{queue}{priority}{turn}", queue=queue, priority=priority) for queue in "xy" for priority in (0, 5, -5)]
            await broker.enqueue(jobs)
            leases = await claim(session, 10, ["x", "y"])
            assert ids(leases) == [f"{queue}{priority}{turn}" for queue in "xy" for priority in (5, 0, -5)]
            await session.settle([(lease, Done()) for lease in leases])


async def test_a_new_queue_is_found_by_a_session_that_has_only_met_one(broker: PostgresBroker, clock: TestClock) -> None:
    async with broker.session(info()) as session:
        await broker.enqueue([job(clock, "a"), job(clock, "b")])
        assert ids(await claim(session)) == ["a"]
        await broker.enqueue([job(clock, "first", queue="aaa"), job(clock, "last", queue="zzz")])
        assert sorted(ids([lease for _ in range(3) for lease in await claim(session)])) == ["b", "first", "last"]


def places(queue: str, rank: int, positions: Iterable[int], turn: int = 0) -> list[tuple[str, int, int]]:
    return [(queue, placed(rank, turn), pos) for pos in positions]


def test_marks_leave_out_what_was_taken() -> None:
    marks = Marks()
    marks.note([*places("q", -5, (3, 7)), *places("q", 0, (2, 9))])
    assert marks.segments("q", marked=True) == [("q", LOWEST, -1, placed(-5)), ("q", placed(-5), 7, 0), ("q", 0, 9, HIGHEST)]
    assert marks.segments("q", marked=False) == [("q", LOWEST, -1, HIGHEST)]
    assert marks.segments("other", marked=True) == [("other", LOWEST, -1, HIGHEST)]


def test_those_of_a_priority_that_take_turns_have_one_mark_whatever_their_rounds() -> None:
    marks = Marks()
    marks.note([*places("q", 0, (7,)), *(place for turn in range(1, 50) for place in places("q", 0, (3, 9), turn))])
    assert marks.segments("q", marked=True) == [("q", LOWEST, -1, 0), ("q", 0, 7, HIGHEST)]
    marks.swept(["q"], 0.0)
    marks.note(places("q", 0, (11,), 60))
    assert marks.segments("q", marked=True)[2:] == [("q", placed(0, 1), -1, HIGHEST)], "newcomers may stand before what was just taken"
    marks.swept(["q"], 0.0)
    expected = [("q", LOWEST, -1, 0), ("q", 0, 7, placed(0, 1)), ("q", placed(0, 49), 9, HIGHEST)]
    assert marks.segments("q", marked=True) == expected, "a job without a key still goes before them"
    marks.note([], places("q", 0, (5,), 20))
    assert marks.segments("q", marked=True)[-1] == ("q", placed(0, 20), 4, HIGHEST)
    marks.note([], places("q", 0, (5,), 30))
    marks.swept(["q"], 0.0)
    assert marks.segments("q", marked=True)[-1] == ("q", placed(0, 20), 4, HIGHEST)


def test_what_was_passed_over_holds_a_mark_back() -> None:
    marks = Marks()
    marks.note(places("q", 0, (5,)), places("q", 0, (4,)))
    assert marks.segments("q", marked=True)[-1][:3] == ("q", 0, 3)


def test_marks_are_void_once_a_place_was_returned() -> None:
    marks = Marks()
    marks.note(places("q", 0, (5,)))
    marks.void(1)
    assert marks.segments("q", marked=True) == marks.segments("q", marked=False)


def test_a_queue_with_many_priorities_has_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Marks()
    marks.note([place for rank in range(50) for place in places("q", rank, (1,))])
    assert marks.segments("q", marked=True) == marks.segments("q", marked=False)


@pytest.mark.parametrize("took", [0.0, 1.0])
def test_looking_below_the_marks_rests_in_proportion_to_what_it_cost(monkeypatch: pytest.MonkeyPatch, took: float) -> None:
    now = 1000.0
    monkeypatch.setattr("offload.brokers.postgres.marks.monotonic", lambda: now)
    marks = Marks()
    marks.note(places("q", 0, (5,)))
    assert marks.due(["q"])
    marks.swept(["q"], took)
    due: Callable[[], bool] = lambda: marks.due(["q"])
    assert not due()
    marks.short(["q"])
    assert due() is (took == 0.0)
    now += 11
    assert due()
