"""The parts of a worker try until the broker answers again, and lose nothing meanwhile."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic

import pytest
from tests.conftest import Eventually
from tests.worker.running import ended, left, running

from offload import BrokerError, Event, Offload, State, Worker, current
from offload.broker import Session
from offload.brokers.memory import MemoryBroker
from offload.clock import SystemClock
from offload.current import attempt_var
from offload.job import Beat, Done, Due, Isolation, Job, Lease, Outcome, Pulse, Upkeep, WorkerInfo
from offload.worker import patience

pytestmark = pytest.mark.anyio


class ShakySession(Session):
    """A session whose verbs fail as often as asked for, before they did what they should (`failing`) or after that (`silent`)."""

    def __init__(self, session: Session, failing: Counter[str], silent: Counter[str], calls: list[tuple[str, int]]) -> None:
        self.id = session.id
        self._session = session
        self._failing = failing
        self._silent = silent
        self._calls = calls

    def _shake(self, verb: str, size: int = 0) -> None:
        self._calls.append((verb, size))
        if self._failing[verb] > 0:
            self._failing[verb] -= 1
            raise BrokerError(f"{verb} failed")

    def _lose_answer(self, verb: str) -> None:
        if self._silent[verb] > 0:
            self._silent[verb] -= 1
            raise BrokerError(f"the answer to {verb} was lost")

    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        self._shake("fetch", limit)
        leases = await self._session.fetch(queues, limit, room)
        if leases:
            self._lose_answer("fetch")
        return leases

    async def retain(self, held: Sequence[Lease]) -> int:
        self._shake("retain", len(held))
        return await self._session.retain(held)

    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        self._shake("settle", len(settlements))
        lost = await self._session.settle(settlements)
        self._lose_answer("settle")
        return lost

    async def beat(self, pulse: Pulse) -> Beat:
        self._shake("beat")
        return await self._session.beat(pulse)

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        self._shake("remember")
        return await self._session.remember(lease, step, value)

    async def wait(self, timeout: float) -> None:
        await self._session.wait(timeout)

    async def maintain(self) -> Upkeep:
        self._shake("maintain")
        return await self._session.maintain()

    async def due(self) -> list[Due]:
        return await self._session.due()

    async def tick(self, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> bool:
        return await self._session.tick(due, next_at, jobs)


class ShakyBroker(MemoryBroker):
    """A store in memory whose sessions are shaky.

    `failing` says how many calls of which verb fail next; `silent`, how many are carried out but lose their answer.
    """

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.failing: Counter[str] = Counter()
        self.silent: Counter[str] = Counter()
        self.calls: list[tuple[str, int]] = []

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncIterator[Session]:
        self.calls.append(("session", 0))
        if self.failing["session"] > 0:
            self.failing["session"] -= 1
            raise BrokerError("session failed")
        try:
            async with super().session(worker) as session:
                self.steady = session
                yield ShakySession(session, self.failing, self.silent, self.calls)
        finally:
            if self.failing["leave"] > 0:
                self.failing["leave"] -= 1
                raise BrokerError("leave failed")


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> ShakyBroker:
    """A shaky broker, which is asked again soon."""
    monkeypatch.setattr(patience, "FIRST", 0.01)
    return ShakyBroker()


@pytest.fixture
def shaky(broker: ShakyBroker) -> Offload:
    """An app on it."""
    app = Offload("memory://", heartbeat=0.05, session_timeout=30)
    app.producer.clients.broker = broker
    return app


async def test_outcomes_are_settled_once_the_broker_answers_again(
    shaky: Offload, broker: ShakyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    @shaky.task
    async def work(number: int) -> int:
        runs.append(number)
        return number

    broker.failing["settle"] = 3
    async with Worker(shaky):
        handles = [await work.aenqueue(number) for number in range(5)]
        assert [await handle.aresult(10) for handle in handles] == list(range(5))
    assert sorted(runs) == list(range(5))
    lines = [(record.levelno, record.message) for record in caplog.records if record.message.startswith("settling:")]
    assert lines[0] == (logging.ERROR, "settling: the broker does not answer (settle failed); trying until it does")
    assert lines[1][1].startswith("settling: the broker answers again, after 3 tries in 0.")
    assert [level for level, _ in lines] == [logging.ERROR, logging.WARNING]


@pytest.mark.parametrize("isolation", ["async", "thread"])
async def test_a_step_is_remembered_once_the_broker_answers_again_and_not_done_twice(
    shaky: Offload, broker: ShakyBroker, isolation: str, caplog: pytest.LogCaptureFixture
) -> None:
    charged: list[int] = []

    def charge() -> str:
        charged.append(1)
        return "receipt"

    async def acharge() -> str:
        return charge()

    async def apay() -> str:
        return await current.astep("charge", acharge)

    def pay() -> str:
        return current.step("charge", charge)

    task = shaky.task(name="pay")(pay if isolation == "thread" else apay)
    broker.failing["remember"] = 3
    async with Worker(shaky):
        handle = await task.aenqueue()
        assert await handle.aresult(10) == "receipt"
    assert (len(charged), (await handle.arecord()).attempt) == (1, 1)
    assert "remembering a step: the broker answers again, after 3 tries" in caplog.text


async def test_a_large_harvest_is_settled_in_atomic_thousands(shaky: Offload, broker: ShakyBroker, eventually: Eventually) -> None:
    go_on = asyncio.Event()

    @shaky.task
    async def work() -> None:
        await go_on.wait()

    async def all_are(state: State) -> bool:
        return (await shaky.acounts())["default"] == {state: 2_500}

    await shaky.aenqueue_many([work.job() for _ in range(2_500)])
    async with Worker(shaky, concurrency=2_500):
        await eventually(lambda: all_are(State.RUNNING))
        go_on.set()
        await eventually(lambda: all_are(State.SUCCEEDED))
    sizes = [size for verb, size in broker.calls if verb == "settle"]
    assert sum(sizes) == 2_500
    assert max(sizes) <= 1_000


@pytest.mark.parametrize("verb", ["fetch", "beat", "maintain", "session"])
async def test_every_part_tries_until_the_broker_answers(
    shaky: Offload, broker: ShakyBroker, verb: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    @shaky.task
    async def work() -> str:
        return "done"

    broker.failing[verb] = 3
    async with running(Worker(shaky)):
        handle = await work.using(delay=0.05).aenqueue()
        assert await handle.aresult(10) == "done"
        await eventually(lambda: broker.failing[verb] == 0)
        await eventually(lambda: "the broker answers again, after 3 tries" in caplog.text)
    assert [record.levelno for record in caplog.records if "the broker does not answer" in record.message] == [logging.ERROR]


async def test_an_outage_that_all_parts_meet_is_told_in_two_lines(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    @shaky.task
    async def work() -> None:
        await go_on.wait()

    def of_the_outage() -> list[str]:
        return [record.message.partition(": ")[2][:17] for record in caplog.records if ": the broker " in record.message]

    async with running(Worker(shaky)):
        await work.aenqueue()
        await eventually(lambda: states(shaky, {State.RUNNING: 1}))
        verbs = ("settle", "maintain", "beat", "fetch")
        broker.failing.update(dict.fromkeys(verbs, 1000))
        go_on.set()
        await work.aenqueue()
        await eventually(lambda: all(0 < broker.failing[verb] < 1000 for verb in verbs))
        broker.failing.clear()
        await eventually(lambda: succeeded(shaky, 2))
        await eventually(lambda: len(of_the_outage()) % 2 == 0)
    assert of_the_outage() == ["the broker does n", "the broker answer"]


async def test_a_worker_tells_what_it_serves_once_it_has_a_session(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "offload.worker")
    broker.failing["session"] = 3
    async with running(Worker(shaky, "vip:3,default:1")):
        await eventually(lambda: "it knows no task" in caplog.text)
        bury(broker)
        await eventually(lambda: len([call for call in broker.calls if call[0] == "session"]) == 5)
    assert [record.message.split(": ")[-1] for record in caplog.records if " serves " in record.message] == ["nothing will run"]
    lines = [record.message for record in caplog.records]
    greeting = next(number for number, line in enumerate(lines) if " serves queues vip:3,default:1 of " in line)
    assert "does not answer" in lines[0]
    assert any("answers again" in line for line in lines[:greeting])


async def test_a_worker_that_never_had_a_session_leaves_nothing_to_be_rescued(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    broker.failing["session"] = 1_000_000
    async with running(Worker(shaky)):
        await eventually(lambda: "does not answer" in caplog.text)
    assert "leaves while the broker is away (session failed); it had no session, and so no job" in caplog.text


async def test_a_step_that_waits_for_the_broker_ends_with_its_session(shaky: Offload, broker: ShakyBroker, eventually: Eventually) -> None:
    calls: list[int] = []

    @shaky.task
    async def work() -> int:
        async def charge() -> int:
            calls.append(1)
            return 7

        return await current.astep("charge", charge)

    broker.failing["remember"] = 1_000
    async with running(Worker(shaky)):
        handle = await work.aenqueue()
        await eventually(lambda: broker.failing["remember"] < 1_000)
        bury(broker)
        await eventually(lambda: len(calls) == 2)
        broker.failing.clear()
        assert await handle.aresult(10) == 7
    assert (await handle.arecord()).crashes == 1


async def test_jobs_whose_claim_lost_its_answer_run_once(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()
    runs: Counter[int] = Counter()

    @shaky.task
    async def work(number: int) -> None:
        runs[number] += 1
        await go_on.wait()

    async with Worker(shaky):
        await shaky.aenqueue_many([work.job(number) for number in range(20)])
        await eventually(lambda: runs.total() == 20)
        broker.silent["fetch"] = 2
        await shaky.aenqueue_many([work.job(number) for number in range(20, 30)])
        await eventually(lambda: runs.total() == 30)
        go_on.set()
        await eventually(lambda: succeeded(shaky, 30))
    assert runs == Counter(range(30)), "what runs is not taken from the worker while it hands back what it does not know of"
    assert [record.crashes for record in await shaky.afind(limit=30)] == [0] * 30
    assert broker.silent["fetch"] == 0
    assert "were claimed by calls whose answer never came" in caplog.text


async def test_orphans_are_handed_back_once_the_broker_answers_again(shaky: Offload, broker: ShakyBroker, eventually: Eventually) -> None:
    go_on = asyncio.Event()
    runs: list[int] = []

    @shaky.task
    async def work() -> None:
        runs.append(len(runs))
        await go_on.wait()

    broker.silent["fetch"] = 1
    broker.failing["retain"] = 2
    async with Worker(shaky, concurrency=3):
        await shaky.aenqueue_many([work.job() for _ in range(5)])
        await eventually(lambda: len(runs) == 3)
        assert await states(shaky, {State.RUNNING: 3, State.READY: 2})
        go_on.set()
        await eventually(lambda: states(shaky, {State.SUCCEEDED: 5}))
    assert [verb for verb, _ in broker.calls].count("retain") == 3


async def test_outcomes_whose_settling_lost_its_answer_are_no_lost_leases(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    told: Counter[str] = Counter()

    @shaky.on("succeeded")
    async def note(event: Event) -> None:
        told[event.id] += 1

    @shaky.task
    async def work(number: int) -> None: ...

    broker.silent["settle"] = 3
    async with Worker(shaky):
        handles = await shaky.aenqueue_many([work.job(number) for number in range(10)])
        await eventually(lambda: told.total() == 10)
    assert told == Counter(handle.id for handle in handles)
    assert broker.silent["settle"] == 0
    assert "its lease was lost" not in caplog.text


async def test_a_refused_outcome_whose_transaction_is_in_doubt_is_not_told_though_settling_was_repeated(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    @shaky.on("retrying")
    async def note(event: Event) -> None:
        told.append(event.id)

    @shaky.task
    async def work() -> None:
        attempt = attempt_var.get()
        attempt.committing()
        broker.failing["settle"] = 1
        await broker.steady.settle([(attempt.lease, Done())])  # what the transaction did whose answer never came
        raise OSError("the connection broke")

    async with Worker(shaky):
        record = await ended(await work.aenqueue())
        await eventually(lambda: "contact was lost while its transaction was being committed" in caplog.text)
    assert (record.state, told) == (State.SUCCEEDED, [])


async def test_outcomes_of_a_session_that_died_meanwhile_are_lost(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    @shaky.task
    async def work() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            broker.failing["settle"] = broker.failing["beat"] = 1_000_000

    async with Worker(shaky):
        handle = await work.aenqueue()
        await eventually(lambda: ("settle", 1) in broker.calls)
        bury(broker)
        broker.failing.clear()
        await eventually(lambda: "its lease was lost" in caplog.text)
        record = await ended(handle)
    assert (record.state, record.crashes, runs) == (State.SUCCEEDED, 1, [0, 1])


async def test_a_worker_whose_lost_session_cannot_be_closed_opens_a_new_one(
    shaky: Offload, broker: ShakyBroker, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    @shaky.task
    async def work() -> str:
        return "done"

    async with Worker(shaky):
        await eventually(lambda: ("beat", 0) in broker.calls)
        broker.failing["leave"] = 1
        bury(broker)
        await eventually(lambda: "could not close its session (leave failed)" in caplog.text)
        assert await (await work.aenqueue()).aresult(10) == "done"


def bury(broker: ShakyBroker) -> None:
    """Have the store find all its sessions dead."""
    with broker.lock:
        broker.maintain([(session.id, session.beats) for session in broker.live.values()])


async def succeeded(app: Offload, number: int) -> bool:
    """Whether so many jobs have succeeded, and none is in another state."""
    return await states(app, {State.SUCCEEDED: number})


async def states(app: Offload, expected: Mapping[State, int]) -> bool:
    """Whether the jobs of the default queue are in these states."""
    return (await app.acounts())["default"] == expected


async def test_a_leaving_worker_settles_before_it_goes(shaky: Offload, broker: ShakyBroker) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @shaky.task
    async def work() -> str:
        started.set()
        await go_on.wait()
        return "done"

    worker = Worker(shaky)
    async with running(worker) as run:
        handle = await work.aenqueue()
        await started.wait()
        broker.failing["settle"] = 4
        go_on.set()
        worker.stop()
        assert await left(run) == "stopped"
    assert await handle.aresult(0) == "done"


async def test_waits_grow_and_are_bounded() -> None:
    tries = patience.Patience("testing", patience.Outage())
    waits = [tries.failed(OSError("away")) for _ in range(20)]
    assert all(patience.FIRST * 2**n * 0.5 <= wait <= patience.FIRST * 2**n for n, wait in enumerate(waits[:4]))
    assert all(patience.LONGEST * 0.5 <= wait <= patience.LONGEST for wait in waits[10:])
    tries.succeeded()
    assert tries.failed(OSError("away")) <= patience.FIRST


async def test_how_long_a_job_took_does_not_count_the_wait_for_the_broker(
    shaky: Offload, broker: ShakyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "offload.worker")
    told: list[Event] = []
    shaky.on("succeeded")(told.append)

    @shaky.task
    async def work() -> None: ...

    broker.failing["settle"] = 7
    async with Worker(shaky):
        handle = await work.aenqueue()
        began = monotonic()
        await handle.aresult(10)
    waited = monotonic() - began
    assert told[0].seconds is not None
    assert told[0].seconds < waited / 3
    [logged] = [float(found) for found in re.findall(r" succeeded in (\d+) ms", caplog.text)]
    assert logged / 1000 < waited / 3
