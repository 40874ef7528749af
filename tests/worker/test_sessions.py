"""Several workers on one broker, and what a worker does that others took for dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.conftest import Eventually
from tests.worker.conftest import EVERYWHERE
from tests.worker.running import left, running

from offload import Offload, Snooze, State, Worker, current
from offload.broker import Session
from offload.job import Done, Pulse, WorkerInfo

pytestmark = pytest.mark.anyio
engines = EVERYWHERE


@pytest.fixture
async def slow(url: str) -> AsyncIterator[Offload]:
    """An app whose workers beat so seldom that an impatient session takes them for dead."""
    app = Offload(url, heartbeat=30, session_timeout=60)
    yield app
    await app.aclose()


@asynccontextmanager
async def impatient_session(app: Offload, *tasks: str) -> AsyncIterator[Session]:
    """A session that takes others for dead after tenths of a second."""
    info = WorkerInfo(name="impatient", host="h", pid=1, tasks=dict.fromkeys(tasks, "async"), session_timeout=0.2, heartbeat=0.05)
    async with (await app.client()).session(info) as session:
        yield session


async def rescue(session: Session, eventually: Eventually) -> list[str]:
    """Wait until the session found others dead, and rescue their jobs."""

    async def found() -> bool:
        return (await session.beat(Pulse())).rescue

    await eventually(found)
    return [touched.id for touched in (await session.maintain()).touched]


async def test_a_worker_that_lost_its_session_stops_its_attempts_and_runs_the_jobs_again(slow: Offload, eventually: Eventually) -> None:
    attempts: list[tuple[int, str]] = []

    @slow.task
    async def work() -> str:
        if not attempts:
            attempts.append((current.attempt, "started"))
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                attempts.append((current.attempt, "stopped"))
                raise
        attempts.append((current.attempt, "again"))
        return "done"

    async with Worker(slow):
        handle = await work.aenqueue()
        await eventually(lambda: attempts)
        before = {session.id for session in await slow.aworkers()}
        async with impatient_session(slow) as impatient:
            assert await rescue(impatient, eventually) == [handle.id]
        assert await handle.aresult(20) == "done"
        record = await handle.arecord()
        assert (record.attempt, record.crashes, record.errors) == (1, 1, ())
        assert attempts == [(1, "started"), (1, "stopped"), (1, "again")]
        assert before.isdisjoint({session.id for session in await slow.aworkers()})


async def test_a_late_outcome_of_a_lost_session_is_refused(slow: Offload, eventually: Eventually, caplog: pytest.LogCaptureFixture) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @slow.task(name="work")
    async def work() -> str:
        started.set()
        await go_on.wait()
        return "late"

    async with running(Worker(slow, concurrency=1, grace=0)):
        handle = await work.aenqueue()
        await started.wait()
        async with impatient_session(slow, "work") as impatient:
            assert await rescue(impatient, eventually) == [handle.id]
            [lease] = await impatient.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})
            go_on.set()
            await eventually(lambda: "its lease was lost, so its outcome (Done) was not recorded" in caplog.text)
            assert (await handle.arecord()).worker == "impatient"
            assert await impatient.settle([(lease, Done(b'"in time"'))]) == []
    assert await handle.aresult(1) == "in time"


async def test_a_step_of_a_lost_session_is_refused(slow: Offload, eventually: Eventually) -> None:
    started, go_on, refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @slow.task(name="work")
    async def work() -> None:
        started.set()
        await go_on.wait()
        try:
            await current.astep("charge", lambda: 1)
        finally:
            refused.set()

    async with running(Worker(slow, concurrency=1, grace=0)):
        handle = await work.aenqueue()
        await started.wait()
        async with impatient_session(slow, "work") as impatient:
            await rescue(impatient, eventually)
            [lease] = await impatient.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})
            go_on.set()
            await refused.wait()
            assert (await handle.arecord()).steps == {}
            assert await impatient.settle([(lease, Done())]) == []


async def test_two_workers_share_the_jobs_and_run_each_once(app: Offload) -> None:
    runs: list[int] = []
    meeting = asyncio.Barrier(2)

    @app.task
    async def meet(number: int) -> str:
        runs.append(number)
        await meeting.wait()
        return "met"

    async with Worker(app, concurrency=1), Worker(app, concurrency=1):
        assert len(await app.aworkers()) == 2
        handles = await app.aenqueue_many([meet.job(number) for number in range(20)])
        assert {await handle.aresult(20) for handle in handles} == {"met"}
    assert sorted(runs) == list(range(20))


def with_broker_of(app: Offload) -> Offload:
    """Another program on the same broker."""
    other = Offload(app.url, heartbeat=0.05, session_timeout=30)
    other.producer.clients = app.producer.clients
    return other


async def test_a_task_one_worker_does_not_know_is_served_by_another(app: Offload, eventually: Eventually) -> None:
    old, new = with_broker_of(app), with_broker_of(app)

    @old.task(name="old")
    async def known() -> str:
        return "old"

    @new.task(name="new")
    async def unknown() -> str:
        return "new"

    async with Worker(old):
        handle = await unknown.aenqueue()
        assert await (await known.aenqueue()).aresult(10) == "old"
        record = await handle.arecord()
        assert (record.state, record.attempt, record.errors) == (State.READY, 0, ())
        assert "new" in await app.awhy(handle.id)
        async with Worker(new):
            assert await handle.aresult(10) == "new"


async def test_a_worker_says_who_it_is(app: Offload) -> None:
    @app.task(name="work")
    def work() -> None: ...

    worker = Worker(app, "vip,default", concurrency=7)
    async with worker:
        [session] = await app.aworkers()
        assert (session.info.name, session.info.queues, session.info.concurrency) == (worker.name, ("vip", "default"), 7)
        assert session.info.tasks == {"work": "thread"}
        handle = await work.aenqueue()
        await handle.aresult(10)
        assert (await handle.arecord()).worker == worker.name


async def test_beats_are_counted_by_others(app: Offload, eventually: Eventually) -> None:
    async with Worker(app):

        async def beats() -> bool:
            return (await app.aworkers())[0].beat > 3

        await eventually(beats)


async def test_what_the_lifespan_raises_ends_the_run(url: str) -> None:
    async def broken(app: Offload) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    app = Offload(url, lifespan=broken)
    with pytest.raises(RuntimeError, match="no database"):
        await Worker(app).run()
    with pytest.raises(RuntimeError, match="no database"):
        async with Worker(app):
            pass
    await app.aclose()


async def test_the_lifespan_is_open_while_jobs_run_and_closed_after(url: str) -> None:
    log: list[str] = []

    async def lifespan(app: Offload) -> AsyncIterator[list[str]]:
        log.append("opened")
        yield log
        log.append("closed")

    app = Offload(url, lifespan=lifespan)

    @app.task
    async def work() -> None:
        current.state.append("ran")

    await work.aenqueue()
    await Worker(app).drain()
    assert log == ["opened", "ran", "closed"]
    await app.aclose()


async def test_an_own_session_promotes_what_comes_due(app: Offload) -> None:
    @app.task
    async def work() -> int:
        if current.job.run_at is None:
            raise Snooze(0.01)
        return current.attempt

    async with Worker(app):
        assert await (await work.using(delay=0.05).aenqueue()).aresult(10) == 1


async def test_stop_before_the_first_job_leaves_at_once(app: Offload) -> None:
    worker = Worker(app, grace=600)
    async with running(worker) as run:
        worker.stop()
        assert await left(run) == "stopped"
