"""Sessions: their beats, their deaths, and the rescue of what they held."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from offload.broker import Session, Store
from offload.errors import SessionLost
from offload.job import Beat, Dead, Done, Isolation, Progress, Pulse, Release, Retried, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import PATIENCE, Fixtures, claim, claim_one, ids, info, job, live, record, settle, state


class Sessions(Fixtures):
    async def test_an_open_session_is_shown_with_what_it_runs(self, store: Store, clock: TestClock) -> None:
        assert await store.sessions() == []
        worker = info("ada", "greet", "farewell")
        await store.enqueue([job(clock), job(clock)])
        async with store.session(worker) as session:
            await claim(session)
            (shown,) = await store.sessions()
            assert (shown.id, shown.info, shown.running, shown.started_at) == (session.id, worker, 2, clock.now())
        assert await store.sessions() == []

    async def test_sessions_have_ids_of_their_own(self, store: Store) -> None:
        async with store.session(info()) as one, store.session(info()) as two:
            assert one.id != two.id
            assert {shown.id for shown in await store.sessions()} == {one.id, two.id}

    async def test_a_beat_raises_the_number(self, store: Store, clock: TestClock) -> None:
        async with store.session(info()) as session:
            (before,) = await store.sessions()
            clock.advance(3)
            assert await session.beat(Pulse()) == Beat(alive=True)
            (after,) = await store.sessions()
        assert after.beat > before.beat
        assert (after.beat_at, after.started_at) == (clock.now(), before.started_at)

    async def test_a_beat_may_come_from_another_thread_with_its_own_loop(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            pulse = Pulse(progress=((lease, Progress(0.5)),))
            for _ in range(2):
                assert (await asyncio.to_thread(lambda: asyncio.run(session.beat(pulse)))).alive
            await settle(session, lease, Done())
        assert (await record(store, "a")).progress == Progress(0.5)

    async def test_leaving_releases_what_is_still_held(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b"), job(clock, "c")])
        async with store.session(info()) as session:
            (done, held) = await claim(session, 2)
            await settle(session, done, Done())
            assert await state(store, held.job.id) is State.RUNNING
        shown = await record(store, "b")
        assert (shown.state, shown.attempt, shown.crashes) == (State.READY, 0, 0)
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["b", "c"]

    async def test_a_session_that_ends_by_an_error_releases_too(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        with pytest.raises(ZeroDivisionError):
            async with store.session(info()) as session:
                await claim(session)
                raise ZeroDivisionError
        assert await state(store, "a") is State.READY
        assert await store.sessions() == []

    async def test_what_a_dead_session_held_is_rescued(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", queue="mail"), job(clock, "b")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            (lease,) = await claim(frozen, 1, ["mail"])
            assert not await live(clock, 12, alive)
            assert (await alive.maintain()).touched == ()
            assert await live(clock, 3, alive)
            (touched,) = (await alive.maintain()).touched
            assert (touched.event, touched.id, touched.task, touched.queue) == ("rescued", "a", "greet", "mail")
            shown = await record(store, "a")
            assert (shown.state, shown.attempt, shown.crashes, shown.errors) == (State.READY, 0, 1, ())
            assert [each.id for each in await store.sessions()] == [alive.id]
            (again,) = await claim(alive, 1, ["mail"])
            assert (again.attempt, again.crashes) == (1, 1)
            assert again.claim > lease.claim

    async def test_a_rescued_job_keeps_its_place(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, id) for id in ("a", "b", "c")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            await claim(frozen, 2)
            await bury(clock, alive)
            assert ids(await claim(alive)) == ["a", "b", "c"]

    async def test_a_session_that_is_gone_can_do_nothing_any_more(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            (lease,) = await claim(frozen, 1)
            await bury(clock, alive)
            assert not (await frozen.beat(Pulse())).alive
            assert await frozen.settle([(lease, Done())]) == [lease]
            assert not await frozen.remember(lease, "charge", b"1")
            with pytest.raises(SessionLost):
                await claim(frozen)
            assert [each.id for each in await store.sessions()] == [alive.id]
        assert await store.counts() == {"default": {State.READY: 2}}

    async def test_a_late_outcome_does_not_touch_the_next_attempt(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            old = await claim_one(frozen)
            await bury(clock, alive)
            new = await claim_one(alive)
            assert await frozen.settle([(old, Dead("late"))]) == [old]
            await settle(alive, new, Done(b"1"))
        shown = await record(store, "a")
        assert (shown.state, shown.result, shown.crashes) == (State.SUCCEEDED, 1, 1)

    async def test_leaving_a_session_that_is_gone_takes_nothing_from_others(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("alive")) as alive:
            async with store.session(info("frozen")) as frozen:
                await claim_one(frozen)
                await bury(clock, alive)
                new = await claim_one(alive)
            assert await state(store, "a") is State.RUNNING
            await settle(alive, new, Done())

    async def test_long_jobs_of_a_live_session_are_left_alone(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("long")) as long, store.session(info("other")) as other:
            lease = await claim_one(long)
            assert not await live(clock, 600, long, other)
            assert (await other.maintain()).touched == ()
            await settle(long, lease, Done())

    async def test_an_observer_judges_by_its_own_timings(self, store: Store, clock: TestClock) -> None:
        hasty = replace(info("hasty"), session_timeout=4.0, heartbeat=1.0)
        async with store.session(info("slow")), store.session(hasty) as session:
            assert not await live(clock, 3, session, heartbeat=1)
            assert await live(clock, 1, session)

    @pytest.mark.parametrize("by", [3_600.0, -3_600.0], ids=["forward", "back"])
    async def test_a_jump_of_the_wall_clock_kills_nobody(self, store: Store, clock: TestClock, by: float) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("one")) as one, store.session(info("two")) as two:
            lease = await claim_one(one)
            await live(clock, 6, one, two)
            clock.jump(by)
            assert not await live(clock, 12, two)
            assert (await two.maintain()).touched == ()
            await settle(one, lease, Done())

    async def test_a_session_that_was_away_itself_judges_nobody(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("one")) as one, store.session(info("two")) as two:
            lease = await claim_one(one)
            await live(clock, 6, one, two)
            clock.advance(60)
            assert not (await two.beat(Pulse())).rescue
            assert (await two.maintain()).touched == ()
            assert not await live(clock, 12, two)
            assert await live(clock, 3, two)
            await settle(one, lease, Done())

    async def test_a_rescue_holds_only_while_the_beat_number_is_the_one_seen(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("slow")) as slow, store.session(info("other")) as other:
            lease = await claim_one(slow)
            assert await live(clock, 15, other)
            assert (await slow.beat(Pulse())).alive
            assert (await other.maintain()).touched == ()
            await settle(slow, lease, Done())

    async def test_two_rescuers_count_one_crash(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("frozen")) as frozen, store.session(info("one")) as one, store.session(info("two")) as two:
            await claim_one(frozen)
            assert await live(clock, 15, one, two)
            touched = [*(await one.maintain()).touched, *(await two.maintain()).touched]
            assert ids(touched) == ["a"]
            assert (await record(store, "a")).crashes == 1

    async def test_crashes_and_attempts_are_counted_apart(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("alive")) as alive:
            await settle(alive, await claim_one(alive), Retried(0))
            async with store.session(info("frozen")) as frozen:
                assert (await claim_one(frozen)).attempt == 2
                await bury(clock, alive)
            shown = await record(store, "a")
            assert (shown.attempt, shown.crashes) == (1, 1)
            await settle(alive, await claim_one(alive), Release())
            shown = await record(store, "a")
            assert (shown.attempt, shown.crashes) == (1, 1)

    async def test_a_job_that_crashed_twice_needs_the_room_of_a_process(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        no_process: dict[Isolation, int] = {"async": 10, "thread": 10, "process": 0}
        only_process: dict[Isolation, int] = {"process": 1}
        async with store.session(info("alive")) as alive:
            for _ in range(2):
                async with store.session(info("frozen")) as frozen:
                    assert ids(await claim(frozen, 1, room=no_process)) == ["a"]
                    await bury(clock, alive)
            assert ids(await claim(alive, 10, room=no_process)) == ["b"]
            (lease,) = await claim(alive, 10, room=only_process)
            assert (lease.job.id, lease.crashes, lease.attempt) == ("a", 2, 1)

    async def test_a_cancelled_job_is_not_rescued(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            await claim_one(frozen)
            await store.cancel(["a"])
            await live(clock, 15, alive)
            (touched,) = (await alive.maintain()).touched
            assert (touched.event, touched.id) == ("cancelled", "a")
        shown = await record(store, "a")
        assert (shown.state, shown.crashes, shown.finished_at) == (State.CANCELLED, 1, clock.now())

    async def test_what_settled_before_the_death_stays_settled(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            done, _ = await claim(frozen)
            await settle(frozen, done, Done())
            await live(clock, 15, alive)
            assert ids((await alive.maintain()).touched) == ["b"]
        assert await state(store, "a") is State.SUCCEEDED

    async def test_an_idle_session_that_dies_is_removed(self, store: Store, clock: TestClock) -> None:
        async with store.session(info("frozen")), store.session(info("alive")) as alive:
            await bury(clock, alive)
            assert [each.id for each in await store.sessions()] == [alive.id]

    async def test_a_session_hands_back_what_it_does_not_know_of(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, id) for id in ("a", "b", "c", "d")])
        async with store.session(info()) as session, store.session(info("other")) as other:
            known, orphan = await claim(session, 2)
            (foreign,) = await claim(other, 1)
            assert await session.retain([known]) == 1
            shown = await record(store, orphan.job.id)
            assert (shown.state, shown.attempt, shown.crashes) == (State.READY, 0, 0)
            assert await session.settle([(orphan, Done())]) == [orphan]
            again, _ = await claim(other)
            assert (again.job.id, again.attempt, again.claim > orphan.claim) == (orphan.job.id, 1, True), "it goes back to its place"
            await settle(session, known, Done())
            await settle(other, foreign, Done())

    async def test_a_session_that_knows_all_it_holds_hands_nothing_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info()) as session:
            assert await session.retain([]) == 0
            settled, held = await claim(session)
            await settle(session, settled, Done())
            assert await session.retain([settled, held]) == 0
            await settle(session, held, Done())

    async def test_a_fetch_of_more_than_a_thousand_keeps_to_the_room(self, store: Store, clock: TestClock) -> None:
        for _ in range(2):
            await store.enqueue([job(clock) for _ in range(1_100)])
        async with store.session(info()) as session:
            held = await claim(session, 2_200, room={"async": 1_500, "thread": 0, "process": 0})
            assert 0 < len(held) <= 1_500
            assert len(set(ids(held))) == len(held)

    async def test_an_orphan_is_told_by_its_claim(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            old = await claim_one(session)
            await settle(session, old, Retried(0))
            new = await claim_one(session)
            assert await session.retain([old]) == 1
            assert await session.settle([(new, Done())]) == [new]
            assert (await record(store, "a")).attempt == 1

    async def test_a_session_can_claim_after_it_handed_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", unique=UniqueKey("k"))])
        async with store.session(info()) as session:
            for _ in range(3):
                await claim_one(session)
                assert await session.retain([]) == 1
            await settle(session, await claim_one(session), Done())

    async def test_an_orphan_whose_cancellation_was_asked_for_is_cancelled(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            await claim_one(session)
            await store.cancel(["a"])
            assert await session.retain([]) == 1
            assert await state(store, "a") is State.CANCELLED

    async def test_handing_back_orphans_wakes_workers(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session, store.session(info("sleeps")) as sleeper, asyncio.timeout(PATIENCE):
            await claim_one(session)
            assert await claim(sleeper) == []
            waiting = asyncio.create_task(sleeper.wait(10 * PATIENCE))
            await asyncio.sleep(0)
            await session.retain([])
            await waiting
            assert ids(await claim(sleeper)) == ["a"]

    async def test_a_session_that_is_gone_has_nothing_to_hand_back(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info("frozen")) as frozen, store.session(info("alive")) as alive:
            await claim_one(frozen)
            await bury(clock, alive)
            await claim_one(alive)
            with pytest.raises(SessionLost):
                await frozen.retain([])
            assert await state(store, "a") is State.RUNNING


async def bury(clock: TestClock, *alive: Session) -> None:
    """Let every session but `alive` die, and have what they held rescued."""
    assert await live(clock, 15, *alive)
    for session in alive:
        await session.maintain()
