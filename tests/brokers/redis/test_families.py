"""Workflows and batches in the server: what is wide comes in pieces, what is refused leaves nothing, and what is over is gone."""

from __future__ import annotations

import pytest
from tests.brokers.redis.conftest import stored, words

from offload.brokers.redis import RedisBroker
from offload.errors import BatchClosed, ParentNotFound
from offload.job import KEEP_UNSUCCESSFUL, Cancelled, Dead, Done, Job, Lease, State
from offload.records import Filter
from offload.testing.clock import TestClock
from offload.testing.contract.families import end, node, states, takes
from offload.testing.contract.fixtures import claim, ids, info, job, record, settle
from offload.testing.contract.keyed import run
from offload.testing.servers import RedisServer

pytestmark = pytest.mark.anyio

WIDE = 2_500
PIECE = 1_000
IDLE = {"version", "pruned", "counts"}
"""What lies in a store without jobs and workers."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def enqueue_all(broker: RedisBroker, jobs: list[Job]) -> None:
    for start in range(0, len(jobs), 1_000):
        await broker.enqueue(jobs[start : start + 1_000])


async def fan(broker: RedisBroker, clock: TestClock) -> None:
    """A job with many children."""
    await enqueue_all(broker, [node(clock, f"c{n}", takes("a", "x"), size=WIDE + 1) for n in range(WIDE)])
    await broker.enqueue([node(clock, "a")])


async def number(broker: RedisBroker, state: State) -> int:
    return (await broker.counts()).get("default", {}).get(state, 0)


async def test_a_thousand_children_are_told_at_once_and_the_others_by_upkeep(broker: RedisBroker, clock: TestClock) -> None:
    await fan(broker, clock)
    async with broker.session(info()) as session:
        await end(session, a=Dead("no"))
        assert await number(broker, State.CANCELLED) == PIECE
        assert (await session.maintain()).wait == 0
        assert await number(broker, State.CANCELLED) == 2 * PIECE
        assert (await session.maintain()).wait > 0
        assert await number(broker, State.CANCELLED) == WIDE


async def test_whoever_fetches_goes_on_with_what_is_owed(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    await fan(broker, clock)
    async with broker.session(info()) as session:
        await end(session, a=Done(b"1"))
        leases: list[Lease] = []
        while more := await claim(session, 100):
            leases += more
        assert [lease.job.id for lease in leases] == [f"c{n}" for n in range(WIDE)]
        assert {lease.inputs for lease in leases} == {(b"1",)}
    assert each_redis.ask("EXISTS", f"{{{fresh_name}}}:owed", f"{{{fresh_name}}}:owing") == 0


async def test_what_is_owed_is_told_though_the_parent_is_deleted_meanwhile(broker: RedisBroker, clock: TestClock) -> None:
    await fan(broker, clock)
    async with broker.session(info()) as session:
        await end(session, a=Done(b"1"))
        assert await broker.delete(["a"]) == {"a"}
        assert len(await claim(session, 10_000)) == WIDE


async def test_who_is_retried_while_its_fall_is_still_owed_takes_nobody_down(broker: RedisBroker, clock: TestClock) -> None:
    await fan(broker, clock)
    async with broker.session(info()) as session:
        await end(session, a=Dead("no"))
        assert await broker.retry(["a"]) == {"a"}
        while (await session.maintain()).wait == 0:
            pass
        assert await number(broker, State.WAITING) == WIDE
        await end(session, a=Done(b"2"))
        assert {lease.inputs for lease in await claim(session, 10_000)} == {(b"2",)}


async def test_who_goes_on_with_what_is_owed_reads_no_more_than_can_be_paid(
    broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str
) -> None:
    parents = ["a", "b", "c", "d"]
    jobs = [node(clock, f"c{n}", *parents, size=1_504) for n in range(1_500)]
    await enqueue_all(broker, [*jobs, *(node(clock, id) for id in parents)])
    async with broker.session(info()) as session:
        await end(session)
        owing = f"{{{fresh_name}}}:owing"
        assert words(each_redis.ask("ZRANGE", owing, "0", "-1")) == [f"job flow\0{id}".encode() for id in "abcd"]
        assert await claim(session) == []
        assert words(each_redis.ask("ZRANGE", owing, "0", "-1")) == [f"job flow\0{id}".encode() for id in "cdb"]
        while (await session.maintain()).wait == 0:
            pass
        assert await number(broker, State.READY) == 1_500


@pytest.fixture
def dies(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops something wide with `broker` dies when the first are cancelled."""

    async def killed(*_: str) -> None:
        pass

    monkeypatch.setattr(broker, "_finish_stop", killed)


@pytest.mark.usefixtures("dies")
async def test_nobody_comes_to_run_while_a_workflow_is_being_stopped(broker: RedisBroker, clock: TestClock) -> None:
    jobs = [node(clock, "a", size=2 * PIECE + 1), *(node(clock, f"p{n}") for n in range(2 * PIECE - 1))]
    await enqueue_all(broker, [*jobs, node(clock, "brave", "a", fails="run")])
    assert await broker.stop("workflow", "flow")
    async with broker.session(info()) as session:
        for _ in range(3):
            assert await claim(session) == []
        brave = await record(broker, "brave")
        assert (brave.state, brave.reason) == (State.CANCELLED, "its workflow was cancelled")
        assert await broker.retry(["a"]) == {"a"}
        assert await states(broker, "a", "brave") == [State.READY, State.WAITING]


@pytest.mark.usefixtures("dies")
async def test_a_thousand_jobs_are_stopped_at_once_and_the_others_by_upkeep(broker: RedisBroker, clock: TestClock) -> None:
    await broker.open_batch("wide", "", [job(clock, "over", batch="wide", callback="complete")])
    await enqueue_all(broker, [job(clock, f"p{n}", batch="wide") for n in range(WIDE)])
    async with broker.session(info()) as session:
        assert await broker.stop("batch", "wide")
        assert await number(broker, State.CANCELLED) == PIECE - 1  # the callback was looked at, too
        assert await broker.delete(["p998", "p999"]) == {"p998", "p999"}  # where it is to go on
        assert (await session.maintain()).wait == 0
        await session.maintain()
        assert await number(broker, State.READY) == 1
        assert await run(session) == ["over"]


async def test_jobs_that_are_refused_leave_nothing(broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str) -> None:
    await broker.open_batch("b", "", [])
    await broker.enqueue([node(clock, "c", "ghost", size=3)])
    before = stored(each_redis, fresh_name)
    for jobs, error in (
        ([node(clock, "x", "c", batch="none")], BatchClosed),
        ([node(clock, "x", "c", batch="b"), node(clock, "y", "x")], ParentNotFound),
        ([node(clock, "x", flow="new", batch="b"), job(clock, "y", batch="none")], BatchClosed),
    ):
        with pytest.raises(error):
            await broker.enqueue(jobs)
        assert stored(each_redis, fresh_name) == before


async def test_nothing_is_left_of_what_is_over(broker: RedisBroker, clock: TestClock, each_redis: RedisServer, fresh_name: str) -> None:
    await broker.open_batch("b", "", [job(clock, f"on {each}", batch="b", callback=each) for each in ("success", "failure", "complete")])
    await broker.enqueue([node(clock, "a"), node(clock, "x"), node(clock, "b", takes("a", "x"), "x", batch="b"), node(clock, "c", "b")])
    await broker.enqueue([node(clock, "d", "c", fails="run"), node(clock, "gone", "a"), job(clock, "kept", batch="b", keep=0)])
    assert await broker.seal_batch("b")
    await broker.delete(["gone"])
    async with broker.session(info()) as session:
        await end(session, x=Dead("no"))
        await run(session)
        await run(session)
        clock.advance(KEEP_UNSUCCESSFUL)
        while (await session.maintain()).wait == 0:
            pass
    assert await broker.find(Filter(), 10) == []
    assert stored(each_redis, fresh_name).keys() <= IDLE


async def test_the_jobs_of_a_batch_are_found_a_page_at_a_time_after_any_job(broker: RedisBroker, clock: TestClock) -> None:
    await broker.open_batch("b", "", [])
    for n in range(30):
        await broker.enqueue([job(clock, f"j{n:02}", batch="b" if n % 3 == 0 else None)])
        clock.advance(n % 2)
    assert ids(await broker.find(Filter(batch="b"), 3)) == ["j27", "j24", "j21"]
    assert ids(await broker.find(Filter(batch="b"), 3, after="j21")) == ["j18", "j15", "j12"]
    for after in ("j17", "j16", "j15"):
        assert ids(await broker.find(Filter(batch="b", state=State.READY), 2, after=after))[0] == ("j12" if after == "j15" else "j15")


async def test_why_a_job_is_dead_whose_additions_were_refused_may_be_told_in_its_own_words(broker: RedisBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a"), job(clock, "b")])
    async with broker.session(info()) as session:
        first, second = await claim(session)
        await settle(session, first, Done(None, (job(clock, "x", batch="none"),)))
        await settle(session, second, Cancelled("\0own"))
    assert (
        await record(broker, "a")
    ).reason == "the jobs that it added were refused: there is no batch none: open it first, or it is forgotten"
    assert (await record(broker, "b")).reason == "\0own"


async def test_a_job_of_a_batch_that_comes_back_is_counted_once(broker: RedisBroker, clock: TestClock) -> None:
    await broker.open_batch("b", "", [])
    await broker.enqueue([job(clock, "a", batch="b"), job(clock, "c", batch="b")])
    async with broker.session(info()) as session:
        assert len(await claim(session)) == 2
        assert await session.retain([]) == 2
        (lease,) = await claim(session, 1)
        (shown,) = await broker.tallies("batch", ["b"])
        assert (shown.running, shown.waiting) == (1, 1)
        await settle(session, lease, Done())
    (shown,) = await broker.tallies("batch", ["b"])
    assert (shown.running, shown.waiting, shown.succeeded) == (0, 1, 1)
    assert await states(broker, "a", "c") == [State.SUCCEEDED, State.READY]
