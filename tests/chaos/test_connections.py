"""Connections cut by a proxy in mid-call: before the call has reached the server, or before its answer comes; a repeat does no harm."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from typing import LiteralString, NamedTuple, cast

import psycopg
import pytest
from msgspec.structs import replace
from tests.chaos.accounts import accepted, each_ran_once, sayings
from tests.chaos.conftest import Stage
from tests.chaos.places import SERVERS, SOAK, Place

from offload import BrokerError, State
from offload.broker import Session, Store, broker_class
from offload.clock import SystemClock
from offload.ids import new_ids
from offload.job import Done, Draft, Isolation, Job, Pulse, Schedule, WorkerInfo
from offload.testing.servers import PostgresServer, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.process, pytest.mark.timeout(300)]

ROOM: dict[Isolation, int] = {"async": 100, "thread": 100, "process": 100}
EVERY_MINUTE = Schedule(name="report", draft=Draft[None](task="greet"), overlap="allow", every=60)
NEVER = 1 << 60


class Cut(NamedTuple):
    """After how many bytes connections are cut, and whether of the answers or of what is asked."""

    after: int
    answers: bool


CUTS = [Cut(after, answers) for answers in (False, True) for after in (0, 3, 10, 25, 50, 75, 100, 150, 250, 400, 700, 1_200, 2_500)]
"""Points within calls of all kinds, such as between the statements of a transaction, and before the end of an answer."""


class Lines(NamedTuple):
    """A store reached straight, the same through a proxy, and a session on the latter."""

    direct: Store
    proxied: Store
    session: Session
    proxy: Proxy

    def jobs(self, number: int) -> list[Job]:
        """New jobs."""
        now = SystemClock().now()
        return [Job(id=id, task="greet", enqueued_at=now) for id in new_ids(number, now)]

    async def enqueue(self, number: int) -> list[Job]:
        """Store new jobs, on the direct line."""
        jobs = self.jobs(number)
        await self.direct.enqueue(jobs)
        return jobs

    @contextmanager
    def cutting(self, cut: Cut) -> Iterator[None]:
        """Cut the connections where a call of the block comes to that point; forget it where none does."""
        self.proxy.cut_after(cut.after, answers=cut.answers)
        yield
        self.proxy.cut_after(NEVER, answers=cut.answers)

    async def states(self) -> dict[State, int]:
        """How many jobs are in which state."""
        return (await self.direct.counts()).get("default", {})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


on_servers = pytest.mark.parametrize("place", SERVERS, indirect=True)


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    """A proxy before the server."""
    assert place.server is not None
    with Proxy(place.server.port) as proxy:
        yield proxy


@pytest.fixture
async def lines(place: Place, proxy: Proxy) -> AsyncIterator[Lines]:
    """The two ways to an empty store."""
    info = WorkerInfo(name="worker", host="here", pid=1, tasks={"greet": "async"})
    async with AsyncExitStack() as stack:
        stores: list[Store] = []
        for url in (place.url, proxy.through(place.url)):
            store = broker_class(url).connect(url, SystemClock())
            assert isinstance(store, Store)
            await store.open()
            stack.push_async_callback(store.close)
            stores.append(store)
        session = await stack.enter_async_context(stores[1].session(info))
        await session.beat(Pulse())
        assert await session.fetch(None, 100, ROOM) == []
        yield Lines(stores[0], stores[1], session, proxy)


@on_servers
async def test_a_claim_that_is_cut_off_is_handed_back_if_it_was_carried_out(lines: Lines) -> None:
    handed_back: set[int] = set()
    for cut in CUTS:
        await lines.enqueue(3)
        known = await lines.session.fetch(None, 1, ROOM)
        with lines.cutting(cut):
            try:
                known += await lines.session.fetch(None, 2, ROOM)
            except BrokerError:
                orphans = await lines.session.retain(known)
                assert orphans in (0, 2), "a claim is carried out whole, or not at all"
                handed_back.add(orphans)
                states = await lines.states()
                assert (states[State.RUNNING], states[State.READY]) == (1, 2)
                known += await lines.session.fetch(None, 2, ROOM)
        assert [(lease.attempt, lease.crashes) for lease in known] == [(1, 0)] * 3
        assert await lines.session.settle([(lease, Done()) for lease in known]) == []
    assert 2 in handed_back, "no call was carried out whose answer was lost; the test shows nothing"


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
@pytest.mark.parametrize("held_up_by", ["lock table offload.running in exclusive mode", "select from offload.sessions for update"])
async def test_a_claim_that_the_server_carries_out_late_leaves_no_orphan(place: Place, lines: Lines, held_up_by: str) -> None:
    server = place.server
    assert isinstance(server, PostgresServer)
    waiting = lambda: server.ask("select from pg_stat_activity where wait_event_type = 'Lock'")
    await lines.enqueue(3)
    with psycopg.connect(place.url) as blocker:
        blocker.execute(cast("LiteralString", held_up_by))
        fetching = asyncio.create_task(lines.session.fetch(None, 3, ROOM))
        while not await asyncio.to_thread(waiting):
            assert not fetching.done()
        lines.proxy.cut()
        with pytest.raises(BrokerError):
            await fetching
        retaining = asyncio.create_task(lines.session.retain([]))
        await asyncio.wait({retaining}, timeout=0.5)  # it comes first, where nothing holds it up
        assert await asyncio.to_thread(waiting), "the server still works on the claim"
    await retaining
    while await asyncio.to_thread(waiting):
        pass
    assert await lines.states() == {State.READY: 3}
    assert len(await lines.session.fetch(None, 3, ROOM)) == 3


@on_servers
async def test_outcomes_that_are_cut_off_are_recorded_once_by_a_repeat(lines: Lines) -> None:
    lost: set[int] = set()
    for cut in CUTS:
        jobs = await lines.enqueue(3)
        settlements = [(lease, Done(b"1")) for lease in await lines.session.fetch(None, 3, ROOM)]
        with lines.cutting(cut):
            try:
                assert await lines.session.settle(settlements) == []
            except BrokerError:
                lost.add(len(await lines.session.settle(settlements)))
                assert lost <= {0, 3}, "outcomes are recorded all at once, by the first call or by its repeat"
        records = await lines.direct.get([job.id for job in jobs])
        assert [(record.state, record.result, record.attempt) for record in records.values()] == [(State.SUCCEEDED, 1, 1)] * 3
    assert 3 in lost, "no call was carried out whose answer was lost; the test shows nothing"


@on_servers
async def test_an_enqueue_that_is_cut_off_is_repeated_by_the_client_and_stores_once(lines: Lines) -> None:
    stored = 0
    for cut in CUTS:
        jobs = lines.jobs(5)
        with lines.cutting(cut):
            assert await lines.proxied.enqueue(jobs) == [job.id for job in jobs]
        stored += 5
        assert await lines.states() == {State.READY: stored}
    assert lines.proxy.cuts >= 10


@on_servers
async def test_a_heart_goes_on_beating_over_a_new_connection(lines: Lines) -> None:
    def beat() -> bool:
        return asyncio.run(lines.session.beat(Pulse())).alive

    for cut in CUTS:
        (before,) = await lines.direct.sessions()
        with lines.cutting(cut):
            try:
                assert await asyncio.to_thread(beat)
            except BrokerError:
                assert await asyncio.to_thread(beat)
        (after,) = await lines.direct.sessions()
        assert after.beat - before.beat in (1, 2)
    assert lines.proxy.cuts >= 10


@on_servers
async def test_a_tick_that_is_cut_off_fires_once(lines: Lines) -> None:
    now = SystemClock().now().replace(microsecond=0) - timedelta(hours=1)
    await lines.direct.schedule(EVERY_MINUTE, now)
    for fired, cut in enumerate(CUTS, start=1):
        (due,) = await lines.session.due()
        next_at = due.next_at + timedelta(seconds=60)
        (job,) = (replace(job, run_at=due.next_at, schedule="report", overlap="allow") for job in lines.jobs(1))
        with lines.cutting(cut):
            try:
                await lines.session.tick(due, next_at, [job])
            except BrokerError:
                await lines.session.tick(due, next_at, [job])
        (record,) = await lines.direct.schedules()
        assert (record.fired, record.next_at) == (fired, next_at)
        assert await lines.states() == {State.READY: fired}
    assert lines.proxy.cuts >= 10


@on_servers
@pytest.mark.timeout(600 if SOAK else 300)
def test_connections_cut_again_and_again_under_load_lose_and_repeat_nothing(stage: Stage, proxy: Proxy) -> None:
    cuts = 200 if SOAK else 30
    chance = random.Random(7)
    proxied = proxy.through(stage.url)
    stage.produce(2, chunk=5, pause=0.01, CHAOS_URL=proxied)
    for _ in range(2):
        # Five beats in a row may meet a cut, or a machine that starts all other tests: two seconds of silence would prove nothing.
        stage.start("worker", CHAOS_URL=proxied, CHAOS_SESSION_TIMEOUT="6")
    stage.until(lambda: len(stage.ran()) > 20, 60, "the first jobs run")
    while proxy.cuts < cuts:
        made = proxy.cuts
        # A few bytes into a call; within a large one; or after the server did it, and before the answer is whole.
        proxy.cut_after(chance.choice([1, 20, 400, 3_000]), answers=chance.random() < 0.5)
        stage.until(lambda made=made: proxy.cuts > made, 60, "traffic goes on until it is cut")
        before, stored = len(stage.ran()), accepted(stage)
        stage.until(lambda before=before: len(stage.ran()) > before + 10, 60, "workers go on")
        stage.until(lambda stored=stored: accepted(stage) > stored, 60, "producers go on")
    jobs = stage.enough()

    each_ran_once(stage, jobs)
    parts = {part for sentences in sayings(stage).values() for part, _ in sentences}
    assert {"fetching", "settling"} <= parts, f"only {parts} met a cut"
    orphans = stage.log().count("were claimed by calls whose answer never came")
    print(f"{len(jobs)} jobs, {proxy.cuts} cuts, {orphans} times leases were handed back")
