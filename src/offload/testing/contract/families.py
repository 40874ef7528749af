"""Jobs that wait for others, the workflow they make, and what it does when some of them fail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from offload.broker import Feature, Session, Store
from offload.errors import IdConflict
from offload.job import Cancelled, Dead, Done, IfParentFails, Job, Membership, Outcome, Parent, Retried, State, UniqueKey
from offload.records import Tally
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, live, needs, record, settle, state
from offload.testing.contract.keyed import run, slot, turn, waits

FLOW = "flow"
WAITS = "waits for its parents"


def node(clock: TestClock, id: str, *parents: str | Parent, size: int = 0, fails: IfParentFails = "cancel", **fields: Any) -> Job:
    """A job of the workflow `flow`, which has so many jobs, that waits for parents."""
    ties = tuple(each if isinstance(each, Parent) else Parent(each) for each in parents)
    flow = Membership(fields.pop("flow", FLOW), "the flow", size)
    return job(clock, id, workflow=flow, parents=ties, if_parent_fails=fails, **fields)


def takes(id: str, *path: str | int) -> Parent:
    """A parent whose result goes to a place in the arguments."""
    return Parent(id, (path,))


async def end(session: Session, **outcomes: Outcome) -> None:
    """Claim all there is, and end it by id; what is not named succeeds."""
    leases = await claim(session)
    assert set(outcomes) <= set(ids(leases))
    assert await session.settle([(lease, outcomes.get(lease.job.id, Done())) for lease in leases]) == []


async def tally(store: Store, id: str = FLOW) -> Tally:
    """A workflow that is there."""
    (found,) = await store.tallies("workflow", [id])
    return found


async def states(store: Store, *of: str) -> list[State | None]:
    """The states of some jobs, None for those that are not there."""
    found = await store.get(of)
    return [found[id].state if id in found else None for id in of]


class Families(Fixtures):
    @needs(Feature.PARENTS)
    async def test_a_child_runs_when_its_parents_have_succeeded(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", size=3), node(clock, "b"), node(clock, "c", "a", "b")])
        assert await waits(store, "c") == WAITS
        assert (await record(store, "c")).parents == (Parent("a"), Parent("b"))
        async with store.session(info()) as session:
            first, second = await claim(session)
            await settle(session, first, Done())
            assert await claim(session) == []
            assert await waits(store, "c") == WAITS
            await settle(session, second, Retried(0))
            await settle(session, await claim_one(session), Done())
            assert await run(session) == ["c"]

    @needs(Feature.PARENTS)
    async def test_the_results_of_parents_come_with_the_claim(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, id) for id in ("a", "b", "n")])
        await store.enqueue([node(clock, "c", takes("b", "x"), "n", takes("a", "y", 0), payload=b'{"x":null,"y":[null]}')])
        await store.enqueue([node(clock, "plain", "a")])
        async with store.session(info()) as session:
            await end(session, a=Done(b'{"deep":[1]}'), b=Done(b'"text"'), n=Done(b"7"))
            inputs = {lease.job.id: lease.inputs for lease in await claim(session)}
        assert inputs == {"c": (b'"text"', None, b'{"deep":[1]}'), "plain": ()}

    @needs(Feature.PARENTS)
    async def test_inputs_are_there_again_after_a_retry_and_after_a_crash(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "c", takes("a", "x"))])
        async with store.session(info("dies")) as dying, store.session(info()) as session:
            await end(dying, a=Done(b"1"))
            await settle(dying, await claim_one(dying), Retried(0))
            assert (await claim_one(dying)).inputs == (b"1",)
            assert await live(clock, 18, session)
            await session.maintain()
            lease = await claim_one(session)
            assert (lease.inputs, lease.crashes) == ((b"1",), 1)

    @needs(Feature.PARENTS)
    async def test_children_may_be_stored_before_their_parents(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "c", takes("a", "x"), size=2)])
        assert await waits(store, "c") == WAITS
        await store.enqueue([node(clock, "a")])
        async with store.session(info()) as session:
            await end(session, a=Done(b"1"))
            assert (await claim_one(session)).inputs == (b"1",)

    @needs(Feature.PARENTS)
    async def test_a_child_may_be_added_when_its_parents_have_ended(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", keep=0), node(clock, "b"), node(clock, "open")])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await session.settle([(leases["a"], Done(b"1")), (leases["b"], Dead("broke"))])
            added = [node(clock, "c", takes("a", "x")), node(clock, "d", "b"), node(clock, "e", "a", "open")]
            await store.enqueue([*added, node(clock, "f", takes("b", "x"), "a", fails="run")])
            assert await states(store, "c", "d", "e", "f") == [State.READY, State.CANCELLED, State.WAITING, State.READY]
            assert (await record(store, "d")).reason == "parent b ended DEAD"
            assert {lease.job.id: lease.inputs for lease in await claim(session)} == {"c": (b"1",), "f": (None, None)}

    @needs(Feature.PARENTS)
    @pytest.mark.parametrize(("outcome", "ended"), [(Dead("no"), State.DEAD), (Cancelled("no"), State.CANCELLED)])
    async def test_who_fails_takes_its_descendants_down(self, store: Store, clock: TestClock, outcome: Outcome, ended: State) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b", "a"), node(clock, "c", "b"), node(clock, "other")])
        async with store.session(info()) as session:
            await end(session, a=outcome)
        assert await states(store, "a", "b", "c", "other") == [ended, State.CANCELLED, State.CANCELLED, State.SUCCEEDED]
        assert (await record(store, "b")).reason == f"parent a ended {ended}"
        shown = await record(store, "c")
        assert (shown.reason, shown.finished_at, shown.attempt) == ("parent b ended CANCELLED", clock.now(), 0)
        assert (await tally(store)).finished_at == clock.now()

    @needs(Feature.PARENTS, Feature.EXPIRY)
    async def test_who_expires_takes_its_descendants_down(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", expires_in=5), node(clock, "b", "a"), node(clock, "late", expires_in=5)])
        await store.enqueue([node(clock, "c", "late")])
        async with store.session(info()) as session:
            clock.advance(5)
            assert await claim(session, limit=1) == []
            await session.maintain()
        assert await states(store, "a", "b", "late", "c") == [State.EXPIRED, State.CANCELLED, State.EXPIRED, State.CANCELLED]
        assert (await record(store, "b")).reason == "parent a ended EXPIRED"

    @needs(Feature.PARENTS)
    async def test_who_is_told_to_runs_though_a_parent_failed(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b"), node(clock, "c", takes("a", "x"), takes("b", "y"), fails="run")])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"), b=Done(b"2"))
            lease = await claim_one(session)
            assert (lease.job.id, lease.inputs) == ("c", (None, b"2"))

    @needs(Feature.PARENTS)
    async def test_a_cancelled_job_takes_its_descendants_down_and_so_does_a_deleted_one(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b", "a"), node(clock, "x"), node(clock, "y", "x")])
        assert await store.cancel(["a", "b"]) == {"a", "b"}
        assert await store.delete(["x"]) == {"x"}
        assert [(await record(store, id)).reason for id in ("a", "b", "y")] == ["cancelled", "cancelled", "parent x was deleted"]
        assert (await tally(store)).cancelled == 4

    @needs(Feature.PARENTS)
    async def test_the_first_of_several_parents_that_failed_is_the_reason(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b"), node(clock, "c", "b", "a")])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"), b=Dead("no"))
        assert (await record(store, "c")).reason == "parent b ended DEAD"

    @needs(Feature.PARENTS)
    async def test_retry_revives_those_that_fell_with_it_and_no_others(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "ran"), node(clock, "b", takes("a", "x"), takes("ran", "y"))])
        await store.enqueue([node(clock, "c", "b"), node(clock, "by hand", "a"), node(clock, "brave", "a", fails="run")])
        await store.cancel(["by hand"])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"), ran=Done(b"5"))
            await end(session, brave=Done())
            assert (await tally(store)).finished_at is not None
            assert await store.retry(["a"]) == {"a"}
            assert await states(store, "a", "b", "c") == [State.READY, State.WAITING, State.WAITING]
            assert await states(store, "ran", "by hand", "brave") == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]
            shown = await tally(store)
            assert (shown.finished_at, shown.dead, shown.cancelled, shown.succeeded) == (None, 0, 1, 2)
            await end(session, a=Done(b"1"))
            lease = await claim_one(session)
            assert (lease.job.id, lease.inputs) == ("b", (b"1", b"5"))
            await settle(session, lease, Done())
            assert await run(session) == ["c"]

    @needs(Feature.PARENTS)
    async def test_who_fell_with_two_parents_is_revived_with_both(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b"), node(clock, "c", "a", "b"), node(clock, "d", "c")])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"), b=Dead("no"))
            await store.retry(["a"])
            assert (await record(store, "c")).reason == "parent b ended DEAD"
            await end(session, a=Done())
            assert await state(store, "d") is State.CANCELLED
            await store.retry(["b"])
            assert await states(store, "c", "d") == [State.WAITING, State.WAITING]
            await end(session, b=Done())
            assert [await run(session), await run(session)] == [["c"], ["d"]]

    @needs(Feature.PARENTS)
    async def test_who_fell_is_not_revived_alone_and_who_was_cancelled_waits_again(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b", "a", delay=60)])
        assert await store.cancel(["b"]) == {"b"}
        assert await store.retry(["b"]) == {"b"}
        assert await waits(store, "b") == WAITS
        assert (await record(store, "b")).run_at is None
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            assert await store.retry(["b"]) == set()
            assert await store.retry(["b", "a"]) == {"a"}
            assert await waits(store, "b") == WAITS

    @needs(Feature.PARENTS)
    async def test_a_job_that_failed_again_takes_down_again(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b", "a"), node(clock, "c", "b")])
        async with store.session(info()) as session:
            for _ in range(3):
                await end(session, a=Dead("no"))
                assert await states(store, "b", "c") == [State.CANCELLED, State.CANCELLED]
                assert (await tally(store)).finished_at == clock.now()
                clock.advance(1)
                assert await store.retry(["a"]) == {"a"}
            assert [await run(session) for _ in range(4)] == [["a"], ["b"], ["c"], []]

    @needs(Feature.PARENTS)
    async def test_a_job_adds_jobs_by_its_success(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b", "a")])
        added = (node(clock, "d", takes("x", "n"), "a"), node(clock, "x"))
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert await store.get(["x"]) == {}
            await settle(session, lease, Done(b"1", added))
            assert await states(store, "a", "b", "x", "d") == [State.SUCCEEDED, State.READY, State.READY, State.WAITING]
            await end(session, x=Done(b"9"))
            assert (await claim_one(session)).inputs == (b"9", None)
        assert (await tally(store)).total == 4

    @needs(Feature.PARENTS)
    async def test_a_child_of_one_that_is_cancelled_at_once_waits_for_its_other_parents(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", size=4), node(clock, "r", queue="slow")])
        async with store.session(info()) as session:
            (lease,) = await claim(session, queues=["default"])
            await settle(session, lease, Dead("no"))
            await store.enqueue([node(clock, "b", "a"), node(clock, "c", takes("b", "x"), takes("r", "y"), fails="run")])
            assert await states(store, "b", "c") == [State.CANCELLED, State.WAITING]
            assert await run(session) == ["r"]
            lease = await claim_one(session)
            assert (lease.job.id, lease.inputs) == ("c", (None, None))

    @needs(Feature.PARENTS)
    async def test_those_who_were_cancelled_at_once_come_back_with_the_parent_that_had_failed(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a", size=4)])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            await store.enqueue([node(clock, "b", "a"), node(clock, "c", "b"), node(clock, "brave", "b", fails="run")])
            assert [(await record(store, id)).reason for id in ("b", "c")] == ["parent a ended DEAD", "parent b ended CANCELLED"]
            assert await state(store, "brave") is State.READY
            assert await store.retry(["a"]) == {"a"}
            assert await states(store, "a", "b", "c") == [State.READY, State.WAITING, State.WAITING]
            assert sorted(await run(session)) == ["a", "brave"]
            assert await run(session) == ["b"]
            assert await run(session) == ["c"]
        assert (await tally(store)).succeeded == 4

    @needs(Feature.PARENTS)
    @pytest.mark.parametrize("lost", [(), ("a1",), ("alone",), ("b0", "kept")], ids=lambda lost: "-".join(lost) or "none")
    async def test_successes_of_several_workflows_and_of_none_are_settled_at_once(
        self, store: Store, clock: TestClock, lost: tuple[str, ...]
    ) -> None:
        flows = {flow: [f"{flow}{n}" for n in range(3)] for flow in ("a", "b")}
        for flow, members in flows.items():
            await store.enqueue([node(clock, id, flow=flow, size=4) for id in members])
            await store.enqueue([node(clock, f"join-{flow}", *(takes(id, id) for id in members), flow=flow, queue="joins")])
        await store.enqueue([job(clock, "kept"), job(clock, "alone", keep=0)])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session, queues=["default"])}
            first = [lease for id, lease in leases.items() if id not in ("a2", "b2")]
            for id in lost:
                await settle(session, leases[id], Retried(0))
            refused = await session.settle([(lease, Done(f'"{lease.job.id}"'.encode())) for lease in first])
            assert sorted(ids(refused)) == sorted(lost)
            for flow, members in flows.items():
                expected = [State.READY if id in lost else State.RUNNING if id.endswith("2") else State.SUCCEEDED for id in members]
                assert await states(store, *members, f"join-{flow}") == [*expected, State.WAITING]
                assert (await tally(store, flow)).succeeded == expected.count(State.SUCCEEDED)
            assert await states(store, "kept", "alone") == [
                State.READY if "kept" in lost else State.SUCCEEDED,
                State.READY if "alone" in lost else None,
            ]
            assert await session.settle([(leases[id], Done(f'"{id}"'.encode())) for id in ("a2", "b2")]) == []
            late = await claim(session, queues=["default"])
            assert sorted(ids(late)) == sorted(lost)
            assert await session.settle([(lease, Done(f'"{lease.job.id}"'.encode())) for lease in late]) == []
            joins = {lease.job.id: lease.inputs for lease in await claim(session, queues=["joins"])}
        assert joins == {f"join-{flow}": tuple(f'"{id}"'.encode() for id in members) for flow, members in flows.items()}

    @needs(Feature.PARENTS)
    async def test_a_job_that_lost_its_lease_adds_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a")])
        async with store.session(info("dies")) as dying, store.session(info()) as session:
            lease = await claim_one(dying)
            assert await live(clock, 18, session)
            await session.maintain()
            assert await dying.settle([(lease, Done(None, (node(clock, "x"),)))]) == [lease]
        assert await store.get(["x"]) == {}

    @needs(Feature.PARENTS)
    async def test_a_job_whose_additions_are_refused_is_dead_and_adds_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "child", "a"), job(clock, "taken")])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["a"], Done(b"1", (node(clock, "x"), node(clock, "taken"))))
        shown = await record(store, "a")
        assert (shown.state, shown.result) == (State.DEAD, None)
        assert shown.reason == f"the jobs that it added were refused: {IdConflict('taken')}"
        assert await states(store, "x", "child") == [None, State.CANCELLED]

    @needs(Feature.PARENTS)
    async def test_who_succeeds_although_it_was_to_be_cancelled_is_dead_all_the_same_where_its_additions_are_refused(
        self, store: Store, clock: TestClock
    ) -> None:
        await store.enqueue([node(clock, "a"), job(clock, "taken", delay=60)])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await store.cancel(["a"])
            await settle(session, lease, Done(b"1", (node(clock, "taken"),)))
        assert await state(store, "a") is State.DEAD

    @needs(Feature.PARENTS)
    async def test_who_has_run_and_waits_for_a_parent_again_keeps_what_it_has_behind_it(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "p", size=3), node(clock, "c", "p", fails="run"), node(clock, "d", "c")])
        async with store.session(info()) as session:
            await end(session, p=Dead("no"))
            await end(session, c=Retried(60))
            clock.advance(timedelta(seconds=60))
            await session.maintain()
            await end(session, c=Dead("no"))
            assert await store.retry(["p"]) == {"p"}
            assert await store.retry(["c"]) == {"c"}
            assert await states(store, "p", "c", "d") == [State.READY, State.WAITING, State.WAITING]
            await end(session)
            assert (await record(store, "c")).run_at is None
            lease = await claim_one(session)
            assert (lease.job.id, lease.claim, lease.attempt) == ("c", 3, 1)
            await settle(session, lease, Done())
            assert ids(await claim(session)) == ["d"]

    @needs(Feature.PARENTS)
    async def test_a_repeated_enqueue_stores_nothing_twice_and_an_id_has_one_workflow(self, store: Store, clock: TestClock) -> None:
        jobs = [node(clock, "c", "a", size=2), node(clock, "a", size=2)]
        assert [await store.enqueue(jobs) for _ in range(2)] == [["c", "a"]] * 2
        assert (await tally(store)).total == 2
        with pytest.raises(IdConflict):
            await store.enqueue([node(clock, "a", flow="another")])
        with pytest.raises(IdConflict):
            await store.enqueue([job(clock, "a")])
        assert await store.tallies("workflow", ["another"]) == []

    @needs(Feature.PARENTS, Feature.UNIQUE)
    async def test_who_waits_for_parents_goes_on_waiting_when_a_unique_key_puts_it_off(self, store: Store, clock: TestClock) -> None:
        key = UniqueKey("k", "started", "debounce")
        await store.enqueue([node(clock, "a"), node(clock, "b", "a", unique=key)])
        assert await store.enqueue([job(clock, "new", unique=key, payload=b'{"n":2}', delay=5)]) == ["b"]
        assert await waits(store, "b") == WAITS
        async with store.session(info()) as session:
            await end(session)
            assert await state(store, "b") is State.SCHEDULED
            clock.advance(5)
            await session.maintain()
            assert (await claim_one(session)).job.payload == b'{"n":2}'

    @needs(Feature.PARENTS, Feature.EXPIRY)
    async def test_who_is_revived_with_its_parent_still_expires(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b", "a", expires_in=100)])
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            await session.maintain()
            await store.retry(["a"])
            clock.advance(99)
            await session.maintain()
            assert await waits(store, "b") == WAITS
            clock.advance(1)
            await session.maintain()
            assert await state(store, "b") is State.EXPIRED

    @needs(Feature.PARENTS, Feature.DELAY)
    async def test_a_child_becomes_due_by_its_parents_and_its_time(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b", "a", delay=10)])
        assert await waits(store, "b") == WAITS
        async with store.session(info()) as session:
            clock.advance(5)
            await end(session)
            assert await state(store, "b") is State.SCHEDULED
            clock.advance(5)
            await session.maintain()
            assert await run(session) == ["b"]

    @needs(Feature.PARENTS, Feature.ORDER, Feature.LIMITS)
    async def test_a_child_joins_its_line_when_its_parents_have_ended(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), turn(clock, "first"), slot(clock, "holds", key="s")])
        child = node(clock, "b", "a", order_by="k")
        await store.enqueue([child, turn(clock, "second"), node(clock, "s", "a", limits=slot(clock, "s", key="s").limits)])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["a"], Done())
            assert await waits(store, "b") == "waits for a turn of k"
            assert await waits(store, "s") == "waits for a slot of s"
            await session.settle([(leases[id], Done()) for id in ("first", "holds")])
            assert sorted(await run(session)) == ["s", "second"]
            assert await run(session) == ["b"]

    @needs(Feature.PARENTS)
    async def test_children_come_in_the_order_in_which_they_were_stored(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "a"), node(clock, "b")])
        await store.enqueue([node(clock, "c4", "b"), node(clock, "c1", "a"), node(clock, "c3", "b"), node(clock, "c2", "a", "b")])
        async with store.session(info()) as session:
            await end(session)
            assert await run(session) == ["c4", "c1", "c3", "c2"]
