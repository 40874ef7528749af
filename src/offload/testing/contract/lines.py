"""Who goes first: priority and place, queues and their turns, room, unknown tasks, pauses, delays and expiry."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from offload.broker import Feature, Store
from offload.job import Done, Isolation, Release, Retried, State, WorkerInfo
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import Fixtures, claim, claim_one, ids, info, job, needs, record, settle, state


class Lines(Fixtures):
    @needs(Feature.PRIORITY)
    async def test_higher_priority_goes_first_then_first_in_first_out(self, store: Store, clock: TestClock) -> None:
        priorities = {"a": 0, "b": 10, "c": -100, "d": 10, "e": 100, "f": 0}
        await store.enqueue([job(clock, id, priority=priority) for id, priority in priorities.items()])
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["e", "b", "d", "a", "f", "c"]

    async def test_a_release_keeps_its_place(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info()) as session:
            (lease,) = await claim(session, 1)
            await settle(session, lease, Release())
            assert ids(await claim(session)) == ["a", "b"]

    async def test_a_retry_goes_to_the_end_of_its_line(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info()) as session:
            (lease,) = await claim(session, 1)
            await settle(session, lease, Retried(0))
            assert ids(await claim(session)) == ["b", "a"]

    @needs(Feature.DELAY)
    async def test_a_delayed_job_is_not_given_before_its_time(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", delay=60)])
        async with store.session(info()) as session:
            clock.advance(timedelta(seconds=60, microseconds=-1))
            await session.maintain()
            assert await claim(session) == []
            assert await state(store, "a") is State.SCHEDULED
            clock.advance(timedelta(microseconds=1))
            await session.maintain()
            assert await state(store, "a") is State.READY
            assert ids(await claim(session)) == ["a"]

    @needs(Feature.DELAY)
    async def test_a_time_that_has_come_is_ready_at_once(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "past", delay=-60), job(clock, "now", delay=0)])
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["past", "now"]

    @needs(Feature.DELAY)
    async def test_delayed_jobs_become_ready_in_the_order_of_their_times(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "c", delay=30), job(clock, "a", delay=10), job(clock, "b1", delay=20), job(clock, "b2", delay=20)])
        clock.advance(40)
        await store.enqueue([job(clock, "ready before")])
        async with store.session(info()) as session:
            await session.maintain()
            assert ids(await claim(session)) == ["ready before", "a", "b1", "b2", "c"]

    @needs(Feature.DELAY)
    async def test_a_flood_that_is_due_is_promoted_in_bounded_pieces(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, delay=10) for _ in range(1_000)])
        await store.enqueue([job(clock, "last", delay=11)])
        clock.advance(11)
        async with store.session(info()) as session:
            assert (await session.maintain()).wait == 0
            assert await state(store, "last") is State.SCHEDULED
            await session.maintain()
            assert await store.counts() == {"default": {State.READY: 1_001}}

    @needs(Feature.DELAY)
    async def test_maintain_says_when_it_is_worth_asking_again(self, store: Store, clock: TestClock) -> None:
        async with store.session(info()) as session:
            assert (await session.maintain()).wait == 60
            await store.enqueue([job(clock, delay=45)])
            assert (await session.maintain()).wait == 45
            await store.enqueue([job(clock, delay=600), job(clock, delay=20.5)])
            assert (await session.maintain()).wait == 20.5

    async def test_queues_are_served_in_the_order_given(self, store: Store, clock: TestClock) -> None:
        await store.enqueue(
            [job(clock, "d", priority=100), job(clock, "v1", queue="vip"), job(clock, "o", queue="other"), job(clock, "v2", queue="vip")]
        )
        async with store.session(info()) as session:
            assert ids(await claim(session, 3, ["vip", "default"])) == ["v1", "v2", "d"]
            assert await claim(session, 3, ["vip", "default", "empty"]) == []
            assert ids(await claim(session, 3, ["other"])) == ["o"]

    async def test_a_queue_is_drained_before_the_next_one(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, f"{queue}{n}", queue=queue) for n in range(3) for queue in ("a", "b")])
        async with store.session(info()) as session:
            assert ids(await claim(session, 4, ["b", "a"])) == ["b0", "b1", "b2", "a0"]

    async def test_without_queues_each_fetch_starts_with_another_queue(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, f"{queue}{n}", queue=queue) for queue in ("a", "b", "c") for n in range(9)])
        async with store.session(info()) as session:
            firsts = [ids(await claim(session, 1))[0][0] for _ in range(6)]
            assert firsts == ["a", "b", "c", "a", "b", "c"]
            assert ids(await claim(session, 9)) == [f"a{n}" for n in range(2, 9)] + ["b2", "b3"]

    async def test_no_isolation_gets_more_than_its_room(self, store: Store, clock: TestClock) -> None:
        kinds: dict[str, Isolation] = {"quick": "async", "sync": "thread", "heavy": "process"}
        worker = WorkerInfo(name="w", host="here", pid=1, tasks=kinds)
        await store.enqueue([job(clock, f"{task}{n}", task=task) for task in ("heavy", "quick", "sync") for n in range(3)])
        room: Mapping[Isolation, int] = {"async": 2, "thread": 1, "process": 0}
        async with store.session(worker) as session:
            assert ids(await claim(session, 10, None, room)) == ["quick0", "quick1", "sync0"]
            assert await state(store, "heavy0") is State.READY
            assert ids(await claim(session)) == ["heavy0", "heavy1", "heavy2", "quick2", "sync1", "sync2"]

    async def test_a_job_without_room_hides_none_behind_it(self, store: Store, clock: TestClock) -> None:
        worker = WorkerInfo(name="w", host="here", pid=1, tasks={"heavy": "process", "greet": "async"})
        await store.enqueue([*(job(clock, task="heavy", priority=5) for _ in range(200)), job(clock, "a")])
        async with store.session(worker) as session:
            assert ids(await claim(session, 10, None, {"async": 10, "process": 0})) == ["a"]

    async def test_an_unknown_task_is_set_aside_and_not_failed(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "new", task="brand_new"), job(clock, "a")])
        async with store.session(info()) as session:
            assert session.unknown == set()
            assert ids(await claim(session)) == ["a"]
            assert session.unknown == {("default", "brand_new")}
            shown = await record(store, "new")
            assert (shown.state, shown.attempt, shown.worker, shown.errors) == (State.READY, 0, None, ())
            standing = await store.standing("new")
            assert standing is not None and standing.aside
            assert (await store.inspect()).aside == {"brand_new": 1}

    async def test_a_job_set_aside_is_given_to_a_worker_that_knows_its_task(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "new", task="brand_new")])
        async with store.session(info("old")) as old:
            assert await claim(old) == []
            async with store.session(info("new", "brand_new")) as new:
                assert ids(await claim(new)) == ["new"]
                assert (await store.inspect()).aside == {}

    async def test_a_job_set_aside_keeps_its_place(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "n1", task="new"), job(clock, "n2", task="new", priority=1)])
        async with store.session(info("old")) as old:
            assert await claim(old) == []
            await store.enqueue([job(clock, "a"), job(clock, "first", priority=2), job(clock, "n3", task="new")])
            async with store.session(info("both", "greet", "new")) as both:
                assert ids(await claim(both)) == ["first", "n2", "n1", "a", "n3"]

    async def test_a_job_set_aside_and_released_is_still_served(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "n", task="new")])
        async with store.session(info("old")) as old, store.session(info("new", "new")) as new:
            await claim(old)
            await settle(new, await claim_one(new), Release())
            assert await claim(old) == []
            await settle(new, await claim_one(new), Done())
        assert await state(store, "n") is State.SUCCEEDED

    async def test_jobs_set_aside_leave_a_long_line_passable(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, task="new") for _ in range(1_000)])
        await store.enqueue([job(clock, task="new") for _ in range(500)])
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            given = [id for _ in range(3) for id in ids(await claim(session, 10))]
        assert given == ["a"]

    async def test_a_paused_queue_gives_nothing_until_resumed(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "m", queue="mail"), job(clock, "a")])
        async with store.session(info()) as session:
            await store.pause("mail")
            assert await store.paused() == {"mail"}
            assert ids(await claim(session)) == ["a"]
            assert await claim(session, 10, ["mail"]) == []
            await store.resume("mail")
            assert await store.paused() == set()
            assert ids(await claim(session)) == ["m"]

    async def test_a_paused_queue_lets_running_jobs_go_on(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            await store.pause("default")
            await settle(session, lease, Done())
        assert await state(store, "a") is State.SUCCEEDED

    async def test_a_paused_queue_gives_no_jobs_set_aside_either(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "n", task="new")])
        async with store.session(info("old")) as old, store.session(info("new", "new")) as new:
            await claim(old)
            await store.pause("default")
            assert await claim(new) == []
            await store.resume("default")
            assert ids(await claim(new)) == ["n"]

    @needs(Feature.EXPIRY)
    async def test_a_job_not_started_in_time_expires_at_the_claim(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "late", expires_in=60), job(clock, "fine", expires_in=61)])
        clock.advance(60)
        async with store.session(info()) as session:
            assert ids(await claim(session)) == ["fine"]
        shown = await record(store, "late")
        assert (shown.state, shown.attempt, shown.finished_at) == (State.EXPIRED, 0, clock.now())
        assert shown.reason

    @needs(Feature.EXPIRY, Feature.DELAY)
    async def test_maintain_expires_what_nobody_claims(self, store: Store, clock: TestClock) -> None:
        await store.enqueue(
            [job(clock, "ready", expires_in=60), job(clock, "delayed", delay=3_600, expires_in=60), job(clock, "fine", expires_in=90)]
        )
        async with store.session(info()) as session:
            assert (await session.maintain()).wait == 60
            clock.advance(60)
            done = await session.maintain()
        assert sorted((each.event, each.id, each.task, each.queue) for each in done.touched) == [
            ("expired", "delayed", "greet", "default"),
            ("expired", "ready", "greet", "default"),
        ]
        assert await store.counts() == {"default": {State.EXPIRED: 2, State.READY: 1}}

    @needs(Feature.EXPIRY)
    async def test_a_flood_that_is_late_expires_in_bounded_pieces(self, store: Store, clock: TestClock) -> None:
        for n in range(2):
            await store.enqueue([job(clock, expires_in=60) for _ in range(1_000 - 999 * n)])
        clock.advance(60)
        async with store.session(info()) as session:
            first, second = await session.maintain(), await session.maintain()
        assert (first.wait, len(first.touched), len(second.touched)) == (0, 1_000, 1)

    @needs(Feature.EXPIRY)
    async def test_a_job_that_has_started_once_expires_no_more(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "retried", expires_in=60), job(clock, "released", expires_in=60)])
        async with store.session(info()) as session:
            retried, released = await claim(session)
            await session.settle([(retried, Retried(120)), (released, Release())])
            assert (await session.maintain()).wait == 60
            clock.advance(120)
            assert [each.event for each in (await session.maintain()).touched] == []
            assert sorted(ids(await claim(session))) == ["released", "retried"]

    @needs(Feature.EXPIRY)
    async def test_a_running_job_does_not_expire(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", expires_in=60)])
        async with store.session(info()) as session:
            lease = await claim_one(session)
            clock.advance(61)
            await session.maintain()
            await settle(session, lease, Done())
        assert await state(store, "a") is State.SUCCEEDED
