"""Parents that are not there: deleted, come again under their ids, in another workflow, or never to come."""

from __future__ import annotations

import pytest

from offload.broker import Feature, Store
from offload.errors import ParentNotFound
from offload.job import Dead, Done, IfParentFails, State
from offload.records import Filter
from offload.testing.clock import TestClock
from offload.testing.contract.families import WAITS, end, node, states, takes
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, needs, record, settle, state
from offload.testing.contract.keyed import waits


class Missing(Fixtures):
    @needs(Feature.PARENTS)
    async def test_nobody_waits_for_a_parent_that_never_comes(self, store: Store, clock: TestClock) -> None:
        with pytest.raises(ParentNotFound, match="job c is to wait for job ghost"):
            await store.enqueue([node(clock, "a", size=2), node(clock, "c", "a", "ghost")])
        assert await store.find(Filter(), 10) == []
        assert await store.tallies("workflow") == []
        await store.enqueue([node(clock, "c", "ghost", size=2)])
        with pytest.raises(ParentNotFound, match="job c is to wait for job ghost"):
            await store.enqueue([node(clock, "a")])
        assert await states(store, "a", "c") == [None, State.WAITING]

    @needs(Feature.PARENTS)
    @pytest.mark.parametrize("fails", ["cancel", "run"])
    async def test_a_parent_that_was_deleted_and_comes_again_counts_once(
        self, store: Store, clock: TestClock, fails: IfParentFails
    ) -> None:
        await store.enqueue([node(clock, "p"), node(clock, "q", queue="later"), node(clock, "c", "p", "q", fails=fails)])
        async with store.session(info()) as session:
            for _ in range(2):
                (lease,) = await claim(session, queues=["default"])
                await settle(session, lease, Done())
                assert await store.delete(["p"]) == {"p"}
                await store.enqueue([node(clock, "p")])
            assert await states(store, "p", "q", "c") == [State.READY, State.READY, State.WAITING]
            await end(session)
            assert ids(await claim(session)) == ["c"]

    @needs(Feature.PARENTS)
    async def test_what_came_of_parents_that_were_deleted_is_there_when_the_last_has_ended(self, store: Store, clock: TestClock) -> None:
        children = [node(clock, id, takes("a", "x"), "b", takes("q", "y"), queue="later") for id in ("c", "d")]
        await store.enqueue([node(clock, "a", size=5), node(clock, "b"), node(clock, "q", queue="last"), *children])
        async with store.session(info()) as session:
            await session.settle([(lease, Done(f'"{lease.job.id}"'.encode())) for lease in await claim(session, queues=["default"])])
            assert await store.delete(["a", "b"]) == {"a", "b"}
            assert await states(store, "a", "b", "c", "d") == [None, None, State.WAITING, State.WAITING]
            (lease,) = await claim(session, queues=["last"])
            await settle(session, lease, Done(b"1"))
            assert {lease.job.id: lease.inputs for lease in await claim(session)} == dict.fromkeys(("c", "d"), (b'"a"', None, b"1"))

    @needs(Feature.PARENTS)
    async def test_who_fell_with_a_deleted_parent_goes_on_with_one_of_its_id(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "p"), node(clock, "c", takes("p", "x"))])
        assert await store.delete(["p"]) == {"p"}
        assert (await record(store, "c")).reason == "parent p was deleted"
        await store.enqueue([node(clock, "p")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done(b"1"))
            (lease,) = await claim(session)
            assert (lease.job.id, lease.inputs) == ("c", (b"1",))

    @needs(Feature.PARENTS)
    async def test_a_retry_waits_for_nobody_though_a_parent_ended_twice(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "p"), node(clock, "c", "p", queue="later")])
        async with store.session(info()) as session:
            (lease,) = await claim(session, queues=["default"])
            await settle(session, lease, Done())
            assert await store.delete(["p"]) == {"p"}
            await store.enqueue([node(clock, "p")])
            (lease,) = await claim(session, queues=["default"])
            await settle(session, lease, Done())
            (lease,) = await claim(session, queues=["later"])
            await settle(session, lease, Dead("no"))
            assert await store.retry(["c"]) == {"c"}
            assert await state(store, "c") is State.READY

    @needs(Feature.PARENTS)
    async def test_a_job_of_another_workflow_is_nobodys_parent(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([node(clock, "c", "x", "y", size=3)])
        await store.enqueue([job(clock, "x"), node(clock, "y", flow="another")])
        async with store.session(info()) as session:
            await end(session, x=Done(), y=Dead("no"))
        assert await waits(store, "c") == WAITS
        with pytest.raises(ParentNotFound, match="job c is to wait for job x"):
            await store.enqueue([node(clock, "a"), node(clock, "b")])
