"""What the contract's tests stand on: fixtures, markers, and short ways to make jobs and workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest

from offload.broker import Broker, Feature, Session, Store, check
from offload.errors import Unsupported
from offload.job import Draft, Failure, Isolation, Job, Lease, Outcome, Overlap, Pulse, Schedule, State, Touched, WorkerInfo
from offload.records import Record
from offload.testing.clock import TestClock

Test = TypeVar("Test", bound=Callable[..., object])

ROOM: dict[Isolation, int] = {"async": 10_000, "thread": 10_000, "process": 10_000}
PATIENCE = 20.0
"""Seconds of real time after which a wait that should have been woken counts as failed."""

_numbers = itertools.count(1)


def needs(*features: Feature) -> Callable[[Test], Test]:
    """Run the test only on brokers that declare `features`; on others it proves that they are refused, and is skipped."""

    def mark(test: Test) -> Test:
        vars(test)["needs"] = features
        return test

    return mark


class Fixtures:
    """The fixtures of every part of the contract. Async tests and fixtures are run by the pytest plugin of `anyio`."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def clock(self) -> TestClock:
        return TestClock()

    @pytest.fixture
    def broker(self, clock: TestClock) -> Broker:
        raise NotImplementedError(
            f"{type(self).__name__} needs an async fixture `broker` that yields an opened, empty broker using {clock}"
        )

    @pytest.fixture
    def store(self, broker: Broker) -> Store:
        if not isinstance(broker, Store):
            pytest.skip(f"{type(broker).__name__} is not a store")
        return broker

    @pytest.fixture(autouse=True)
    def refusal(self, request: pytest.FixtureRequest, broker: Broker) -> None:
        features: tuple[Feature, ...] = getattr(request.function, "needs", ())
        missing = [feature for feature in features if feature not in broker.features]
        for feature in missing:
            with pytest.raises(Unsupported, match=type(broker).__name__):
                check(type(broker), [feature], request.node.name)
        if missing:
            pytest.skip(f"{type(broker).__name__} refuses: {', '.join(missing)}")


def job(clock: TestClock, id: str | None = None, *, delay: float | None = None, expires_in: float | None = None, **fields: Any) -> Job:
    """A job enqueued now, of the task `greet` unless said otherwise; `delay` and `expires_in` are seconds from now."""
    now = clock.now()
    if delay is not None:
        fields["run_at"] = now + timedelta(seconds=delay)
    if expires_in is not None:
        fields["expires_at"] = now + timedelta(seconds=expires_in)
    fields.setdefault("task", "greet")
    return Job(id=id or f"job-{next(_numbers)}", enqueued_at=now, **fields)


def info(
    name: str = "worker", *tasks: str, isolation: Isolation = "async", schedules: Iterable[tuple[Schedule, datetime | None]] = ()
) -> WorkerInfo:
    """A worker that knows `tasks` (`greet` unless said otherwise), all of one isolation."""
    return WorkerInfo(name=name, host="here", pid=7, tasks=dict.fromkeys(tasks or ("greet",), isolation), schedules=tuple(schedules))


def failure(clock: TestClock, message: str = "it broke", attempt: int = 1) -> Failure:
    """What an attempt that failed now leaves behind."""
    return Failure(attempt=attempt, at=clock.now(), type="ValueError", message=message, traceback=f"Traceback: {message}")


def rule(name: str = "report", *, overlap: Overlap = "skip", every: float = 60, task: str = "greet") -> Schedule:
    """A schedule of a tick every `every` seconds."""
    return Schedule(name=name, draft=Draft[None](task=task), every=every, overlap=overlap)


def tick_job(clock: TestClock, schedule: Schedule, id: str | None = None, **fields: Any) -> Job:
    """The job of a tick of `schedule` that is due now."""
    return job(clock, id, delay=0, task=schedule.draft.task, schedule=schedule.name, overlap=schedule.overlap, **fields)


async def claim(
    session: Session, limit: int = 1_000, queues: Sequence[str] | None = None, room: Mapping[Isolation, int] = ROOM
) -> list[Lease]:
    """Fetch with room for everything."""
    return await session.fetch(queues, limit, room)


async def claim_one(session: Session) -> Lease:
    """Fetch the one job that is ready."""
    (lease,) = await claim(session)
    return lease


async def settle(session: Session, lease: Lease, outcome: Outcome) -> None:
    """Settle one lease that is still held."""
    assert await session.settle([(lease, outcome)]) == []


def ids(found: Iterable[Job | Lease | Touched]) -> list[str]:
    """The job ids of jobs, records, leases or touched jobs, in their order."""
    return [each.job.id if isinstance(each, Lease) else each.id for each in found]


async def record(store: Store, id: str) -> Record:
    """The record of a job that exists."""
    return (await store.get([id]))[id]


async def state(store: Store, id: str) -> State | None:
    """The state of a job; None when the store does not know it."""
    found = (await store.get([id])).get(id)
    return found.state if found else None


async def live(clock: TestClock, seconds: float, *sessions: Session, heartbeat: float = 3.0) -> bool:
    """Let time pass while `sessions`, and no others, beat. True when one of them found a dead session."""
    rescue = await _beat(sessions)
    passed = 0.0
    while passed < seconds:
        step = min(heartbeat, seconds - passed)
        clock.advance(step)
        passed += step
        rescue |= await _beat(sessions)
    return rescue


async def _beat(sessions: Iterable[Session]) -> bool:
    beats = [await session.beat(Pulse()) for session in sessions]
    assert all(beat.alive for beat in beats)
    return any(beat.rescue for beat in beats)
