"""A workflow as a whole: how it is counted, stopped, given up and forgotten, and how wide it may be."""

from __future__ import annotations

import asyncio

from offload.broker import Feature, Session, Store
from offload.diagnosis import why
from offload.job import KEEP_UNSUCCESSFUL, Dead, Done, Lease, Membership, Retried, State
from offload.records import Filter, Tally
from offload.testing.clock import TestClock
from offload.testing.contract.families import FLOW, WAITS, end, node, states, takes, tally
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, needs, record, settle, state
from offload.testing.contract.keyed import run, waits


async def wound_up(session: Session, store: Store, id: str = FLOW) -> Tally:
    """A workflow once it is finished, with the upkeep that wide ones need."""
    async with asyncio.timeout(60):
        while (found := await tally(store, id)).finished_at is None:
            await session.maintain()
    return found


async def told(session: Session) -> None:
    """Have all children learn of their parents who are yet to be told."""
    for _ in range(20):
        await session.maintain()


async def all_ready(session: Session) -> list[Lease]:
    """All that can be claimed, however much it is."""
    leases: list[Lease] = []
    while more := await claim(session):
        leases += more
    return leases


class Workflows(Fixtures):
    @needs(Feature.PARENTS)
    async def test_a_workflow_is_counted(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", size=3), node(clock, "b", "a"), node(clock, "c", "a")])
        begun = clock.now()
        expected = Tally(kind="workflow", id=FLOW, name="the flow", created_at=begun, total=3, size=3)
        assert await store.tallies("workflow") == [expected]
        assert (await record(store, "b")).workflow == Membership(FLOW)
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert lease.job.workflow == Membership(FLOW)
            shown = await tally(store)
            assert (shown.running, shown.waiting) == (1, 2)
            clock.advance(1)
            await settle(session, lease, Done())
            await end(session, b=Dead("no"))
        shown = await tally(store)
        assert (shown.succeeded, shown.dead, shown.running, shown.waiting, shown.finished_at) == (2, 1, 0, 0, clock.now())
        assert ids(await store.find(Filter(workflow=FLOW), 10)) == ["c", "b", "a"]
        assert await store.tallies("workflow", ["none"]) == []

    @needs(Feature.PARENTS)
    async def test_workflows_are_told_of_a_page_at_a_time(self, store: Store, clock: TestClock) -> None:
        for n in range(5):
            await store.enqueue([node(clock, f"j{n}", flow=f"f{n}")])
            clock.advance(n % 2)
        assert [each.id for each in await store.tallies("workflow", None, 2)] == ["f4", "f3"]
        assert [each.id for each in await store.tallies("workflow", None, 2, "f3")] == ["f2", "f1"]
        assert [each.id for each in await store.tallies("workflow", None, 2, "f1")] == ["f0"]
        assert [each.id for each in await store.tallies("workflow", ["f1", "none", "f3", "f1"])] == ["f1", "f3"]

    @needs(Feature.PARENTS)
    async def test_a_workflow_is_stopped_as_a_whole(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", size=5), node(clock, "runs"), node(clock, "b", "a"), node(clock, "brave", "a", fails="run")])
        async with store.session(info()) as session:
            (first,) = await claim(session, limit=1)
            assert first.job.id == "a"
            assert await store.stop("workflow", FLOW)
            assert await states(store, "a", "runs", "b", "brave") == [State.RUNNING, *[State.CANCELLED] * 3]
            assert {(await record(store, id)).reason for id in ("runs", "b", "brave")} == {"its workflow was cancelled"}
            await store.enqueue([node(clock, "late", size=5)])
            assert (await record(store, "late")).reason == "its workflow was cancelled"
            assert (await tally(store)).finished_at is None
            await settle(session, first, Retried(0))
        shown = await tally(store)
        assert (shown.finished_at, shown.stopped, shown.cancelled, shown.total) == (clock.now(), True, 5, 5)
        assert not await store.stop("workflow", FLOW)
        assert not await store.stop("workflow", "none")

    @needs(Feature.PARENTS)
    async def test_a_stopped_workflow_comes_back_with_those_for_whom_its_jobs_wait(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "c", "b", size=3), node(clock, "b", takes("a", "x")), node(clock, "a")])
        assert await store.stop("workflow", FLOW)
        assert [(await record(store, id)).reason for id in ("a", "b")] == ["its workflow was cancelled", "parent a ended CANCELLED"]
        assert await store.retry(["c"]) == set()
        assert await store.retry(["a"]) == {"a"}
        assert await states(store, "a", "b", "c") == [State.READY, State.WAITING, State.WAITING]
        assert not (await tally(store)).stopped
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await settle(session, lease, Done(b"1", (node(clock, "added", "a"),)))
            assert [lease.inputs for lease in await claim(session)] == [(b"1",), ()]

    @needs(Feature.PARENTS)
    async def test_who_ends_well_in_a_stopped_workflow_revives_nobody(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", size=2), node(clock, "b", "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert await store.stop("workflow", FLOW)
            await settle(session, lease, Done(b"1"))
            assert await states(store, "a", "b") == [State.SUCCEEDED, State.CANCELLED]
            assert (await tally(store)).finished_at == clock.now()
            assert await store.retry(["b"]) == {"b"}
            assert await run(session) == ["b"]

    @needs(Feature.PARENTS)
    async def test_nobody_comes_back_to_wait_for_a_parent_of_a_stopped_workflow_that_never_came(
        self, store: Store, clock: TestClock
    ) -> None:
        await store.enqueue([node(clock, "a", size=5), node(clock, "c", "a", "never came")])
        assert await store.stop("workflow", FLOW)
        assert await store.retry(["c"]) == set()
        await store.enqueue([node(clock, "late")])
        assert await store.retry(["late"]) == {"late"}
        await store.enqueue([node(clock, "later", "late")])
        assert await store.retry(["a"]) == {"a"}
        assert await store.retry(["c"]) == set()
        assert await states(store, "a", "c", "late", "later") == [State.READY, State.CANCELLED, State.READY, State.WAITING]

    @needs(Feature.PARENTS)
    async def test_nobody_comes_back_to_wait_for_a_parent_that_did_not_come_before_the_last_job(
        self, store: Store, clock: TestClock
    ) -> None:
        await store.enqueue([node(clock, "a", size=3), node(clock, "c", "a", "never came")])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            assert await state(store, "c") is State.CANCELLED
            await store.enqueue([node(clock, "d")])
            assert await store.retry(["a"]) == {"a"}
            assert sorted(await run(session)) == ["a", "d"]
        assert await state(store, "c") is State.CANCELLED
        assert (await tally(store)).finished_at == clock.now()

    @needs(Feature.PARENTS)
    async def test_whom_jobs_add_is_not_taken_for_whom_the_producer_announced(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "join", "a", "b", size=3), node(clock, "a")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done(None, (node(clock, "x"), node(clock, "y", "x"))))
            shown = await tally(store)
            assert (shown.total, shown.size) == (4, 5)
            assert await run(session) == ["x"]
            assert await run(session) == ["y"]
            assert await waits(store, "join") == "waits for its parents"
            await store.enqueue([node(clock, "b", size=3)])
            assert await run(session) == ["b"]
            assert await run(session) == ["join"]
        shown = await tally(store)
        assert (shown.finished_at, shown.total, shown.size) == (clock.now(), 5, 5)

    @needs(Feature.PARENTS, Feature.ORDER)
    async def test_who_waits_for_a_parent_after_its_retry_holds_no_turn_for_which_that_one_waits(
        self, store: Store, clock: TestClock
    ) -> None:
        held = {"order_by": "k", "on_dead": "hold"}
        await store.enqueue([node(clock, "c", "p", size=2, fails="run", **held), node(clock, "p", order_by="k")])
        async with store.session(info()) as session:
            await end(session, p=Dead("no"))
            await end(session, c=Dead("no"))
            assert await store.retry(["p"]) == {"p"}
            assert await run(session) == []
            assert await store.retry(["c"]) == {"c"}
            assert await waits(store, "c") == WAITS
            assert await run(session) == ["p"]
            assert await run(session) == ["c"]

    @needs(Feature.PARENTS)
    async def test_a_workflow_whose_producer_went_away_is_given_up_after_an_hour(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "c", "never came", size=3)])
        clock.advance(1_800)
        await store.enqueue([node(clock, "a")])
        async with store.session(info()) as session:
            clock.advance(3_599)
            await session.maintain()
            assert await states(store, "a", "c") == [State.READY, State.WAITING]
            clock.advance(1)
            await session.maintain()
            assert await states(store, "a", "c") == [State.CANCELLED, State.CANCELLED]
            shown = await tally(store)
            assert (shown.abandoned, shown.stopped, shown.finished_at) == (True, True, clock.now())

    @needs(Feature.PARENTS)
    async def test_who_would_wait_for_a_parent_that_never_comes_is_not_revived(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", size=9), node(clock, "b", "a", "ghost"), node(clock, "c", "ghost"), node(clock, "d", "c")])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            clock.advance(3_600)
            await session.maintain()
            assert (await tally(store)).finished_at == clock.now()
            assert await store.retry(["a", "b", "c"]) == {"a"}
            await end(session, a=Done())
            assert await states(store, "b", "c") == [State.CANCELLED, State.CANCELLED]
            assert (await tally(store)).finished_at == clock.now()

    @needs(Feature.PARENTS)
    async def test_the_records_of_a_workflow_are_kept_together(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", keep=0), node(clock, "b", "a", keep=100), node(clock, "plain", flow="f0", keep=0)])
        async with store.session(info()) as session:
            await end(session)
            clock.advance(1_000)
            await session.maintain()
            assert await states(store, "a", "b", "plain") == [State.SUCCEEDED, State.READY, None]
            assert await run(session) == ["b"]
            clock.advance(99)
            await session.maintain()
            assert await states(store, "a", "b") == [State.SUCCEEDED] * 2
            clock.advance(1)
            await session.maintain()
            assert await states(store, "a", "b") == [None, None]
            assert await store.tallies("workflow") == []

    @needs(Feature.PARENTS)
    async def test_a_workflow_with_a_failure_is_kept_for_as_long_as_dead_jobs(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", keep=0), node(clock, "b", "a", keep=0), node(clock, "c", keep=0)])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            clock.advance(KEEP_UNSUCCESSFUL - 1)
            await session.maintain()
            assert await store.retry(["a"]) == {"a"}
            assert await waits(store, "b") == WAITS
            await end(session, a=Dead("no"))
            clock.advance(KEEP_UNSUCCESSFUL)
            await session.maintain()
        assert await store.find(Filter(), 10) == []
        assert await store.tallies("workflow") == []

    @needs(Feature.PARENTS)
    async def test_a_wide_join_starts_with_the_last_of_its_parents(self, store: Store, clock: TestClock) -> None:
        width = 3_000
        parts = [f"p{n:04}" for n in range(width)]
        await store.enqueue([node(clock, "join", *(takes(id, "all", n) for n, id in enumerate(parts)), size=width + 1)])
        for start in range(0, width, 1_000):
            await store.enqueue([node(clock, id) for id in parts[start : start + 1_000]])
        async with store.session(info()) as session:
            leases = await all_ready(session)
            assert len(leases) == width
            done = [(lease, Done(str(int(lease.job.id[1:])).encode())) for lease in leases]
            for start in range(0, width - 1, 500):
                assert await session.settle(done[start : min(start + 500, width - 1)]) == []
            assert await waits(store, "join") == WAITS
            assert await session.settle(done[-1:]) == []
            lease = await claim_one(session)
            assert lease.inputs == tuple(str(n).encode() for n in range(width))
            await settle(session, lease, Done())
        assert (await tally(store)).succeeded == width + 1

    @needs(Feature.PARENTS)
    async def test_wide_falls_and_revivals_come_in_pieces_and_whole(self, store: Store, clock: TestClock) -> None:
        width = 2_500
        children = [node(clock, f"c{n}", "a", size=2 * width + 1) for n in range(width)]
        for start in range(0, width, 1_000):
            await store.enqueue(children[start : start + 1_000])
        for start in range(0, width, 1_000):
            await store.enqueue([node(clock, f"d{n}", f"c{n}") for n in range(start, min(start + 1_000, width))])
        await store.enqueue([node(clock, "a")])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            shown = await wound_up(session, store)
            assert (shown.dead, shown.cancelled) == (1, 2 * width)
            assert await store.retry(["a"]) == {"a"}
            await end(session, a=Done())
            ran = 0
            async with asyncio.timeout(60):
                while (await tally(store)).finished_at is None:
                    ran += len(await run(session))
                    await session.maintain()
            assert ran == 2 * width
        assert (await tally(store)).succeeded == 2 * width + 1

    @needs(Feature.PARENTS)
    async def test_who_comes_while_others_are_yet_to_learn_of_a_parent_knows_it_from_the_start(
        self, store: Store, clock: TestClock
    ) -> None:
        width = 1_500
        await store.enqueue([node(clock, "p", size=width + 4), node(clock, "q", queue="slow")])
        await store.enqueue([node(clock, f"c{n}", "p") for n in range(width)])
        async with store.session(info()) as session:
            (lease,) = await claim(session, queues=["default"])
            await settle(session, lease, Dead("no"))
            await store.enqueue([node(clock, "fell", "p"), node(clock, "brave", "p", "q", fails="run")])
            assert await states(store, "fell", "brave") == [State.CANCELLED, State.WAITING]
            await told(session)
            assert await waits(store, "brave") == WAITS
            assert await store.retry(["p"]) == {"p"}
            await store.enqueue([node(clock, "waits", takes("p", "x"), queue="slow")])
            await told(session)
            assert await states(store, "fell", "waits", f"c{width - 1}") == [State.WAITING] * 3
            (lease,) = await claim(session, queues=["default"])
            await settle(session, lease, Done(b"1"))
            await store.enqueue([node(clock, "late", takes("p", "x"), "q", queue="slow")])
            await told(session)
            assert await states(store, "fell", "brave", "waits", "late") == [State.READY, State.WAITING, State.READY, State.WAITING]
            inputs = {lease.job.id: lease.inputs for lease in await all_ready(session)}
            assert (len(inputs), inputs["waits"]) == (width + 3, (b"1",))

    @needs(Feature.PARENTS)
    async def test_children_learn_of_a_parent_that_is_deleted_before_all_were_told(self, store: Store, clock: TestClock) -> None:
        width = 1_500
        await store.enqueue([node(clock, "p", size=width + 1)])
        await store.enqueue([node(clock, f"c{n}", takes("p", "x")) for n in range(width)])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done(b"1"))
            assert await store.delete(["p"]) == {"p"}
            await told(session)
            assert [lease.inputs for lease in await all_ready(session)] == [(b"1",)] * width

    @needs(Feature.PARENTS)
    async def test_why_somebody_waits_is_said_while_not_all_were_told(self, store: Store, clock: TestClock) -> None:
        width = 1_500
        await store.enqueue([node(clock, "p", size=width + 1)])
        await store.enqueue([node(clock, f"c{n}", "p") for n in range(width)])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done())
            for id in ("c0", f"c{width - 1}"):
                standing = await store.standing(id)
                assert standing is not None
                assert standing.record.state is not State.WAITING or (standing.open_parents == 1 and standing.parents == ("p",))
                assert why(standing)

    @needs(Feature.PARENTS)
    async def test_a_wide_workflow_is_stopped_whole(self, store: Store, clock: TestClock) -> None:
        width = 2_500
        for start in range(0, width, 1_000):
            await store.enqueue([node(clock, f"p{n}", size=width) for n in range(start, min(start + 1_000, width))])
        async with store.session(info()) as session:
            assert await store.stop("workflow", FLOW)
            assert await claim(session) == []
            assert (await tally(store)).cancelled == width
