"""What can be asked: records, pages, counts, results, and the facts behind `why` and `doctor`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from offload.broker import Broker, Feature, Store, check
from offload.errors import Unsupported
from offload.job import Cancelled, Dead, Done, Retried, State, UniqueKey
from offload.records import Filter, Record
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import PATIENCE, Fixtures, claim, claim_one, failure, ids, info, job, needs, record, settle


class Records(Fixtures):
    async def test_a_record_shows_all_that_was_enqueued(self, store: Store, clock: TestClock) -> None:
        fraction = timedelta(microseconds=123_457)
        sent = job(
            clock,
            "a",
            task="mail.send",
            payload=b'{"n": 1}',
            queue="mail",
            priority=-7,
            run_at=clock.now() + fraction,
            expires_at=clock.now() + 2 * fraction,
            timeout=0.5,
            unique=UniqueKey("k", 60.0, "raise"),
            schedule="nightly",
            overlap="allow",
            keep=12.5,
        )
        await store.enqueue([sent])
        shown = await record(store, "a")
        assert {name: getattr(shown, name) for name in sent.__struct_fields__} == {
            name: getattr(sent, name) for name in sent.__struct_fields__
        }
        assert (shown.state, shown.attempt, shown.crashes, shown.errors, shown.result) == (State.SCHEDULED, 0, 0, (), None)

    async def test_get_leaves_out_what_does_not_exist(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        found = await store.get(["b", "unknown", "a"])
        assert set(found) == {"a", "b"}
        assert all(isinstance(each, Record) for each in found.values())

    async def test_find_gives_the_newest_first(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        clock.advance(1)
        await store.enqueue([job(clock, "c")])
        assert ids(await store.find(Filter(), 10)) == ["c", "b", "a"]
        assert ids(await store.find(Filter(), 2)) == ["c", "b"]

    async def test_find_pages_through_everything_once(self, store: Store, clock: TestClock) -> None:
        for _ in range(5):
            await store.enqueue([job(clock) for _ in range(5)])
            clock.advance(1)
        seen: list[str] = []
        while page := await store.find(Filter(), 4, seen[-1] if seen else None):
            assert len(page) <= 4
            seen += ids(page)
        assert seen == ids(await store.find(Filter(), 100))
        assert len(seen) == len(set(seen)) == 25

    async def test_find_tells_of_a_state_only_those_that_are_in_it(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock) for _ in range(200)])
        over = asyncio.Event()

        async def work() -> None:
            async with store.session(info()) as session:
                await claim(session, 1)  # somebody is in it all the time
                while leases := await claim(session, 2):
                    assert await session.settle([(lease, Done()) for lease in leases]) == []
                    await asyncio.sleep(0)
            over.set()

        async def look(text: str | None) -> set[State]:
            seen: set[State] = set()
            while not over.is_set():
                seen |= {each.state for each in await store.find(Filter(state=State.RUNNING, text=text), 100)}
                await asyncio.sleep(0)
            return seen

        _, *seen = await asyncio.gather(work(), look(None), look("greet"))
        assert seen == [{State.RUNNING}, {State.RUNNING}]

    async def test_find_sees_jobs_wherever_they_stand(self, store: Store, clock: TestClock) -> None:
        key = UniqueKey("k", on_conflict="keep_last")
        await store.enqueue([job(clock, "done"), job(clock, "dead"), job(clock, "running"), job(clock, "cancelled")])
        async with store.session(info()) as session:
            leases = {lease.job.id: lease for lease in await claim(session)}
            await session.settle([(leases["done"], Done()), (leases["dead"], Dead("d")), (leases["cancelled"], Cancelled())])
            await store.enqueue([job(clock, "ready", unique=key), job(clock, "waiting", unique=key), job(clock, "scheduled", delay=60)])
            states = {each.id: each.state for each in await store.find(Filter(), 100)}
            assert states == {id: State(id.upper() if id != "done" else "SUCCEEDED") for id in states}
            assert len(states) == 7
            for id, state in states.items():
                assert ids(await store.find(Filter(state=state), 100)) == [id]

    async def test_find_narrows_by_task_and_queue_together(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a", queue="mail"), job(clock, "b"), job(clock, "c", task="other", queue="mail")])
        assert ids(await store.find(Filter(task="greet"), 10)) == ["b", "a"]
        assert ids(await store.find(Filter(queue="mail"), 10)) == ["c", "a"]
        assert ids(await store.find(Filter(queue="mail", task="greet", state=State.READY), 10)) == ["a"]
        assert await store.find(Filter(queue="mail", task="greet", state=State.DEAD), 10) == []

    async def test_find_seeks_text_in_id_task_payload_and_errors(self, store: Store, clock: TestClock) -> None:
        await store.enqueue(
            [
                job(clock, "by-Needle-id"),
                job(clock, "b", task="needle.task"),
                job(clock, "c", payload=b'{"x":"NEEDLE"}'),
                job(clock, "d"),
                job(clock, "e"),
            ]
        )
        async with store.session(info()) as session:
            for lease in await claim(session):
                if lease.job.id == "d":
                    await settle(session, lease, Retried(60, failure(clock, "lost a needle")))
        assert sorted(ids(await store.find(Filter(text="needle"), 10))) == ["b", "by-Needle-id", "c", "d"]
        assert await store.find(Filter(text="need%le"), 10) == []
        assert await store.find(Filter(text="n_edle"), 10) == []

    async def test_counts_leave_out_what_is_nought(self, store: Store, clock: TestClock) -> None:
        assert await store.counts() == {}
        await store.enqueue([job(clock), job(clock, delay=60), job(clock, queue="mail"), job(clock, queue="mail", task="new")])
        async with store.session(info()) as session:
            (lease, *_) = await claim(session, 10, ["mail"])
            assert await store.counts() == {"default": {State.READY: 1, State.SCHEDULED: 1}, "mail": {State.RUNNING: 1, State.READY: 1}}
            await settle(session, lease, Done())
        assert (await store.counts())["mail"] == {State.SUCCEEDED: 1, State.READY: 1}

    @needs(Feature.RESULTS)
    async def test_waiting_for_a_result_ends_when_it_is_there(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a"), job(clock, "b")])
        async with store.session(info()) as session, asyncio.timeout(PATIENCE):
            leases = await claim(session)
            waiting = asyncio.create_task(store.finished(["a", "b"], 10 * PATIENCE))
            for lease in leases:
                await asyncio.sleep(0)
                assert not waiting.done()
                await settle(session, lease, Done(b"1"))
            found = await waiting
        assert {id: (each.state, each.result) for id, each in found.items()} == {"a": (State.SUCCEEDED, 1), "b": (State.SUCCEEDED, 1)}

    @needs(Feature.RESULTS)
    @pytest.mark.parametrize("how", ["cancel", "dead", "expire", "delete", "forget"])
    async def test_waiting_for_a_result_ends_with_the_job_however_it_ends(self, store: Store, clock: TestClock, how: str) -> None:
        await store.enqueue([job(clock, "a", expires_in=60, keep=0)])
        async with store.session(info()) as session, asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(store.finished(["a"], 10 * PATIENCE))
            await asyncio.sleep(0)
            match how:
                case "cancel":
                    await store.cancel(["a"])
                case "dead":
                    await settle(session, await claim_one(session), Dead("d"))
                case "forget":
                    await settle(session, await claim_one(session), Done())
                case "expire":
                    clock.advance(60)
                    await session.maintain()
                case _:
                    await store.delete(["a"])
            found = await waiting
        expected = {"cancel": [State.CANCELLED], "dead": [State.DEAD], "expire": [State.EXPIRED], "delete": [], "forget": []}[how]
        assert [each.state for each in found.values()] == expected

    @needs(Feature.RESULTS)
    async def test_waiting_for_a_result_ends_with_its_time(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "done"), job(clock, "open")])
        async with store.session(info()) as session, asyncio.timeout(PATIENCE):
            (done, _) = await claim(session)
            await settle(session, done, Done())
            assert list(await store.finished(["done", "open"], 0.02)) == ["done"]
            assert await store.finished(["open"], 0) == {}

    @needs(Feature.RESULTS)
    async def test_nobody_waits_for_what_has_ended_or_does_not_exist(self, store: Store, clock: TestClock) -> None:
        await store.enqueue([job(clock, "a")])
        await store.cancel(["a"])
        async with asyncio.timeout(PATIENCE):
            assert list(await store.finished(["a", "unknown"], 10 * PATIENCE)) == ["a"]
            assert await store.finished([], 10 * PATIENCE) == {}

    async def test_standing_tells_why_a_ready_job_does_not_run(self, store: Store, clock: TestClock) -> None:
        assert await store.standing("a") is None
        await store.enqueue([job(clock, "b"), job(clock, "a"), job(clock, "c", priority=9), job(clock, queue="other")])
        await store.pause("default")
        async with store.session(info()) as session:
            standing = await store.standing("a")
            assert standing is not None
            assert (standing.record, standing.ahead, standing.paused, standing.aside) == (await record(store, "a"), 2, True, False)
            assert (standing.waits_for, standing.now) == (None, clock.now())
            assert [each.id for each in standing.sessions] == [session.id]

    @needs(Feature.UNIQUE)
    async def test_standing_tells_behind_whom_a_job_waits(self, store: Store, clock: TestClock) -> None:
        key = UniqueKey("k", on_conflict="keep_last")
        await store.enqueue([job(clock, "a", unique=key), job(clock, "b", unique=key)])
        standing = await store.standing("b")
        assert standing is not None
        assert (standing.record.state, standing.waits_for) == (State.WAITING, "a")

    async def test_inspect_tells_what_doctor_judges_by(self, store: Store, clock: TestClock) -> None:
        began = clock.now()
        await store.enqueue([job(clock, "old", queue="mail"), job(clock, "large", payload=b'{"x":"' + b"x" * 20_000 + b'"}')])
        clock.advance(5)
        await store.enqueue([job(clock, "young", queue="mail"), job(clock, "n", task="new", queue="other")])
        await store.pause("mail")
        async with store.session(info()) as session:
            (lease,) = await claim(session, 10, ["default", "other"])
            clock.advance(2.5)
            await settle(session, lease, Done())
            facts = await store.inspect()
            assert (facts.schema, facts.now, facts.paused) == (facts.newest_schema, clock.now(), ("mail",))
            assert [each.id for each in facts.sessions] == [session.id]
            assert (dict(facts.aside), facts.schedules) == ({"new": 1}, ())
            assert facts.oldest_ready["mail"] == began
            assert facts.large == (("large", "greet", 20_008),)
            assert facts.finished == (("greet", 2.5),)

    async def test_migrating_what_is_new_changes_nothing(self, store: Store) -> None:
        before, after = await store.migrate()
        assert before == after == (await store.inspect()).newest_schema

    async def test_what_a_broker_declares_it_does_not_refuse(self, broker: Broker) -> None:
        for feature in Feature:
            if feature in broker.features:
                check(type(broker), [feature], "task greet")
            else:
                with pytest.raises(Unsupported, match=feature.value):
                    check(type(broker), [feature], "task greet")
