"""The app: enqueueing, controlling, observing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from offload import (
    BadDeclaration,
    BadPayload,
    BrokerNotInstalled,
    Concurrency,
    Event,
    IdConflict,
    Job,
    JobNotFound,
    LoopRunning,
    Offload,
    Rate,
    State,
    UniqueConflict,
    Unsupported,
    Worker,
    Workflow,
)
from offload.broker import ENGINES, Feature, broker_class
from offload.brokers.memory import MemoryBroker
from offload.job import Draft
from offload.testing.clock import START, TestClock


@pytest.fixture
def app() -> Offload:
    return Offload("memory://", clock=TestClock())


def greet(name: str) -> str:
    return f"hello {name}"


def test_the_url_comes_from_the_environment_or_is_a_file_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLOAD_URL", "memory://")
    assert Offload().url == "memory://"
    monkeypatch.delenv("OFFLOAD_URL")
    assert Offload("memory://").url == "memory://"
    assert Offload().url == "sqlite:///offload.db"


def test_a_url_of_an_unknown_engine_is_refused_at_once() -> None:
    with pytest.raises(BadDeclaration, match="no broker serves 'nosuch': known are memory://, postgres://"):
        Offload("nosuch://localhost")
    with pytest.raises(BadDeclaration, match=r"no broker serves 'offload\.db'"):
        Offload("offload.db")


def test_a_url_of_an_engine_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("postgresql", "offload_no_such_module:Broker [postgres]", "offload.brokers")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    with pytest.raises(BrokerNotInstalled, match=r"from a clone of Offload: pip install '\.\[postgres\]'"):
        Offload("postgresql://localhost/shop")


@pytest.mark.parametrize(
    ("url", "extra"),
    [
        ("amqp://localhost", "rabbitmq"),
        ("AMQPS://localhost", "rabbitmq"),
        ("sqs://eu-central-1", "sqs"),
        ("kafka://localhost:9092", "kafka"),
        ("pubsub://project", "pubsub"),
    ],
)
def test_a_url_of_an_engine_that_is_yet_to_come_says_what_to_use_now(url: str, extra: str) -> None:
    said = rf"does not contain the engine of .*:// \(the extra '{extra}'\) yet; use postgresql://, redis:// or sqlite:///"
    with pytest.raises(BrokerNotInstalled, match=said):
        Offload(url)


def test_timings_that_cannot_work_are_refused() -> None:
    with pytest.raises(BadDeclaration, match="at most half of session_timeout"):
        Offload("memory://", session_timeout=5, heartbeat=3)


def test_enqueue_by_name_goes_through_the_task_where_it_is_known(app: Offload) -> None:
    app.task(name="greet", queue="mail", priority=7)(greet)
    record = app.enqueue("greet", "Ann").record()
    assert (record.queue, record.priority, record.payload) == ("mail", 7, b'{"name":"Ann"}')
    with pytest.raises(BadPayload, match="expected str"):
        app.enqueue("greet", 7)


def test_enqueue_by_name_of_a_task_that_is_unknown_here_takes_keywords(app: Offload) -> None:
    record = app.using(priority=3, id="one").enqueue("mail.digest", user_id=7, name="x").record()
    assert (record.id, record.task, record.queue, record.priority, record.payload) == (
        "one",
        "mail.digest",
        "default",
        3,
        b'{"user_id":7,"name":"x"}',
    )
    with pytest.raises(BadPayload, match=r"'mail.digest' is not registered here, .*: pass keyword arguments"):
        app.enqueue("mail.digest", 7)


def test_enqueue_by_name_has_an_async_form(app: Offload) -> None:
    async def main() -> list[str]:
        return [(await app.aenqueue("a", x=1)).id, (await app.using(id="two").aenqueue("a", x=1)).id]

    first, second = asyncio.run(main())
    assert (app.handle(first).record().task, second) == ("a", "two")


def test_enqueue_inside_a_running_loop_names_the_async_form(app: Offload) -> None:
    task = app.task(greet)

    async def main() -> None:
        calls: list[Any] = [
            lambda: task.enqueue("Ann"),
            lambda: task.using(delay=1).enqueue("Ann"),
            lambda: app.enqueue("x"),
            lambda: app.enqueue_many([]),
            app.counts,
            lambda: app.schedule("s", task.job("Ann"), every=60),
        ]
        for call in calls:
            with pytest.raises(LoopRunning, match="use: await a"):
                call()

    asyncio.run(main())
    assert app.counts() == {}


def test_many_jobs_are_enqueued_in_order(app: Offload) -> None:
    task = app.task(greet)
    handles = app.enqueue_many(task.job(str(i)) for i in range(2_500))
    assert len({handle.id for handle in handles}) == 2_500
    assert app.counts() == {"default": {State.READY: 2_500}}
    assert handles[1_700].record().payload == b'{"name":"1700"}'
    assert app.enqueue_many([]) == []


def test_each_thousand_is_stored_whole_or_not_at_all(app: Offload) -> None:
    task = app.task(greet)
    task.using(id="taken").enqueue("Ann")
    drafts: list[Draft[str]] = [task.job(str(i)) for i in range(1_500)]
    drafts[1_200] = task.using(id="taken").job("Bob")

    async def main() -> None:
        with pytest.raises(IdConflict, match="'taken' was already used"):
            await app.aenqueue_many(drafts)

    asyncio.run(main())
    assert app.counts() == {"default": {State.READY: 1_001}}


def test_the_drafts_are_read_in_the_thread_of_the_caller(app: Offload) -> None:
    import threading

    seen: set[int] = set()

    def drafts() -> Iterator[Draft[str]]:
        for _ in range(3):
            seen.add(threading.get_ident())
            yield task.job("Ann")

    task = app.task(greet)
    app.enqueue_many(drafts())
    assert seen == {threading.get_ident()}


def test_a_key_that_is_taken_gives_the_handle_of_its_holder_or_raises(app: Offload) -> None:
    task = app.task(name="greet", unique="greet:{name}")(greet)
    assert task.enqueue("Ann") == task.enqueue("Ann")
    assert task.enqueue("Bob") != task.enqueue("Ann")
    from offload import Unique

    with pytest.raises(UniqueConflict, match="'greet:Ann' is held by job"):
        task.using(unique=Unique("greet:Ann", on_conflict="raise")).enqueue("Ann")


def test_why_says_where_to_look_for_a_whole(app: Offload) -> None:
    flow = Workflow("flow")
    flow.add(app.task(name="greet")(greet).job("Ann"))
    for whole, kind in ((flow.enqueue().id, "workflow"), (app.batch("mails").open().id, "batch")):
        with pytest.raises(JobNotFound, match=f"it is the id of a {kind}: see `offload {kind}e?s show {whole}`"):
            app.why(whole)


def test_finding_and_counting(app: Offload) -> None:
    task = app.task(name="greet", queue="mail")(greet)
    first, second = task.using(unique="k").enqueue("Ann"), task.using(delay=60).enqueue("Bob")
    assert [record.id for record in app.find()] == [second.id, first.id]
    for name in ("SCHEDULED", "scheduled", "Scheduled"):
        assert [record.id for record in app.find(state=name)] == [second.id]
    assert [record.id for record in app.find(key="k", task="greet", queue="mail")] == [first.id]
    assert [record.id for record in app.find(text="ann")] == [first.id]
    assert [record.id for record in app.find(limit=1, after=second.id)] == [first.id]
    for call in (app.find, app.workflows, app.batches, app.limits):
        with pytest.raises(
            BadDeclaration, match=rf"{call.__name__.removeprefix('a')}\(limit=...\) is how many there may be, at least 1, not -1"
        ):
            call(limit=-1)
    assert app.counts() == {"mail": {State.READY: 1, State.SCHEDULED: 1}}
    with pytest.raises(BadDeclaration, match="there is no state 'DONE'; known are SCHEDULED"):
        app.find(state="DONE")


def test_cancelling_retrying_deleting(app: Offload) -> None:
    task = app.task(name="greet")(greet)
    first, second = task.enqueue("Ann"), task.enqueue("Bob")
    assert app.cancel(first.id) == {first.id}
    assert app.cancel([first.id, second.id]) == {second.id}
    assert app.retry(first.id, {"name": "Cid"}) == {first.id}
    assert (first.record().state, first.record().payload) == (State.READY, b'{"name":"Cid"}')
    assert app.retry([first.id, second.id]) == {second.id}
    assert app.delete([first.id, "nothing"]) == {first.id}
    assert [record.id for record in app.find()] == [second.id]


def test_a_retry_with_arguments_that_do_not_fit_changes_nothing(app: Offload) -> None:
    job = app.task(name="greet")(greet).enqueue("Ann")
    app.cancel(job.id)
    with pytest.raises(BadPayload, match="there is no parameter 'nick'"):
        app.retry(job.id, {"name": "Bob", "nick": "B"})
    assert job.record().state is State.CANCELLED


def test_pausing_and_explaining(app: Offload) -> None:
    job = app.task(name="greet", queue="mail")(greet).enqueue("Ann")
    app.pause("mail")
    assert app.paused() == {"mail"}
    assert "paused" in app.why(job.id)
    app.resume("mail")
    assert app.paused() == set()
    assert app.workers() == []
    assert any("worker" in str(finding) for finding in app.doctor())
    with pytest.raises(JobNotFound, match="no job nothing"):
        app.why("nothing")


@pytest.mark.parametrize("url", ["memory://", "sqlite:///file.db"])
def test_jobs_are_found_by_any_of_their_keys(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = Offload(url)
    limits = [Concurrency(2, key="slot:{name}"), Rate("1/s", key="rate")]
    app.task(name="greet", unique="unique:{name}", order_by="order:{name}", limits=limits)(greet)
    ann, bob = app.enqueue("greet", "Ann").id, app.enqueue("greet", "Bob").id
    app.task(name="plain")(greet).enqueue("Ann")
    for key in ("unique:Ann", "order:Ann", "slot:Ann"):
        assert [record.id for record in app.find(key=key)] == [ann], key
    assert [record.id for record in app.find(key="rate")] == [bob, ann]
    assert [record.id for record in app.find(key="rate", state="waiting")] == [bob]
    assert app.find(key="{name}") == []
    app.close()


def test_what_a_key_allows_is_shown_and_can_be_changed(app: Offload) -> None:
    task = app.task(name="greet", limits=[Concurrency(1, key="name:{name}")])(greet)
    ids = [task.enqueue("Ann").id for _ in range(4)]
    [limit] = app.limits()
    assert (limit.key, limit.kind, limit.n, limit.holders, limit.held, limit.waiting) == ("name:Ann", "slot", 1, (ids[0],), 1, 3)
    assert "its 1 slot is held by job " in app.why(ids[1])
    app.set_limit("name:Ann", concurrency=2)
    [limit] = app.limits()
    assert (limit.n, limit.held, limit.changed) == (2, 2, True)
    app.set_limit("name:Ann", paused=True)
    assert {limit.paused for limit in app.limits()} == {True}
    assert app.limits()[0].n == 2  # what is not given stays
    assert "The key 'name:Ann' is paused; `offload limits resume name:Ann` lets it go on" in app.why(ids[2])
    assert "key 'name:Ann' is paused" in [finding.title for finding in app.doctor()]
    app.set_limit("name:Ann", concurrency=None, paused=False)
    [limit] = app.limits()
    assert (limit.n, limit.held, limit.changed, limit.paused) == (1, 2, False, False)


def test_what_cannot_be_set_for_a_key_is_refused_before_anything_is_asked(pipe: Offload) -> None:
    with pytest.raises(BadDeclaration, match="changes nothing"):
        pipe.set_limit("k")
    with pytest.raises(BadDeclaration, match="paused=True stops a key"):
        pipe.set_limit("k", concurrency=0)


def test_a_dead_job_that_holds_its_line_is_told_of(app: Offload) -> None:
    @app.task(order_by="account:{n}", on_dead="hold", retry=False)
    def fails(n: int) -> None:
        raise ValueError

    first, second = fails.enqueue(7).id, fails.enqueue(7).id
    asyncio.run(Worker(app).drain())
    assert app.limits()[0].dead
    assert f"which job {first} keeps although it is dead. `offload jobs retry {first}`" in app.why(second)
    assert "the line of key 'account:7' stands still" in [finding.title for finding in app.doctor()]
    app.delete(first)
    assert app.handle(second).record().state is State.READY


def test_every_control_function_has_an_async_form(app: Offload) -> None:
    async def main() -> None:
        job = await app.task(name="greet")(greet).aenqueue("Ann")
        await app.apause("default")
        assert await app.apaused() == {"default"}
        assert "paused" in await app.awhy(job.id)
        await app.aresume("default")
        assert [record.id for record in await app.afind(state=State.READY)] == [job.id]
        assert await app.acounts() == {"default": {State.READY: 1}}
        assert await app.acancel(job.id) == {job.id}
        assert await app.aretry(job.id) == {job.id}
        assert await app.adelete(job.id) == {job.id}
        assert await app.aworkers() == []
        await app.adoctor()

    asyncio.run(main())


def test_what_is_enqueued_is_told_to_observers(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []

    @app.on("enqueued")
    def first(event: Event) -> None:
        raise OSError("observer down")

    @app.on("enqueued")
    async def second(event: Event) -> None:
        told.append(event)

    task = app.task(name="greet", unique="{name}")(greet)
    with caplog.at_level(logging.ERROR):
        handle = task.enqueue("Ann")
        task.enqueue("Ann")
    assert told == [Event(name="enqueued", id=handle.id, task="greet", queue="default", at=START)]
    assert "observer down" in caplog.text
    assert app.observes("enqueued")
    assert not app.observes("dead")


def test_an_unknown_event_is_refused(app: Offload) -> None:
    with pytest.raises(BadDeclaration, match="there is no event 'finished'; known are enqueued, started"):
        app.on("finished")(print)  # pyright: ignore[reportArgumentType]


def test_middleware_is_async(app: Offload) -> None:
    @app.middleware
    async def around(job: Job, call_next: Callable[[], Awaitable[Any]]) -> Any:
        return await call_next()

    assert app.middlewares == [around]
    with pytest.raises(BadDeclaration, match="goes on an `async def m"):
        app.middleware(greet)  # pyright: ignore[reportArgumentType]


async def generator(app: Offload) -> AsyncIterator[str]:
    yield f"state of {len(app.tasks)}"


@pytest.mark.parametrize(("lifespan", "state"), [(generator, "state of 0"), (asynccontextmanager(generator), "state of 0"), (None, None)])
def test_a_lifespan_opens_what_tasks_share(lifespan: Any, state: str | None) -> None:
    async def main() -> Any:
        async with Offload("memory://", lifespan=lifespan).opened_lifespan() as opened:
            return opened

    assert asyncio.run(main()) == state


def test_a_lifespan_that_is_none_is_refused() -> None:
    with pytest.raises(BadDeclaration, match="lifespan= must give an async context manager"):
        Offload("memory://", lifespan=lambda app: 7).opened_lifespan()  # pyright: ignore[reportArgumentType]


class Pipe(MemoryBroker):
    """A broker that honours nothing."""

    features: ClassVar[frozenset[Feature]] = frozenset()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Offload:
    monkeypatch.setattr("offload.clients.broker_class", lambda url: Pipe)
    return Offload("memory://")


@pytest.mark.parametrize(
    ("options", "feature"), [({"priority": 1}, "priority"), ({"unique": "k"}, "unique key"), ({"expires_in": 1}, "expiry")]
)
def test_what_the_broker_cannot_keep_is_refused_where_the_task_is_declared(pipe: Offload, options: dict[str, Any], feature: str) -> None:
    with pytest.raises(Unsupported, match=rf"Pipe cannot keep a {feature} \(task greet\); use PostgreSQL, SQLite or Redis"):
        pipe.task(name="greet", **options)(greet)


def test_only_engines_that_can_are_recommended(pipe: Offload) -> None:
    able = [name for scheme, name in ENGINES.items() if Feature.ORDER in broker_class(f"{scheme}:").features]
    named = " or ".join([", ".join(able[:-1]), able[-1]])
    with pytest.raises(Unsupported, match=rf"Pipe cannot keep a strict order by key \(task greet\); use {named} for this task$"):
        pipe.task(name="greet", order_by="k")(greet)
    assert able


def test_where_no_engine_can_that_is_said(pipe: Offload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.broker.ENGINES", {"nosuch": "Nosuch"})
    with pytest.raises(Unsupported, match="use a later version of Offload, for no engine of this one can"):
        pipe.task(name="greet", order_by="k")(greet)


def test_what_the_broker_cannot_keep_is_refused_where_it_is_asked_for(pipe: Offload) -> None:
    task = pipe.task(name="greet")(greet)
    task.enqueue("Ann")
    with pytest.raises(Unsupported, match=r"Pipe cannot keep a delay \(job .* of greet\)"):
        task.using(delay=60).enqueue("Ann")
    with pytest.raises(Unsupported, match=r"Pipe cannot keep a schedule \(schedule s\)"):
        pipe.schedule("s", task.job("Ann"), every=60)


def test_under_test_the_app_uses_another_broker_and_clock(app: Offload) -> None:
    task = app.task(greet)
    outside = task.enqueue("Ann")
    clock = TestClock()
    clock.advance(60)
    with app.testing(clock=clock):
        assert app.clock is clock
        assert app.counts() == {}
        assert (task.enqueue("Bob").record().enqueued_at - START).total_seconds() == 60
        with pytest.raises(JobNotFound):
            outside.record()
    assert app.find()[0].id == outside.id


def test_the_app_can_be_under_test_in_a_coroutine(app: Offload) -> None:
    async def main() -> None:
        async with app.testing():
            await app.aenqueue("x")
            assert await app.acounts() == {"default": {State.READY: 1}}
        with app.testing():
            await app.aenqueue("y")
            assert await app.acounts() == {"default": {State.READY: 1}}
        assert await app.acounts() == {}

    asyncio.run(main())


def test_the_app_closes_and_opens_again(app: Offload) -> None:
    async def main() -> None:
        async with app as entered:
            assert entered is app
            await app.aenqueue("x")
        assert await app.acounts() == {"default": {State.READY: 1}}
        await app.aclose()

    asyncio.run(main())
    app.close()
    assert app.counts() == {"default": {State.READY: 1}}
