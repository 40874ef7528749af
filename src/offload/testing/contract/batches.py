"""Many jobs counted together, and the callbacks that tell how they ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from offload.broker import Feature, Store
from offload.errors import BatchClosed, IdConflict, ParentNotFound, UniqueConflict
from offload.job import KEEP_SUCCEEDED, KEEP_UNSUCCESSFUL, Cancelled, Dead, Done, Job, Retried, State, UniqueKey
from offload.records import Filter, Tally
from offload.testing.clock import TestClock
from offload.testing.contract.families import end, node, states
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, needs, record, settle, state
from offload.testing.contract.keyed import run, waits

BATCH = "batch"
CALLBACKS = ("success", "failure", "complete")


def part(clock: TestClock, id: str, **fields: Any) -> Job:
    """A job of the batch `batch`."""
    return job(clock, id, batch=BATCH, **fields)


async def opened(store: Store, clock: TestClock, *jobs: str, sealed: bool = False) -> None:
    """The batch `batch` with a callback for each of its ends, and jobs."""
    await store.open_batch(BATCH, "the batch", [job(clock, f"on {each}", batch=BATCH, callback=each) for each in CALLBACKS])
    if jobs:
        await store.enqueue([part(clock, id) for id in jobs])
    if sealed:
        assert await store.seal_batch(BATCH)


async def tally(store: Store) -> Tally:
    """The batch `batch`."""
    (found,) = await store.tallies("batch", [BATCH])
    return found


async def callbacks(store: Store) -> list[State | None]:
    """The states of its callbacks, None for those that are gone."""
    return await states(store, *(f"on {each}" for each in CALLBACKS))


class Batches(Fixtures):
    @needs(Feature.BATCH)
    async def test_a_batch_of_which_all_succeeded_calls_back_once(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b")
        assert await waits(store, "on success") == "waits for its batch"
        async with store.session(info()) as session:
            assert await run(session) == ["a", "b"]
            assert await claim(session) == []
            clock.advance(1)
            assert await store.seal_batch(BATCH)
            shown = await tally(store)
            assert (shown.finished_at, shown.succeeded, shown.sealed) == (clock.now(), 2, True)
            assert await run(session) == ["on success", "on complete"]
            assert await callbacks(store) == [State.SUCCEEDED, None, State.SUCCEEDED]
            assert not await store.seal_batch(BATCH)
            assert await claim(session) == []

    @needs(Feature.BATCH)
    async def test_a_batch_calls_back_at_its_first_failure_and_at_its_end(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b", "c")
        async with store.session(info()) as session:
            first, second, third = await claim(session)
            await settle(session, first, Dead("no"))
            assert await run(session) == ["on failure"]
            await settle(session, second, Dead("no"))
            assert await claim(session) == []
            assert await store.seal_batch(BATCH)
            await settle(session, third, Done())
            assert await run(session) == ["on complete"]
            assert await callbacks(store) == [State.WAITING, State.SUCCEEDED, State.SUCCEEDED]
            assert (await tally(store)).dead == 2

    @needs(Feature.BATCH)
    async def test_an_empty_batch_completes_when_it_is_sealed(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, sealed=True)
        async with store.session(info()) as session:
            assert await run(session) == ["on success", "on complete"]
        assert (await tally(store)).finished_at == clock.now()

    @needs(Feature.BATCH, Feature.EXPIRY)
    async def test_an_expired_job_is_a_failure_and_a_cancelled_one_neither_that_nor_success(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", sealed=True)
        await store.cancel(["a"])
        async with store.session(info()) as session:
            assert await run(session) == ["on complete"]
            assert await callbacks(store) == [State.WAITING, State.WAITING, State.SUCCEEDED]
            await store.open_batch("another", "", [job(clock, "alert", batch="another", callback="failure")])
            await store.enqueue([job(clock, "late", batch="another", expires_in=1)])
            clock.advance(1)
            await session.maintain()
            assert await run(session) == ["alert"]

    @needs(Feature.BATCH)
    async def test_a_retry_opens_a_batch_again_and_no_callback_comes_twice(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b", sealed=True)
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            assert await run(session) == ["on failure", "on complete"]
            assert await store.retry(["a"]) == {"a"}
            shown = await tally(store)
            assert (shown.finished_at, shown.dead, shown.waiting) == (None, 0, 1)
            assert await run(session) == ["a"]
            assert await run(session) == ["on success"]
            assert await claim(session) == []
        shown = await tally(store)
        assert (shown.succeeded, shown.finished_at) == (2, clock.now())

    @needs(Feature.BATCH)
    async def test_a_job_that_was_cancelled_may_still_fail_after_its_retry(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", sealed=True)
        await store.cancel(["a"])
        async with store.session(info()) as session:
            assert await run(session) == ["on complete"]
            await store.retry(["a"])
            await end(session, a=Dead("no"))
            assert await run(session) == ["on failure"]

    @needs(Feature.BATCH)
    async def test_jobs_may_be_added_until_it_is_sealed_and_then_by_its_own_alone(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b")
        await store.enqueue([part(clock, "c"), job(clock, "stranger")])
        assert await store.seal_batch(BATCH)
        with pytest.raises(BatchClosed, match="sealed"):
            await store.enqueue([job(clock, "x"), part(clock, "d")])
        assert await state(store, "x") is None
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["stranger"], Done(None, (part(clock, "e"),)))
            assert (await record(store, "stranger")).state is State.DEAD
            await settle(session, leases["a"], Done(None, (part(clock, "f"),)))
            await session.settle([(leases["b"], Done()), (leases["c"], Done())])
            assert (await tally(store)).finished_at is None
            assert await run(session) == ["f"]
            assert (await tally(store)).total == 4
            assert await run(session) == ["on success", "on complete"]

    @needs(Feature.BATCH)
    async def test_a_batch_that_there_is_not_takes_nothing(self, store: Store, clock: TestClock) -> None:
        with pytest.raises(BatchClosed, match="there is no batch"):
            await store.enqueue([part(clock, "a")])
        assert not await store.seal_batch(BATCH)
        assert not await store.stop("batch", BATCH)
        assert await store.tallies("batch") == []

    @needs(Feature.BATCH)
    async def test_opening_it_again_changes_nothing(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", sealed=True)
        before = await tally(store)
        await opened(store, clock)
        assert await tally(store) == before
        assert before.callbacks == (("success", "on success"), ("failure", "on failure"), ("complete", "on complete"))
        assert len(await store.find(Filter(), 10)) == 4
        assert await store.enqueue([part(clock, "a")]) == ["a"]  # a repeated call, whose answer was lost
        assert (await tally(store)).total == 1

    @needs(Feature.BATCH)
    async def test_a_batch_is_counted_and_its_jobs_are_found(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b", "c", "d", "e")
        async with store.session(info()) as session:
            leases = await claim(session)
            await session.settle([(leases[0], Done()), (leases[1], Dead("no")), (leases[2], Cancelled()), (leases[3], Retried(60))])
            shown = await tally(store)
            counted = (shown.total, shown.succeeded, shown.dead, shown.cancelled, shown.expired, shown.running, shown.waiting)
            assert counted == (5, 1, 1, 1, 0, 1, 1)
            assert (shown.kind, shown.name, shown.created_at) == ("batch", "the batch", clock.now())
        assert sorted(ids(await store.find(Filter(batch=BATCH), 10))) == [
            "a",
            "b",
            "c",
            "d",
            "e",
            "on complete",
            "on failure",
            "on success",
        ]

    @needs(Feature.BATCH)
    async def test_a_batch_is_stopped_as_a_whole(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b", "done")
        async with store.session(info()) as session:
            leases = await claim(session)
            await settle(session, leases[2], Done())
            await store.enqueue([part(clock, "c")])
            assert await store.stop("batch", BATCH)
            assert (await record(store, "c")).reason == "its batch was cancelled"
            assert (await record(store, "a")).cancel_asked
            with pytest.raises(BatchClosed):
                await store.enqueue([part(clock, "d")])
            await session.settle([(leases[0], Retried(0)), (leases[1], Done(None, (part(clock, "e"),)))])
            assert (await record(store, "e")).reason == "its batch was cancelled"
            shown = await tally(store)
            assert (shown.stopped, shown.sealed, shown.cancelled, shown.succeeded, shown.finished_at) == (True, True, 3, 2, clock.now())
            assert await run(session) == ["on complete"]
            assert not await store.stop("batch", BATCH)

    @needs(Feature.BATCH)
    async def test_a_batch_left_open_for_an_hour_with_nothing_to_do_is_abandoned(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b")
        async with store.session(info()) as session:
            first, second = await claim(session)
            await settle(session, first, Done())
            clock.advance(3_600)
            await session.maintain()
            assert not (await tally(store)).sealed
            await settle(session, second, Done())
            clock.advance(3_599)
            await session.maintain()
            assert not (await tally(store)).sealed
            clock.advance(1)
            await session.maintain()
            shown = await tally(store)
            assert (shown.sealed, shown.abandoned, shown.finished_at) == (True, True, clock.now())
            assert await run(session) == ["on failure", "on complete"]
            assert await callbacks(store) == [State.WAITING, State.SUCCEEDED, State.SUCCEEDED]

    @needs(Feature.BATCH, Feature.PARENTS)
    async def test_a_job_that_is_refused_keeps_no_batch_open(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock)
        clock.advance(3_600)
        with pytest.raises(ParentNotFound):
            await store.enqueue([node(clock, "a", "ghost", batch=BATCH)])
        async with store.session(info()) as session:
            await session.maintain()
        assert (await tally(store)).abandoned

    @needs(Feature.BATCH)
    async def test_jobs_that_are_refused_give_a_batch_no_more_time(self, store: Store, clock: TestClock) -> None:
        await store.open_batch(BATCH, "", [])
        clock.advance(3_599)
        with pytest.raises(BatchClosed):
            await store.enqueue([part(clock, "a"), job(clock, "b", batch="none")])
        await store.enqueue([job(clock, "free")])
        clock.advance(1)
        async with store.session(info()) as session:
            await session.maintain()
        assert (await tally(store)).abandoned

    @needs(Feature.BATCH)
    async def test_a_batch_to_which_jobs_come_is_not_abandoned(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a")
        async with store.session(info()) as session:
            await run(session)
            clock.advance(3_000)
            await store.enqueue([part(clock, "b")])
            await run(session)
            clock.advance(3_000)
            await session.maintain()
            assert not (await tally(store)).sealed

    @needs(Feature.BATCH)
    async def test_records_of_a_batch_are_kept_each_for_its_own_time(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock)
        await store.enqueue([part(clock, "gone", keep=0), part(clock, "kept", keep=100)])
        assert await store.seal_batch(BATCH)
        async with store.session(info()) as session:
            await run(session)
            await run(session)
            assert await states(store, "gone", "kept") == [None, State.SUCCEEDED]
            clock.advance(KEEP_SUCCEEDED - 1)
            await session.maintain()
            assert (await tally(store)).succeeded == 2
            clock.advance(1)
            await session.maintain()
            assert await store.tallies("batch") == []
            assert await store.find(Filter(), 10) == []

    @needs(Feature.BATCH)
    async def test_callbacks_that_never_came_due_go_with_their_batch(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", sealed=True)
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            await run(session)
            clock.advance(KEEP_UNSUCCESSFUL)
            await session.maintain()
            await session.maintain()
            assert await store.tallies("batch") == []
            assert await store.find(Filter(), 10) == []

    @needs(Feature.BATCH)
    async def test_a_callback_can_be_cancelled_and_retried(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", sealed=True)
        assert await store.cancel(["on complete"]) == {"on complete"}
        assert await store.delete(["on failure"]) == {"on failure"}
        async with store.session(info()) as session:
            await run(session)
            await end(session, **{"on success": Dead("no")})
            assert await store.retry(["on success", "on complete"]) == {"on success", "on complete"}
            assert sorted(await run(session)) == ["on complete", "on success"]
        assert (await tally(store)).total == 1

    @needs(Feature.BATCH)
    async def test_a_callback_that_is_retried_before_it_is_due_waits_again(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a")
        names = ["on complete", "on success", "on failure"]
        assert await store.cancel(names) == set(names)
        assert await store.retry(names) == set(names)
        assert await waits(store, "on complete") == "waits for its batch"
        async with store.session(info()) as session:
            assert await run(session) == ["a"]
            assert await claim(session) == []
            assert await store.seal_batch(BATCH)
            assert await run(session) == ["on success", "on complete"]
        assert await callbacks(store) == [State.SUCCEEDED, None, State.SUCCEEDED]

    @needs(Feature.BATCH, Feature.UNIQUE)
    async def test_a_callback_that_never_comes_gives_up_its_unique_key(self, store: Store, clock: TestClock) -> None:
        keyed: dict[str, Any] = {"unique": UniqueKey("k", "finished", "raise")}
        await store.open_batch(BATCH, "", [job(clock, "on failure", batch=BATCH, callback="failure", **keyed)])
        with pytest.raises(UniqueConflict):
            await store.enqueue([job(clock, "free", **keyed)])
        assert await store.seal_batch(BATCH)
        assert await states(store, "on failure") == [None]
        assert await store.enqueue([job(clock, "free", **keyed)]) == ["free"]

    @needs(Feature.BATCH, Feature.UNIQUE)
    async def test_a_callback_that_is_forgotten_waiting_gives_up_its_unique_key(self, store: Store, clock: TestClock) -> None:
        keyed: dict[str, Any] = {"unique": UniqueKey("k", "finished", "raise")}
        await store.open_batch(BATCH, "", [job(clock, "on success", batch=BATCH, callback="success", **keyed)])
        await store.enqueue([part(clock, "a")])
        assert await store.seal_batch(BATCH)
        async with store.session(info()) as session:
            await end(session, a=Dead("no"))
            clock.advance(KEEP_UNSUCCESSFUL)
            await session.maintain()
            await session.maintain()
            assert await store.tallies("batch") == []
        assert await store.enqueue([job(clock, "free", **keyed)]) == ["free"]

    @needs(Feature.BATCH)
    async def test_an_id_has_one_batch_and_one_duty_there(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a")
        await store.enqueue([job(clock, "free")])
        await store.enqueue([part(clock, "a")])
        for taken in (part(clock, "free"), job(clock, "a"), job(clock, "a", batch="other"), part(clock, "on success")):
            with pytest.raises(IdConflict):
                await store.enqueue([taken])
        for callback in (job(clock, "a", batch="other", callback="success"), job(clock, "on success", batch="other", callback="success")):
            with pytest.raises(IdConflict):
                await store.open_batch("other", "", [callback])
        assert await store.tallies("batch", ["other"]) == []

    @needs(Feature.BATCH)
    async def test_a_stopped_batch_of_which_a_job_is_retried_takes_what_that_one_adds(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a")
        assert await store.stop("batch", BATCH)
        assert await store.retry(["a"]) == {"a"}
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await settle(session, leases["a"], Done(None, (part(clock, "b"),)))
            assert await state(store, "b") is State.READY
        assert not (await tally(store)).stopped

    @needs(Feature.BATCH)
    async def test_a_deleted_job_counts_as_cancelled_unless_it_had_ended(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock, "a", "b", sealed=True)
        await store.delete(["a"])
        async with store.session(info()) as session:
            await run(session)
            await store.delete(["b"])
            shown = await tally(store)
            assert (shown.total, shown.cancelled, shown.succeeded, shown.finished_at) == (2, 1, 1, clock.now())
            assert await run(session) == ["on complete"]

    @needs(Feature.BATCH, Feature.PARENTS)
    async def test_a_job_may_be_counted_in_a_workflow_and_in_a_batch(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock)
        await store.enqueue([node(clock, "a", batch=BATCH), node(clock, "b", "a", batch=BATCH)])
        await store.seal_batch(BATCH)
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await settle(session, lease, Dead("no"))
            assert sorted(await run(session)) == ["on complete", "on failure"]
        shown = await tally(store)
        assert (shown.dead, shown.cancelled) == (1, 1)

    @needs(Feature.BATCH)
    async def test_a_batch_of_thousands_is_stopped_whole(self, store: Store, clock: TestClock) -> None:
        await opened(store, clock)
        width = 2_500
        for start in range(0, width, 1_000):
            await store.enqueue([part(clock, f"p{n}") for n in range(start, min(start + 1_000, width))])
        async with store.session(info()) as session:
            assert await store.stop("batch", BATCH)
            async with asyncio.timeout(60):
                while (await tally(store)).finished_at is None:
                    await session.maintain()
            assert (await tally(store)).cancelled == width
            assert await run(session) == ["on complete"]
