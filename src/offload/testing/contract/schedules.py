"""Schedules: ticks that fire once, overlap, rules that change or go, and rules made at run time."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from offload.broker import Feature, Session, Store
from offload.errors import IdConflict
from offload.job import Cancelled, Done, Due, Overlap, Pulse, Retried, Schedule, State
from offload.records import ScheduleRecord
from offload.testing.clock import START, TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, needs, rule, settle, state, tick_job

MINUTE = timedelta(minutes=1)


async def only_schedule(store: Store) -> ScheduleRecord:
    (shown,) = await store.schedules()
    return shown


async def fire_due(session: Session, clock: TestClock, id: str) -> bool:
    """What a worker does with the one schedule that is due: its job now, its next tick a minute later."""
    (due,) = await session.due()
    return await session.tick(due, due.next_at + MINUTE, [tick_job(clock, due.schedule, id)])


class Schedules(Fixtures):
    @needs(Feature.SCHEDULES)
    async def test_a_declared_schedule_is_stored_with_its_first_tick(self, store: Store) -> None:
        async with store.session(info(schedules=[(rule(), START + MINUTE)])):
            assert await store.schedules() == [ScheduleRecord(schedule=rule(), next_at=START + MINUTE, declared=True)]

    @needs(Feature.SCHEDULES)
    async def test_a_schedule_is_due_when_its_tick_has_come(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(), START + MINUTE), (rule("never"), None)])) as session:
            assert (await session.maintain()).wait == 60
            clock.advance(59)
            assert await session.due() == []
            assert (await session.maintain()).wait == 1
            clock.advance(1)
            assert await session.due() == [Due(rule(), START + MINUTE)]
            assert (await session.maintain()).wait == 0

    @needs(Feature.SCHEDULES)
    async def test_a_tick_moves_the_schedule_and_enqueues_its_job(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(), START + MINUTE)])) as session:
            clock.advance(60)
            assert await fire_due(session, clock, "t1")
            assert await session.due() == []
            shown = await only_schedule(store)
            assert (shown.next_at, shown.last_at, shown.last_job, shown.fired, shown.skipped) == (
                START + 2 * MINUTE,
                clock.now(),
                "t1",
                1,
                0,
            )
            lease = await claim_one(session)
            assert (lease.job.id, lease.job.schedule, lease.job.run_at) == ("t1", "report", clock.now())

    @needs(Feature.SCHEDULES)
    async def test_a_tick_fires_once_whatever_the_number_of_workers(self, store: Store, clock: TestClock) -> None:
        declared = [(rule(), START)]
        async with store.session(info("one", schedules=declared)) as one, store.session(info("two", schedules=declared)) as two:
            (due,) = await one.due()
            assert await two.due() == [due]
            assert await one.tick(due, START + MINUTE, [tick_job(clock, due.schedule, "from one")])
            assert not await two.tick(due, START + MINUTE, [tick_job(clock, due.schedule, "from two")])
            assert not await one.tick(due, START + MINUTE, [tick_job(clock, due.schedule, "again")])
            assert (await only_schedule(store)).fired == 1
            assert ids(await claim(one)) == ["from one"]

    @needs(Feature.SCHEDULES)
    async def test_a_tick_may_enqueue_nothing_or_much(self, store: Store, clock: TestClock) -> None:
        schedule = rule(overlap="allow")
        async with store.session(info(schedules=[(schedule, START)])) as session:
            (due,) = await session.due()
            assert await session.tick(due, START + MINUTE, [])
            shown = await only_schedule(store)
            assert (shown.next_at, shown.last_at, shown.last_job, shown.fired) == (START + MINUTE, None, None, 0)
            clock.advance(60)
            (due,) = await session.due()
            assert await session.tick(due, START + 2 * MINUTE, [tick_job(clock, schedule, id) for id in "abc"])
            shown = await only_schedule(store)
            assert (shown.last_job, shown.fired, shown.skipped) == ("c", 3, 0)
            assert ids(await claim(session)) == ["a", "b", "c"]

    @needs(Feature.SCHEDULES)
    async def test_a_rule_that_ends_is_never_due_again(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(), START)])) as session:
            (due,) = await session.due()
            assert await session.tick(due, None, [tick_job(clock, due.schedule)])
            clock.advance(86_400)
            assert await session.due() == []
            assert (await only_schedule(store)).next_at is None

    @needs(Feature.SCHEDULES)
    async def test_a_tick_that_conflicts_does_nothing(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "used", payload=b'{"n":1}')])
        async with store.session(info(schedules=[(rule(overlap="allow"), START)])) as session:
            (due,) = await session.due()
            before = await only_schedule(store)
            with pytest.raises(IdConflict):
                await session.tick(due, START + MINUTE, [tick_job(clock, due.schedule, "new"), tick_job(clock, due.schedule, "used")])
            assert await session.due() == [due]
            assert await store.schedules() == [before]
            assert await state(store, "new") is None

    @needs(Feature.SCHEDULES)
    @pytest.mark.parametrize("running", [False, True], ids=["ready", "running"])
    async def test_overlap_skip_skips_and_counts_while_the_last_job_lives(self, store: Store, clock: TestClock, running: bool) -> None:
        async with store.session(info(schedules=[(rule(overlap="skip"), START)])) as session:
            await fire_due(session, clock, "t1")
            if running:
                await claim_one(session)
            clock.advance(60)
            assert await fire_due(session, clock, "t2")
            shown = await only_schedule(store)
            assert (shown.fired, shown.skipped, shown.last_job, shown.next_at) == (1, 1, "t1", START + 2 * MINUTE)
            assert await state(store, "t2") is None

    @needs(Feature.SCHEDULES)
    async def test_overlap_counts_a_job_until_it_is_terminal(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(overlap="skip"), START)])) as session:
            await fire_due(session, clock, "t1")
            await settle(session, await claim_one(session), Retried(90))
            clock.advance(60)
            await fire_due(session, clock, "t2")
            assert await state(store, "t2") is None
            clock.advance(60)
            await session.maintain()
            await settle(session, await claim_one(session), Done())
            await fire_due(session, clock, "t3")
            assert await state(store, "t3") is State.READY

    @needs(Feature.SCHEDULES)
    async def test_overlap_allow_lets_jobs_run_side_by_side(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(overlap="allow"), START)])) as session:
            await fire_due(session, clock, "t1")
            clock.advance(60)
            await fire_due(session, clock, "t2")
            assert ids(await claim(session)) == ["t1", "t2"]

    @needs(Feature.SCHEDULES)
    async def test_overlap_replace_cancels_a_job_that_has_not_started(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(overlap="replace"), START)])) as session:
            await fire_due(session, clock, "t1")
            clock.advance(60)
            await fire_due(session, clock, "t2")
            assert await state(store, "t1") is State.CANCELLED
            assert ids(await claim(session)) == ["t2"]
            assert (await only_schedule(store)).fired == 2

    @needs(Feature.SCHEDULES)
    async def test_overlap_replace_stops_a_running_job_and_waits_for_its_end(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(overlap="replace"), START)])) as session:
            await fire_due(session, clock, "t1")
            running = await claim_one(session)
            clock.advance(60)
            await fire_due(session, clock, "t2")
            assert await state(store, "t2") is State.WAITING
            assert (await session.beat(Pulse())).stop == (("t1", running.claim),)
            await settle(session, running, Retried(0))
            assert await state(store, "t1") is State.CANCELLED
            assert ids(await claim(session)) == ["t2"]

    @needs(Feature.SCHEDULES)
    async def test_overlap_replace_keeps_one_job_in_line_with_the_newest_payload(self, store: Store, clock: TestClock) -> None:
        schedule = rule(overlap="replace")
        async with store.session(info(schedules=[(schedule, START)])) as session:
            await fire_due(session, clock, "t1")
            running = await claim_one(session)
            for n in (2, 3):
                clock.advance(60)
                (due,) = await session.due()
                assert await session.tick(due, due.next_at + MINUTE, [tick_job(clock, schedule, f"t{n}", payload=b'{"n":%d}' % n)])
            assert await state(store, "t3") is None
            await settle(session, running, Cancelled())
            lease = await claim_one(session)
            assert (lease.job.id, lease.job.payload) == ("t2", b'{"n":3}')

    @needs(Feature.SCHEDULES)
    async def test_an_unchanged_rule_keeps_its_tick_when_declared_again(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(), START + MINUTE)])):
            clock.advance(30)
            async with store.session(info(schedules=[(rule(), clock.now() + MINUTE)])):
                assert (await only_schedule(store)).next_at == START + MINUTE

    @needs(Feature.SCHEDULES)
    async def test_a_changed_rule_takes_its_new_tick(self, store: Store, clock: TestClock) -> None:
        async with store.session(info(schedules=[(rule(), START)])) as session:
            (due,) = await session.due()
            async with store.session(info(schedules=[(rule(every=120), START + 2 * MINUTE)])):
                shown = await only_schedule(store)
                assert (shown.schedule.every, shown.next_at) == (120, START + 2 * MINUTE)
                assert not await session.tick(due, START + MINUTE, [tick_job(clock, due.schedule)])
                assert await claim(session) == []

    @needs(Feature.SCHEDULES)
    async def test_a_schedule_no_live_worker_declares_goes_after_ten_minutes(self, store: Store, clock: TestClock) -> None:
        async with store.session(info("other")) as other:
            async with store.session(info("declares", schedules=[(rule(), None)])):
                await self.maintain_for(660, clock, other)
                assert len(await store.schedules()) == 1
            await self.maintain_for(540, clock, other)
            assert len(await store.schedules()) == 1
            await self.maintain_for(180, clock, other)
            assert await store.schedules() == []

    @needs(Feature.SCHEDULES)
    async def test_the_round_that_removes_a_schedule_waits_for_no_tick_of_it(self, store: Store, clock: TestClock) -> None:
        async with store.session(info("other")) as other:
            async with store.session(info("declares", schedules=[(rule(), START + MINUTE)])):
                pass
            done = await other.maintain()
            for _ in range(15):
                if not await store.schedules():
                    break
                clock.advance(60)
                done = await other.maintain()
            assert await store.schedules() == []
            assert done.wait == 60

    @needs(Feature.SCHEDULES)
    async def test_a_schedule_declared_again_in_time_stays(self, store: Store, clock: TestClock) -> None:
        declared = [(rule(), None)]
        async with store.session(info("other")) as other:
            async with store.session(info("declares", schedules=declared)):
                pass
            await self.maintain_for(540, clock, other)
            async with store.session(info("declares", schedules=declared)):
                await self.maintain_for(120, clock, other)
            await self.maintain_for(540, clock, other)
            assert len(await store.schedules()) == 1

    @needs(Feature.SCHEDULES)
    async def test_a_dynamic_schedule_needs_nobody_to_declare_it(self, store: Store, clock: TestClock) -> None:
        await store.schedule(rule(), START + MINUTE)
        async with store.session(info()) as session:
            await self.maintain_for(1_200, clock, session)
            assert await session.due() == [Due(rule(), START + MINUTE)]
        assert not (await only_schedule(store)).declared

    async def maintain_for(self, seconds: int, clock: TestClock, session: Session) -> None:
        """Let time pass, with a round of maintenance each minute."""
        for _ in range(seconds // 60):
            await session.maintain()
            clock.advance(60)
        await session.maintain()

    @needs(Feature.SCHEDULES)
    async def test_a_dynamic_schedule_is_replaced_under_its_name(self, store: Store) -> None:
        await store.schedule(rule(), START + MINUTE)
        await store.schedule(rule(), START + 5 * MINUTE)
        assert (await only_schedule(store)).next_at == START + MINUTE
        await store.schedule(rule(every=300), START + 5 * MINUTE)
        shown = await only_schedule(store)
        assert (shown.schedule, shown.next_at) == (rule(every=300), START + 5 * MINUTE)

    @needs(Feature.SCHEDULES)
    async def test_a_schedule_belongs_to_who_spoke_last_code_or_program(self, store: Store) -> None:
        await store.schedule(rule(), START)
        async with store.session(info(schedules=[(rule(), START)])):
            assert (await only_schedule(store)).declared
            await store.schedule(rule(), START)
            assert not (await only_schedule(store)).declared

    @needs(Feature.SCHEDULES)
    async def test_a_changed_rule_stays_paused(self, store: Store) -> None:
        await store.schedule(rule(), START)
        await store.pause_schedule("report", True)
        await store.schedule(rule(every=300), START)
        assert (await only_schedule(store)).paused

    @needs(Feature.SCHEDULES)
    async def test_schedules_are_listed_by_name(self, store: Store) -> None:
        for name in ("b", "c", "a"):
            await store.schedule(rule(name), None)
        assert [shown.schedule.name for shown in await store.schedules()] == ["a", "b", "c"]

    @needs(Feature.SCHEDULES)
    async def test_a_rule_comes_back_with_all_its_parts(self, store: Store) -> None:
        full = Schedule(name="full", draft=rule().draft, cron="0 9 * * MON", timezone="Europe/Berlin", overlap="allow", missed="all")
        first = datetime(2030, 1, 7, 8, tzinfo=START.tzinfo)
        await store.schedule(full, first)
        assert await store.schedules() == [ScheduleRecord(schedule=full, next_at=first)]

    @needs(Feature.SCHEDULES)
    async def test_unscheduling_leaves_the_jobs(self, store: Store, clock: TestClock) -> None:
        await store.schedule(rule(), START)
        async with store.session(info()) as session:
            await fire_due(session, clock, "t1")
            assert await store.unschedule("report")
            assert not await store.unschedule("report")
            assert await store.schedules() == []
            assert ids(await claim(session)) == ["t1"]

    @needs(Feature.SCHEDULES)
    async def test_a_paused_schedule_does_not_tick(self, store: Store, clock: TestClock) -> None:
        await store.schedule(rule(), START)
        async with store.session(info()) as session:
            (due,) = await session.due()
            assert await store.pause_schedule("report", True)
            assert (await only_schedule(store)).paused
            assert await session.due() == []
            assert not await session.tick(due, START + MINUTE, [tick_job(clock, due.schedule)])
            clock.advance(600)
            assert await store.pause_schedule("report", False, START + 11 * MINUTE)
            shown = await only_schedule(store)
            assert (shown.paused, shown.next_at) == (False, START + 11 * MINUTE)
            assert await session.due() == []

    @needs(Feature.SCHEDULES)
    async def test_a_pause_outlives_the_deployment(self, store: Store) -> None:
        async with store.session(info(schedules=[(rule(), START)])):
            await store.pause_schedule("report", True)
        async with store.session(info(schedules=[(rule(), START)])) as session:
            assert await session.due() == []

    @needs(Feature.SCHEDULES)
    async def test_pausing_a_schedule_that_does_not_exist_says_so(self, store: Store) -> None:
        assert not await store.pause_schedule("report", True)
        assert not await store.pause_schedule("report", False, START)

    @needs(Feature.SCHEDULES)
    async def test_firing_now_leaves_the_rule_as_it_is(self, store: Store, clock: TestClock) -> None:
        await store.schedule(rule(), START + MINUTE)
        assert await store.fire("report", tick_job(clock, rule(), "extra")) == "extra"
        assert (await only_schedule(store)).next_at == START + MINUTE
        assert await state(store, "extra") is State.READY

    @needs(Feature.SCHEDULES)
    @pytest.mark.parametrize(("overlap", "second"), [("skip", None), ("allow", "x2"), ("replace", "x2")])
    async def test_firing_now_keeps_to_the_overlap(self, store: Store, clock: TestClock, overlap: Overlap, second: str | None) -> None:
        schedule = rule(overlap=overlap)
        await store.schedule(schedule, None)
        assert await store.fire("report", tick_job(clock, schedule, "x1")) == "x1"
        assert await store.fire("report", tick_job(clock, schedule, "x2")) == second

    @needs(Feature.SCHEDULES)
    async def test_schedules_do_not_get_in_the_way_of_each_other(self, store: Store, clock: TestClock) -> None:
        await store.schedule(rule("one"), START)
        await store.schedule(rule("two"), START)
        async with store.session(info()) as session:
            for due in await session.due():
                assert await session.tick(due, None, [tick_job(clock, due.schedule, due.schedule.name)])
            assert sorted(ids(await claim(session))) == ["one", "two"]
