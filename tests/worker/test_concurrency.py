"""How many jobs run at once, from which queues, and that none waits behind another while a slot is free somewhere."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker import program as tasks
from tests.worker.program import Marks

from offload import BadDeclaration, Offload, State, Worker, current

pytestmark = pytest.mark.anyio


class Gauge:
    """How many are inside, and the most that ever were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self.now -= 1


async def test_concurrency_bounds_all_that_runs_at_once(app: Offload, eventually: Eventually) -> None:
    together, threads = Gauge(), Gauge()
    go_on = threading.Event()

    @app.task
    async def coroutine() -> None:
        with together:
            while not go_on.is_set():  # noqa: ASYNC110 - one event for coroutines and threads
                await asyncio.sleep(0.001)

    @app.task
    def thread() -> None:
        with together, threads:
            go_on.wait(20)

    async with Worker(app, concurrency=6, threads=3):
        await app.aenqueue_many([task.job() for _ in range(20) for task in (coroutine, thread)])
        await eventually(lambda: together.now == 6)
        go_on.set()
        await eventually(lambda: all_ended(app, 40))
    assert together.peak == 6
    assert threads.peak <= 3


async def all_ended(app: Offload, number: int) -> bool:
    counts = await app.acounts()
    return sum(states.get(State.SUCCEEDED, 0) for states in counts.values()) == number


async def test_a_full_lane_holds_up_no_other(app: Offload, eventually: Eventually) -> None:
    go_on = threading.Event()

    @app.task
    def blocks() -> None:
        go_on.wait(20)

    @app.task
    async def quick() -> str:
        return "done"

    async with Worker(app, threads=2):
        await app.aenqueue_many([blocks.job() for _ in range(50)])
        handle = await quick.aenqueue()
        try:
            assert await handle.aresult(10) == "done"
            assert (await app.acounts())["default"][State.RUNNING] == 2
        finally:
            go_on.set()
        await eventually(lambda: all_ended(app, 51))


@pytest.mark.process
async def test_process_slots_bound_the_child_processes(program: Offload, marks: Marks, eventually: Eventually) -> None:
    async with Worker(program, processes=2):
        handles = [await tasks.hang_process.aenqueue(marks.folder) for _ in range(4)]
        await eventually(lambda: len(marks()) == 2)
        look = await tasks.look_async.aenqueue()
        await look.aresult(10)
        assert len(marks()) == 2
        for handle in handles:
            await handle.acancel()


@pytest.mark.parametrize("number", ["concurrency", "threads", "processes"])
def test_a_worker_needs_at_least_one_slot_of_each_kind(number: str) -> None:
    with pytest.raises(BadDeclaration, match=f"a worker's {number} must be at least 1, not 0"):
        Worker(Offload("memory://"), **{number: 0})  # pyright: ignore[reportArgumentType] - one name at a time


# -- queues --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(app: Offload) -> list[str]:
    """The queues of the jobs that ran, in order."""
    served: list[str] = []

    @app.task(name="serve")
    async def serve() -> None:
        served.append(current.job.queue)

    return served


async def enqueue_to(app: Offload, *queues: str) -> None:
    await app.aenqueue_many([app.using(queue=queue).job("serve") for queue in queues])


async def test_listed_queues_are_served_in_strict_order_and_no_others(app: Offload, served: list[str]) -> None:
    await enqueue_to(app, *["default", "vip", "other"] * 10)
    assert await Worker(app, "vip,default").drain() == 20
    assert served == ["vip"] * 10 + ["default"] * 10


async def test_weighed_queues_are_all_served(app: Offload, served: list[str]) -> None:
    await enqueue_to(app, *["default", "vip", "other"] * 10)
    assert await Worker(app, "vip:3,default:1", concurrency=1).drain() == 20
    assert sorted(set(served)) == ["default", "vip"]


async def test_without_queues_all_are_served_in_turn(app: Offload, served: list[str]) -> None:
    await enqueue_to(app, *["a"] * 30, *["b"] * 30, *["c"] * 30)
    assert await Worker(app, concurrency=1).drain() == 90
    assert len(set(served[:32])) > 1


# -- no hoarding ---------------------------------------------------------------------------------------------------------------


def twin(app: Offload) -> Offload:
    """The same program in another process, as far as the broker can tell."""
    other = Offload(app.url, heartbeat=app.heartbeat, session_timeout=app.session_timeout)
    other.producer.clients = app.producer.clients
    other.tasks.update(app.tasks)
    return other


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_long_jobs_start_at_once_wherever_a_slot_is_free(app: Offload, kind: str, eventually: Eventually) -> None:
    running = Gauge()
    go_on = threading.Event()

    async def long_async() -> None:
        with running:
            while not go_on.is_set():  # noqa: ASYNC110 - one event for coroutines and threads
                await asyncio.sleep(0.001)

    def long() -> None:
        with running:
            go_on.wait(20)

    task: Any = app.task(long_async if kind == "async" else long)
    async with Worker(app, concurrency=5), Worker(twin(app), concurrency=5):
        await app.aenqueue_many([task.job() for _ in range(10)])
        try:
            await eventually(lambda: running.now == 10)
        finally:
            go_on.set()


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_worker_used_to_short_jobs_hands_back_what_long_ones_keep_from_starting(
    app: Offload, kind: str, eventually: Eventually
) -> None:
    running = Gauge()
    go_on = threading.Event()

    async def work_async(long: bool) -> None:
        with running:
            while long and not go_on.is_set():  # noqa: ASYNC110 - one event for coroutines and threads
                await asyncio.sleep(0.001)

    def work(long: bool) -> None:
        with running:
            if long:
                go_on.wait(20)

    task: Any = app.task(name="work")(work_async if kind == "async" else work)
    async with Worker(app, concurrency=5):
        await app.aenqueue_many([task.job(False) for _ in range(3_000)] + [task.job(True) for _ in range(10)])
        await eventually(lambda: running.now == 5)
        async with Worker(twin(app), concurrency=5):
            try:
                await eventually(lambda: running.now == 10)
            finally:
                go_on.set()
            await eventually(lambda: all_ended(app, 3_010))
    assert {record.attempt for record in await app.afind(text="true", limit=20)} == {1}


async def test_a_task_that_the_worker_does_not_know_is_told_of_once(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    @app.task
    async def known() -> None:
        await app.using(queue="new").aenqueue("brand.new")

    await app.using(queue="new").aenqueue("brand.new")
    await known.aenqueue()
    assert await Worker(app).drain() == 1
    (said,) = [record.getMessage() for record in caplog.records if "does not know it" in record.getMessage()]
    assert said.startswith("jobs of the task 'brand.new' in queue 'new' wait for another worker")
