"""What the documentation promises in a sentence, seen through a worker, from the enqueue to the result."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import importlib.resources
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest

from offload import BadPayload, Handle, JobNotFound, Offload, Record, Retry, RetryLater, Snooze, State, Worker, current
from offload.job import Overlap
from offload.testing.clock import START, TestClock

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    names: tuple[str, ...]


class Order(msgspec.Struct, frozen=True):
    number: int
    placed: date


class Customer(pydantic.BaseModel):
    name: str
    born: date


class Colour(enum.Enum):
    RED = "red"


# -- types -----------------------------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "dataclass": Point(1, ("a", "b")),
    "struct": Order(7, date(2030, 2, 28)),
    "pydantic": Customer(name="Ann", born=date(2000, 2, 29)),
    "decimal": Decimal("0.10"),
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
    "enum": Colour.RED,
    "bytes": b"\x00\xff",
    "datetime": datetime(2030, 1, 1, 12, 30, 15, 250_000, tzinfo=UTC),
    "timedelta": timedelta(days=1, seconds=2.5),
    "set": {1, 2, 3},
}


def given_back(kind: Any, seen: list[Any]) -> Callable[[Any], Any]:
    """A task whose argument and result are annotated with `kind`."""

    async def give_back(value: Any) -> Any:
        seen.append(value)
        return value

    give_back.__annotations__ = {"value": kind, "return": kind}
    return give_back


@pytest.mark.parametrize("name", VALUES)
async def test_a_value_arrives_as_its_annotation_says_and_so_does_its_result(timed: Offload, name: str) -> None:
    value, seen = VALUES[name], list[Any]()
    task = timed.task(name="give_back")(given_back(set[int] if name == "set" else type(value), seen))
    handle: Handle[Any] = await task.aenqueue(value)
    assert await Worker(timed).drain() == 1
    result = await handle.aresult()
    assert [(type(each), each) for each in (*seen, result)] == [(type(value), value)] * 2


# -- retries ---------------------------------------------------------------------------------------------------------------------


async def delays(app: Offload, clock: TestClock, handle: Handle[Any]) -> tuple[Record, list[float]]:
    """Run the job and wait out each delay, until it is no longer to be retried. Its record, and its delays in seconds."""
    waited: list[float] = []
    while True:
        assert await Worker(app).drain() == 1
        record = await handle.arecord()
        if record.state is not State.SCHEDULED or record.run_at is None:
            return record, waited
        waited.append((record.run_at - clock.now()).total_seconds())
        clock.advance(record.run_at - clock.now())


async def test_five_seconds_then_twenty_five_then_a_hundred_and_twenty_five(timed: Offload, clock: TestClock) -> None:
    @timed.task(retry=Retry(max_retries=3, initial=5, factor=5, jitter=0))
    async def fails() -> None:
        raise OSError("down")

    record, waited = await delays(timed, clock, await fails.aenqueue())
    assert (record.state, record.attempt, waited) == (State.DEAD, 4, [5, 25, 125])


async def test_by_default_a_job_is_tried_six_times_over_half_an_hour_and_is_then_dead(timed: Offload, clock: TestClock) -> None:
    @timed.task
    async def fails() -> None:
        raise OSError("down")

    record, waited = await delays(timed, clock, await fails.aenqueue())
    assert (record.state, record.attempt, len(record.errors)) == (State.DEAD, 6, 6)
    assert waited == [pytest.approx(60 * 2**n, rel=0.1) for n in range(5)]


async def test_within_bounds_the_whole_age(timed: Offload, clock: TestClock) -> None:
    @timed.task(retry=Retry(within=timedelta(minutes=4), jitter=0))
    async def fails() -> None:
        raise OSError("down")

    record, waited = await delays(timed, clock, await fails.aenqueue())
    assert (record.state, waited) == (State.DEAD, [60, 120])  # the next would start at 60 + 120 + 240 seconds
    assert record.reason == "the next attempt would come later than 240 seconds after the enqueue"


@pytest.mark.parametrize(("directive", "attempts"), [(RetryLater, 2), (Snooze, 1)])
async def test_a_task_may_name_its_delay_as_a_timedelta(
    timed: Offload, clock: TestClock, directive: type[RetryLater | Snooze], attempts: int
) -> None:
    first = [directive(timedelta(minutes=3))]

    @timed.task
    async def waits() -> int:
        if first:
            raise first.pop()
        return current.attempt

    handle = await waits.aenqueue()
    _, waited = await delays(timed, clock, handle)
    assert (waited, await handle.aresult()) == ([180], attempts)


# -- schedules -------------------------------------------------------------------------------------------------------------------


async def ticking(app: Offload, **options: Any) -> list[timedelta]:
    """Have a worker declare a task every ten minutes, and collect the moments of the ticks that are run, from the start."""
    seen: list[timedelta] = []

    @app.cron("*/10 * * * *", **options)
    @app.task
    async def often() -> None:
        assert current.job.run_at is not None
        seen.append(current.job.run_at - START)

    await Worker(app).drain()
    return seen


def minutes(*numbers: int) -> list[timedelta]:
    return [timedelta(minutes=number) for number in numbers]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (30,)), ({"missed": "skip"}, ()), ({"missed": "all", "overlap": "allow"}, (10, 20, 30))],
    ids=["latest", "skip", "all"],
)
async def test_ticks_that_nobody_was_there_for(
    timed: Offload, clock: TestClock, options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    seen = await ticking(timed, **options)
    clock.advance(timedelta(minutes=35))
    await Worker(timed).drain()
    assert sorted(seen) == minutes(*expected)
    clock.advance(timedelta(minutes=5))
    await Worker(timed).drain()
    assert sorted(seen) == minutes(*expected, 40)


@pytest.mark.parametrize(
    ("overlap", "expected", "cancelled"), [("skip", (10,), ()), ("allow", (10, 20, 30), ()), ("replace", (30,), (10, 20))]
)
async def test_ticks_while_an_earlier_one_has_not_ended(
    timed: Offload, clock: TestClock, overlap: Overlap, expected: tuple[int, ...], cancelled: tuple[int, ...]
) -> None:
    seen = await ticking(timed, overlap=overlap)
    await timed.apause("default")
    for _ in range(3):
        clock.advance(timedelta(minutes=10))
        await Worker(timed).drain()
    await timed.aresume("default")
    await Worker(timed).drain()
    assert seen == minutes(*expected)
    gone = await timed.afind(state=State.CANCELLED)
    assert sorted(record.run_at - START for record in gone if record.run_at) == minutes(*cancelled)


async def test_a_tick_that_replaces_stops_the_running_one_and_takes_over(app: Offload) -> None:
    started = asyncio.Event()

    @app.cron("0 0 1 1 *", name="yearly", overlap="replace")
    @app.task
    async def yearly() -> str:
        if started.is_set():
            return "new"
        started.set()
        await asyncio.Event().wait()  # until it is stopped
        return "old"

    async with Worker(app):
        old = await app.arun_schedule_now("yearly")
        await started.wait()
        new = await app.arun_schedule_now("yearly")
        assert old is not None
        assert new is not None
        assert await new.aresult(20) == "new"
    assert (await old.arecord()).state is State.CANCELLED


# -- records ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fails", "state", "kept"), [(False, State.SUCCEEDED, DAY), (True, State.DEAD, 30 * DAY)])
async def test_the_record_of_a_success_is_kept_for_a_day_and_of_a_dead_job_for_thirty(
    timed: Offload, clock: TestClock, fails: bool, state: State, kept: timedelta
) -> None:
    @timed.task(retry=False)
    async def work() -> int:
        return 1 // (not fails)

    handle = await work.aenqueue()
    await Worker(timed).drain()
    clock.advance(kept - timedelta(seconds=1))
    await Worker(timed).drain()
    assert (await handle.arecord()).state is state
    clock.advance(2)
    await Worker(timed).drain()
    with pytest.raises(JobNotFound, match="its record is forgotten"):
        await handle.arecord()
    assert await timed.acounts() == {}


async def test_a_waiting_caller_is_told_that_nothing_is_kept(timed: Offload, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    @timed.task(keep=0)
    async def work() -> int:
        await asked.wait()  # it ends while somebody waits for it
        return 1

    store = type(await timed.producer.clients.store())
    finished = store.finished

    async def told(self: Any, ids: Any, timeout: float) -> dict[str, Record]:
        asked.set()
        return await finished(self, ids, timeout)

    monkeypatch.setattr(store, "finished", told)
    handle = await work.aenqueue()
    waiting = asyncio.create_task(handle.aresult(20))
    assert await Worker(timed).drain() == 1
    with pytest.raises(JobNotFound, match="with keep=0 none is kept"):
        await waiting


async def test_a_job_of_an_older_signature_is_dead_until_its_arguments_are_edited(timed: Offload) -> None:
    handle = await timed.aenqueue("resize", path="a.png", size=10)  # as an older producer calls it

    @timed.task(name="resize")
    async def resize(path: str, width: int) -> str:
        return f"{path} {width}"

    assert await Worker(timed).drain() == 1
    dead = await handle.arecord()
    assert (dead.state, dead.reason) == (State.DEAD, "payload")
    assert "there is no parameter 'size', and 'width' is missing" in dead.errors[0].message
    with pytest.raises(BadPayload, match="'width' is missing"):
        await timed.aretry(handle.id, payload={"path": "a.png"})
    assert (await handle.arecord()).state is State.DEAD
    assert await timed.aretry(handle.id, payload={"path": "a.png", "width": 10}) == {handle.id}
    assert await Worker(timed).drain() == 1
    assert await handle.aresult() == "a.png 10"


# -- the package -----------------------------------------------------------------------------------------------------------------

LOOK = """
import json, sys, threading
opened = []

def hook(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so", ".pyd")) or event in ("socket.connect", "sqlite3.connect"):
        opened.append(f"{event} {args[0]}")

sys.addaudithook(hook)
import offload
imported = list(opened)
app = offload.Offload("sqlite:///shop.db")

@app.task
def work(): ...

print(json.dumps([imported, [each for each in opened if "shop.db" in each], threading.active_count()]))
"""


@pytest.mark.process
def test_importing_opens_no_file_and_neither_that_nor_declaring_starts_a_thread(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-B", "-c", LOOK], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [[], [], 1]
    assert list(tmp_path.iterdir()) == []


def test_the_package_says_that_it_is_typed() -> None:
    assert (importlib.resources.files("offload") / "py.typed").is_file()
