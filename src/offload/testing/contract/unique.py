"""Unique keys: who holds one, until when, and what becomes of the job that finds it taken."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from offload.broker import Feature, Session, Store
from offload.errors import UniqueConflict
from offload.job import Cancelled, Conflict, Dead, Done, Job, Outcome, Release, Retried, State, UniqueKey, Until
from offload.records import Filter
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, live, needs, record, rule, settle, state, tick_job


def only(clock: TestClock, id: str, on_conflict: Conflict = "skip", until: Until = "finished", n: int = 0, **fields: Any) -> Job:
    """A job with the unique key `k` and the payload `n`."""
    return job(clock, id, unique=UniqueKey("k", until, on_conflict), payload=b'{"n":%d}' % n, **fields)


class Uniqueness(Fixtures):
    @needs(Feature.UNIQUE)
    async def test_skip_gives_the_id_of_the_job_that_holds_the_key(self, store: Store, clock: TestClock) -> None:
        assert await store.enqueue([only(clock, "a"), only(clock, "b", n=1)]) == ["a", "a"]
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert await store.enqueue([only(clock, "c")]) == ["a"]
            assert lease.job.payload == b'{"n":0}'
            await settle(session, lease, Done())
            assert await store.enqueue([only(clock, "d")]) == ["d"]
        assert await store.counts() == {"default": {State.SUCCEEDED: 1, State.READY: 1}}

    @needs(Feature.UNIQUE)
    async def test_other_keys_and_jobs_without_one_are_free(self, store: Store, clock: TestClock) -> None:
        other = job(clock, "b", unique=UniqueKey("other"))
        assert await store.enqueue([only(clock, "a"), other, job(clock, "c")]) == ["a", "b", "c"]

    @needs(Feature.UNIQUE)
    async def test_a_key_spans_tasks_and_queues(self, store: Store, clock: TestClock) -> None:
        assert await store.enqueue([only(clock, "a"), only(clock, "b", queue="mail", task="other")]) == ["a", "a"]

    @needs(Feature.UNIQUE)
    async def test_raise_undoes_the_whole_batch(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a")])
        with pytest.raises(UniqueConflict, match="'k'") as conflict:
            await store.enqueue([job(clock, "b"), only(clock, "c", "raise"), job(clock, "d")])
        assert (conflict.value.key, conflict.value.job_id) == ("k", "a")
        assert await store.counts() == {"default": {State.READY: 1}}

    @needs(Feature.UNIQUE)
    async def test_an_undone_batch_leaves_no_key_behind(self, store: Store, clock: TestClock) -> None:
        with pytest.raises(UniqueConflict):
            await store.enqueue([only(clock, "a"), only(clock, "b", "raise")])
        assert await store.enqueue([only(clock, "c", "raise")]) == ["c"]

    @needs(Feature.UNIQUE, Feature.SCHEDULES)
    async def test_an_undone_batch_leaves_those_in_line_whom_it_would_have_replaced(self, store: Store, clock: TestClock) -> None:
        key, never = UniqueKey("u", "finished", "keep_last"), UniqueKey("u", "finished", "raise")
        await store.enqueue([job(clock, "holder", unique=key), tick_job(clock, rule(overlap="replace"), "next", unique=key)])
        assert (await record(store, "next")).reason == "behind holder"
        with pytest.raises(UniqueConflict):
            await store.enqueue([tick_job(clock, rule(overlap="replace"), "instead"), job(clock, "refused", unique=never)])
        assert (await record(store, "next")).reason == "behind holder"
        await store.cancel(["holder"])
        assert await state(store, "next") is State.READY

    @needs(Feature.UNIQUE)
    async def test_an_undone_batch_leaves_replaced_payloads_as_they_were(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "replace", "started", n=1)])
        with pytest.raises(UniqueConflict):
            await store.enqueue([only(clock, "b", "replace", "started", n=2), only(clock, "c", "raise", n=3)])
        assert (await record(store, "a")).payload == b'{"n":1}'

    @needs(Feature.UNIQUE)
    async def test_an_id_is_looked_at_before_the_key(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "raise")])
        assert await store.enqueue([only(clock, "a", "raise")]) == ["a"]

    @needs(Feature.UNIQUE)
    @pytest.mark.parametrize("end", [Done(), Dead("d"), Cancelled()], ids=lambda outcome: type(outcome).__name__)
    async def test_until_finished_the_end_gives_up_the_key(self, store: Store, clock: TestClock, end: Outcome) -> None:
        await store.enqueue([only(clock, "a", keep=60)])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), end)
        assert await store.enqueue([only(clock, "b")]) == ["b"]

    @needs(Feature.UNIQUE)
    @pytest.mark.parametrize("between", [Retried(0), Retried(60), Release(), Release(60)], ids=["retry", "later", "release", "snooze"])
    async def test_until_finished_the_key_is_held_between_attempts(self, store: Store, clock: TestClock, between: Outcome) -> None:
        await store.enqueue([only(clock, "a")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), between)
            assert await store.enqueue([only(clock, "b")]) == ["a"]

    @needs(Feature.UNIQUE)
    async def test_until_finished_cancel_delete_and_expiry_give_up_the_key(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a")])
        await store.cancel(["a"])
        assert await store.enqueue([only(clock, "b")]) == ["b"]
        await store.delete(["b"])
        assert await store.enqueue([only(clock, "c", expires_in=60)]) == ["c"]
        clock.advance(60)
        async with store.session(info()) as session:
            await session.maintain()
        assert await store.enqueue([only(clock, "d")]) == ["d"]

    @needs(Feature.UNIQUE)
    async def test_until_finished_a_rescue_keeps_the_key(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            await claim_one(frozen)
            await live(clock, 15, alive)
            await alive.maintain()
            assert await store.enqueue([only(clock, "b")]) == ["a"]

    @needs(Feature.UNIQUE)
    async def test_until_started_the_first_claim_gives_up_the_key_for_good(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", until="started")])
        assert await store.enqueue([only(clock, "b", until="started")]) == ["a"]
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await settle(session, lease, Release())
            assert await store.enqueue([only(clock, "c", until="started")]) == ["c"]
            assert ids(await claim(session)) == ["a", "c"]

    @needs(Feature.UNIQUE)
    async def test_until_a_duration_the_key_is_held_that_long_whatever_happens(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", until=60.0)])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done())
        clock.advance(timedelta(seconds=60, microseconds=-1))
        assert await store.enqueue([only(clock, "b", until=60.0)]) == ["a"]
        clock.advance(timedelta(microseconds=1))
        assert await store.enqueue([only(clock, "c", until=60.0)]) == ["c"]

    @needs(Feature.UNIQUE)
    async def test_until_a_duration_an_unfinished_job_loses_the_key_too(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", until=60.0)])
        clock.advance(60)
        assert await store.enqueue([only(clock, "b", until=60.0)]) == ["b"]
        await store.cancel(["a"])
        assert await store.enqueue([only(clock, "c", until=60.0)]) == ["b"]

    @needs(Feature.UNIQUE, Feature.PRIORITY)
    async def test_replace_gives_the_waiting_job_the_new_payload(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "replace", "started", n=1), job(clock, "other")])
        assert await store.enqueue([only(clock, "b", "replace", "started", n=2, priority=50)]) == ["a"]
        async with store.session(info()) as session:
            first, second = await claim(session)
            assert (first.job.id, first.job.payload, first.job.priority, second.job.id) == ("a", b'{"n":2}', 0, "other")
            assert await store.enqueue([only(clock, "c", "replace", "started", n=3)]) == ["c"]

    @needs(Feature.UNIQUE, Feature.DELAY)
    async def test_replace_keeps_the_time(self, store: Store, clock: TestClock) -> None:
        first = only(clock, "a", "replace", "started", delay=60)
        await store.enqueue([first])
        assert await store.enqueue([only(clock, "b", "replace", "started", n=2)]) == ["a"]
        shown = await record(store, "a")
        assert (shown.state, shown.run_at, shown.payload) == (State.SCHEDULED, first.run_at, b'{"n":2}')

    @needs(Feature.UNIQUE, Feature.DELAY)
    async def test_debounce_takes_the_new_payload_and_the_new_time(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "debounce", "started", n=1, delay=60)])
        clock.advance(30)
        last = only(clock, "b", "debounce", "started", n=2, delay=60)
        assert await store.enqueue([last]) == ["a"]
        shown = await record(store, "a")
        assert (shown.state, shown.run_at, shown.payload) == (State.SCHEDULED, last.run_at, b'{"n":2}')
        clock.advance(59)
        async with store.session(info()) as session:
            await session.maintain()
            assert await claim(session) == []
            clock.advance(1)
            await session.maintain()
            assert ids(await claim(session)) == ["a"]

    @needs(Feature.UNIQUE, Feature.DELAY)
    async def test_debounce_moves_a_ready_job_back_to_its_new_time(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "debounce", "started")])
        await store.enqueue([only(clock, "b", "debounce", "started", delay=60)])
        assert await state(store, "a") is State.SCHEDULED
        assert await store.enqueue([only(clock, "c", "debounce", "started")]) == ["a"]
        assert await state(store, "a") is State.READY

    @needs(Feature.UNIQUE)
    async def test_keep_last_keeps_one_holder_and_one_successor(self, store: Store, clock: TestClock) -> None:
        assert await store.enqueue([only(clock, id, "keep_last", n=n) for n, id in enumerate("abcd")]) == ["a", "b", "b", "b"]
        waiting = await record(store, "b")
        assert (waiting.state, waiting.reason, waiting.payload) == (State.WAITING, "behind a", b'{"n":3}')
        async with store.session(info()) as session:
            holder = await claim_one(session)
            assert holder.job.payload == b'{"n":0}'
            assert await claim(session) == []
            await settle(session, holder, Done())
            successor = await claim_one(session)
            assert (successor.job.id, successor.job.payload) == ("b", b'{"n":3}')
            assert await store.enqueue([only(clock, "e", "keep_last")]) == ["e"]
            assert await state(store, "e") is State.WAITING

    @needs(Feature.UNIQUE)
    async def test_a_successor_does_not_change_who_holds_the_key(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "keep_last"), only(clock, "b", "keep_last")])
        assert await store.enqueue([only(clock, "c", "skip")]) == ["a"]

    @needs(Feature.UNIQUE)
    @pytest.mark.parametrize("between", [Retried(0), Retried(60), Release(), Release(60)], ids=["retry", "later", "release", "snooze"])
    async def test_a_successor_waits_through_the_retries_of_its_holder(self, store: Store, clock: TestClock, between: Outcome) -> None:
        await store.enqueue([only(clock, "a", "keep_last"), only(clock, "b", "keep_last")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), between)
            assert await state(store, "b") is State.WAITING

    @needs(Feature.UNIQUE)
    @pytest.mark.parametrize("end", ["dead", "cancel", "expire", "delete", "rescue"])
    async def test_a_successor_takes_over_however_its_holder_ends(self, store: Store, clock: TestClock, end: str) -> None:
        await store.enqueue([only(clock, "a", "keep_last", expires_in=60), only(clock, "b", "keep_last")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            await self.end(end, store, clock, frozen, alive)
            shown = await record(store, "b")
            assert (shown.state, shown.reason) == (State.READY, None)
            assert ids(await claim(alive)) == ["b"]

    async def end(self, how: str, store: Store, clock: TestClock, frozen: Session, alive: Session) -> None:
        match how:
            case "dead":
                await settle(alive, await claim_one(alive), Dead("d"))
            case "cancel":
                assert await store.cancel(["a"]) == {"a"}
            case "expire":
                clock.advance(60)
                await alive.maintain()
            case "delete":
                assert await store.delete(["a"]) == {"a"}
            case _:
                await claim_one(frozen)
                await store.cancel(["a"])
                await live(clock, 15, alive)
                await alive.maintain()

    @needs(Feature.UNIQUE, Feature.DELAY)
    async def test_a_delayed_successor_waits_for_its_time_too(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "keep_last"), only(clock, "b", "keep_last", delay=60)])
        assert await state(store, "b") is State.WAITING
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done())
            assert await state(store, "b") is State.SCHEDULED
            clock.advance(60)
            await session.maintain()
            assert ids(await claim(session)) == ["b"]

    @needs(Feature.UNIQUE)
    async def test_a_cancelled_successor_just_ends(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", "keep_last"), only(clock, "b", "keep_last")])
        assert await store.cancel(["b"]) == {"b"}
        assert await state(store, "b") is State.CANCELLED
        assert await store.enqueue([only(clock, "c", "keep_last")]) == ["c"]
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done())
            assert ids(await claim(session)) == ["c"]

    @needs(Feature.UNIQUE)
    async def test_a_revived_job_takes_its_key_again_if_it_is_free(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a")])
        await store.cancel(["a"])
        assert await store.retry(["a"]) == {"a"}
        assert await store.enqueue([only(clock, "b")]) == ["a"]

    @needs(Feature.UNIQUE)
    async def test_a_revived_job_takes_a_key_until_it_starts_again(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", until="started")])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Dead("d"))
            await store.retry(["a"])
            assert await store.enqueue([only(clock, "b", until="started")]) == ["a"]
            await claim_one(session)
            assert await store.enqueue([only(clock, "c", until="started")]) == ["c"]

    @needs(Feature.UNIQUE)
    async def test_a_revived_job_does_not_take_a_key_for_a_duration(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a", until=60.0)])
        await store.cancel(["a"])
        clock.advance(60)
        await store.enqueue([only(clock, "b", until=60.0)])
        assert await store.retry(["a"]) == {"a"}
        assert await store.enqueue([only(clock, "c", until=60.0)]) == ["b"]

    @needs(Feature.UNIQUE)
    async def test_a_job_whose_key_is_taken_is_not_revived(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a"), job(clock, "free")])
        await store.cancel(["a", "free"])
        await store.enqueue([only(clock, "b")])
        assert await store.retry(["a", "free"]) == {"free"}
        assert await state(store, "a") is State.CANCELLED

    @needs(Feature.UNIQUE)
    @pytest.mark.parametrize("conflict", ["replace", "debounce"])
    @pytest.mark.parametrize("until", ["finished", 60.0])
    async def test_a_holder_that_has_started_is_not_replaced(
        self, store: Store, clock: TestClock, until: Until, conflict: Conflict
    ) -> None:
        await store.enqueue([only(clock, "a", until=until, n=1)])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            assert await store.enqueue([only(clock, "b", conflict, "started", n=2)]) == ["a"]
            shown = await record(store, "a")
            assert (shown.state, shown.payload) == (State.RUNNING, b'{"n":1}')
            await settle(session, lease, Done())

    @needs(Feature.UNIQUE)
    @pytest.mark.parametrize("conflict", ["replace", "debounce", "keep_last"])
    async def test_a_key_held_for_a_duration_outlives_its_forgotten_holder(
        self, store: Store, clock: TestClock, conflict: Conflict
    ) -> None:
        await store.enqueue([only(clock, "a", until=60.0, keep=0)])
        async with store.session(info()) as session:
            await settle(session, await claim_one(session), Done())
        assert await store.enqueue([only(clock, "b", conflict)]) == ["a"]
        assert await store.counts() == {}

    @needs(Feature.UNIQUE)
    @pytest.mark.parametrize("until", ["started", 60.0])
    async def test_keep_last_waits_for_no_end_that_does_not_free_the_key(self, store: Store, clock: TestClock, until: Until) -> None:
        await store.enqueue([only(clock, "a", until=until)])
        assert await store.enqueue([only(clock, "b", "keep_last")]) == ["a"]
        assert await state(store, "b") is None

    @needs(Feature.UNIQUE, Feature.DELAY, Feature.SCHEDULES)
    async def test_debounce_does_not_overtake_what_the_job_waits_for(self, store: Store, clock: TestClock) -> None:
        key = UniqueKey("k", "started", "debounce")
        first, second = (tick_job(clock, rule(overlap="replace"), id, unique=key) for id in "ab")
        async with store.session(info()) as session:
            await store.enqueue([first])
            running = await claim_one(session)
            await store.enqueue([second])
            assert await store.enqueue([only(clock, "c", "debounce", "started", n=3, delay=60)]) == ["b"]
            shown = await record(store, "b")
            assert (shown.state, shown.reason, shown.payload) == (State.WAITING, "behind a", b'{"n":3}')
            await settle(session, running, Done())
            assert await state(store, "b") is State.SCHEDULED
            clock.advance(60)
            await session.maintain()
            assert ids(await claim(session)) == ["b"]

    @needs(Feature.UNIQUE)
    async def test_jobs_are_found_by_their_key(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([only(clock, "a"), job(clock, "b", unique=UniqueKey("other")), job(clock, "c")])
        assert ids(await store.find(Filter(key="k"), 10)) == ["a"]
