"""Each kind of bad input is a clear error, early, and nothing is lost or half done."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, cast

import pytest
from tests.worker import program as tasks

from offload import (
    BadDeclaration,
    BadPayload,
    BrokerNotInstalled,
    IdConflict,
    JobFailed,
    LoopRunning,
    Offload,
    Record,
    State,
    TaskNotFound,
    Worker,
)


@pytest.fixture
def app() -> Offload:
    return Offload("memory://")


@pytest.fixture
def add(app: Offload) -> Any:
    """A task of two numbers."""

    @app.task(name="shop.add")
    def add(a: int, b: int = 0) -> int:
        return a + b

    return add


def states(app: Offload) -> dict[State, int]:
    return app.counts().get("default", {})


def run(app: Offload) -> int:
    """Run all that is due."""
    return asyncio.run(Worker(app).drain())


# -- arguments -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "'a' is missing"),
        ((1, 2, 3), {}, "it takes at most 2 positional arguments, not 3"),
        ((1,), {"c": 2}, "there is no parameter 'c'$"),
        ((1,), {"a": 2}, "'a' is given twice"),
        (("one",), {}, "argument 'a': expected int, got str"),
        ((1.5,), {}, "argument 'a': expected int, got float"),
        ((None,), {}, "argument 'a': expected int, got None"),
        ((object(),), {}, "the argument 'a' cannot be carried as JSON"),
    ],
)
def test_wrong_arguments_are_refused_at_enqueue(app: Offload, add: Any, args: tuple[Any, ...], kwargs: dict[str, Any], said: str) -> None:
    calls = [
        lambda: add.enqueue(*args, **kwargs),
        lambda: add.using(delay=60).enqueue(*args, **kwargs),
        lambda: add.job(*args, **kwargs),
        lambda: app.enqueue("shop.add", *args, **kwargs),
    ]
    for call in calls:
        with pytest.raises(BadPayload, match=said) as raised:
            call()
        assert "shop.add" in str(raised.value)
    assert app.counts() == {}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"user": "ada"}, "there is no parameter 'user' (did you mean 'user_id'?), and 'user_id' is missing"),
        ({"user_id": 1, "extra": 2}, "there is no parameter 'extra'"),
        ({"user_id": "1"}, "argument 'user_id': expected int, got str"),
        ({"user_id": 1, "ids": [1, None]}, "argument 'ids', at [1]: expected int, got None"),
        ({"user_id": 1, "ids": 5}, "argument 'ids': expected list, got int"),
    ],
)
def test_a_wrong_call_is_said_in_the_same_words_at_enqueue_and_at_retry(app: Offload, kwargs: dict[str, Any], said: str) -> None:
    @app.task(name="mail")
    def mail(user_id: int, ids: list[int] = []) -> None: ...  # noqa: B006

    handle = mail.enqueue(user_id=1)
    assert handle.cancel()
    whole = f"mail(user_id: int, ids: list[int] = []) -> None cannot be called so: {said}"
    calls = [lambda: mail.enqueue(**kwargs), lambda: app.enqueue("mail", **kwargs), lambda: app.retry(handle.id, payload=kwargs)]
    for call in calls:
        with pytest.raises(BadPayload) as raised:
            call()
        assert str(raised.value) == whole
    assert handle.record().state is State.CANCELLED


def test_an_error_of_a_sync_call_shows_the_callers_line_and_not_our_insides(add: Any) -> None:
    with pytest.raises(BadPayload) as raised:
        add.enqueue("one")
    files = [Path(entry.path).name for entry in raised.traceback]
    assert files == ["test_bad_input.py", "task.py", "producer.py", "producer.py", "portal.py"]
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_one_wrong_job_of_many_is_refused_before_any_is_enqueued(app: Offload, add: Any) -> None:
    with pytest.raises(BadPayload):
        app.enqueue_many([add.job(1), add.job("two")])
    assert app.counts() == {}


def test_an_id_or_a_name_that_no_store_could_index_is_refused_at_once(app: Offload, add: Any) -> None:
    longest, longer = "x" * 200, "x" * 201
    add.using(id=longest, queue=longest).enqueue(1)
    app.enqueue(longest)

    def work() -> None: ...

    for call in (
        lambda: add.using(id=longer),
        lambda: add.using(queue=longer),
        lambda: app.task(queue=longer)(work),
        lambda: app.task(name=longer)(work),
        lambda: app.enqueue(longer),
    ):
        with pytest.raises(BadDeclaration, match=r"has 201 characters, of at most 200: use a hash of it"):
            call()


def test_a_payload_that_is_too_large_says_what_to_do(app: Offload) -> None:
    @app.task
    def store(text: str) -> None: ...

    with pytest.raises(BadPayload, match=r"take 300,011 bytes of JSON, of at most 262,144: store the data elsewhere and pass its key"):
        store.enqueue("x" * 300_000)
    assert app.counts() == {}


def test_naive_datetimes_are_refused(app: Offload, add: Any) -> None:
    naive = datetime(2030, 1, 1)

    @app.task
    def at(when: datetime) -> None: ...

    with pytest.raises(BadDeclaration, match="has no time zone; make it aware"):
        add.using(run_at=naive)
    for argument in (naive, [naive]):
        with pytest.raises(BadPayload, match=r"time zone|cannot be called so"):
            at.enqueue(argument)  # pyright: ignore[reportArgumentType] - the second is the mistake
    with pytest.raises(BadPayload, match="time zone"):
        app.enqueue("elsewhere.at", when=naive)
    assert app.counts() == {}


@pytest.mark.parametrize("delay", [-1, -0.001, float("nan"), float("inf"), "soon", timedelta(seconds=-1), True])
def test_delays_that_cannot_be_are_refused(app: Offload, add: Any, delay: Any) -> None:
    with pytest.raises(BadDeclaration, match=r"using\(delay=\.\.\.\) must be"):
        add.using(delay=delay)


@pytest.mark.parametrize("option", ["delay", "expires_in", "keep", "timeout"])
def test_a_time_that_no_calendar_has_is_refused(app: Offload, add: Any, option: str) -> None:
    with pytest.raises(BadDeclaration, match="must be at most a hundred years"):
        add.using(**{option: 1e300})


def test_an_id_used_with_another_payload_is_refused_and_the_first_job_stays(app: Offload, add: Any) -> None:
    handle = add.using(id="signup-7").enqueue(1)
    assert add.using(id="signup-7").enqueue(1) == handle
    with pytest.raises(IdConflict, match="job id 'signup-7' was already used with another task or payload"):
        add.using(id="signup-7").enqueue(2)
    assert (states(app), run(app), handle.result(timeout=5)) == ({State.READY: 1}, 1, 1)


def test_enqueueing_inside_a_running_loop_names_the_async_call(app: Offload, add: Any) -> None:
    async def main() -> None:
        calls = [
            (lambda: add.enqueue(1), "await aenqueue"),
            (lambda: add.using(delay=1).enqueue(1), "await aenqueue"),
            (lambda: app.enqueue_many([add.job(1)]), "await aenqueue_many"),
            (lambda: app.handle("j").result(), "await aresult"),
            (app.counts, "await acounts"),
        ]
        for call, said in calls:
            with pytest.raises(LoopRunning, match=said):
                call()

    asyncio.run(main())
    assert app.counts() == {}


# -- names ---------------------------------------------------------------------------------------------------------------------


def test_an_unknown_task_is_never_failed_and_waits_for_a_worker_that_knows_it(app: Offload, add: Any) -> None:
    handle = app.enqueue("billing.charge", amount=5)
    assert run(app) == 0
    record = handle.record()
    assert (record.state, record.attempt, record.errors) == (State.READY, 0, ())

    @app.task(name="billing.charge")
    def charge(amount: int) -> int:
        return amount

    assert run(app) == 1
    assert handle.result(timeout=5) == 5


def test_arguments_of_an_unknown_task_have_names(app: Offload) -> None:
    with pytest.raises(BadPayload, match=r"'billing.charge' is not registered here.*pass keyword arguments"):
        app.enqueue("billing.charge", 5)
    assert app.counts() == {}


def test_two_tasks_of_one_name_are_refused_with_both_places(app: Offload, add: Any) -> None:
    with pytest.raises(BadDeclaration, match=r"two tasks are named 'shop.add'.*test_bad_input.py:\d+.*test_bad_input.py:\d+") as raised:

        @app.task(name="shop.add")
        def other() -> None: ...

    assert "give one another name" in str(raised.value)
    assert add.enqueue(1, 2).id
    assert run(app) == 1


def test_task_not_found_is_a_lookup_error() -> None:
    assert issubclass(TaskNotFound, LookupError)


@pytest.mark.parametrize("queue", ["a,b", "vip:3", "all*", "my queue", ""])
def test_a_queue_that_no_worker_could_be_told_to_serve_is_refused(app: Offload, add: Any, queue: str) -> None:
    for declare in (
        lambda: app.task(name="other", queue=queue)(lambda: None),
        lambda: add.using(queue=queue),
        lambda: app.using(queue=queue),
    ):
        with pytest.raises(BadDeclaration, match="queue"):
            declare()
    assert list(app.tasks) == ["shop.add"]


def test_the_task_in_place_of_its_name_is_refused_with_the_call_that_takes_it(app: Offload, add: Any) -> None:
    for enqueue in (app.enqueue, app.using(delay=5).enqueue):
        with pytest.raises(BadDeclaration, match=r"takes the name of a task, not <Task shop.add>; use add.enqueue\(\.\.\.\)"):
            enqueue(add, 1)
    assert app.counts() == {}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda _, __: cast(Any, Offload)(5), "Offload takes the URL of a broker, such as 'sqlite:///offload.db', not 5"),
        (lambda _, __: cast(Any, Offload)("memory://", heartbeat="3s"), "heartbeat must be seconds"),
        (lambda app, _: app.task(unique=5)(states), "unique must be a Unique, or its key, a template or a callable, not 5"),
        (lambda app, _: app.cron(5), r"@app.cron takes an expression, as in @app.cron\('0 9 \* \* MON'\), not 5"),
        (lambda app, add: app.cron(add), "@app.cron takes an expression, .*, not <Task shop.add>"),
        (lambda app, add: app.cron("0 9 * * *", timezone=5)(app.task(name="zoned")(lambda: None)), "timezone must be a text, not 5"),
        (lambda app, add: app.schedule("x", add.job(1), cron=5), "cron must be a text, not 5"),
        (lambda app, add: app.schedule(add.job(1), every=5, draft=None), "app.schedule takes a name first"),
        (lambda app, add: app.enqueue_many(add.job(1)), "enqueue_many takes a list"),
        (lambda app, add: app.enqueue_many([add]), r"enqueue_many takes what task.job\(...\) gives, not <Task shop.add>"),
        (lambda _, add: add.using(unique=5), "give a key as a text, or a Unique"),
        (lambda _, add: add.using(run_at=60), "must be an aware datetime"),
        (lambda _, add: add.using(id=7), "must be a text, such as 'signup-7'"),
    ],
)
def test_values_of_another_kind_are_refused_in_words(app: Offload, add: Any, call: Any, said: str) -> None:
    with pytest.raises(BadDeclaration, match=said):
        call(app, add)
    assert app.counts() == {}


# -- engines -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["oracle://db/shop", "shop.db", "://"])
def test_a_url_that_no_engine_serves_names_those_there_are(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLOAD_URL", url)
    with pytest.raises(BadDeclaration, match=r"no broker serves .*: known are .*memory://.*sqlite://"):
        Offload()


@pytest.mark.parametrize("url", ["", " "])
def test_an_empty_url_is_no_wish_for_the_default(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLOAD_URL", url)
    with pytest.raises(BadDeclaration, match=r"OFFLOAD_URL is set, but empty: .*leave it out for sqlite:///offload\.db"):
        Offload()
    with pytest.raises(BadDeclaration, match=r"Offload\(url=''\) names no broker"):
        Offload(url)


@pytest.mark.parametrize(
    ("url", "instead"), [("postgresql+psycopg://localhost/shop", "postgresql"), ("sqlite+aiosqlite:///shop.db", "sqlite")]
)
def test_a_url_of_sqlalchemy_is_recognized(url: str, instead: str) -> None:
    with pytest.raises(BadDeclaration, match=rf"SQLAlchemy's URL\? Write {instead}://"):
        Offload(url)


def test_an_engine_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("rabbitmq", "no_such_driver.broker:Broker [rabbitmq]", "offload.brokers")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: EntryPoints([point]))
    with pytest.raises(
        BrokerNotInstalled, match=r"needs the package 'no_such_driver'; .*from a clone of Offload: pip install '\.\[rabbitmq\]'"
    ):
        Offload("rabbitmq://localhost")


def test_what_follows_memory_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadDeclaration, match="use sqlite:///shop to keep jobs in a file"):
        Offload("memory://shop")


# -- schedules -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "0 9 * * FUNDAY", "every day", "* * * * * * *", "0 0 31 2 *x"])
def test_a_malformed_cron_is_refused_where_it_stands(app: Offload, expression: str) -> None:
    with pytest.raises(BadDeclaration) as raised:

        @app.cron(expression)
        @app.task
        def nightly() -> None: ...

    assert repr(expression) in str(raised.value)
    assert app.declared == {}


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "+02:00", "../etc/passwd"])
def test_an_unknown_time_zone_is_refused_where_it_stands(app: Offload, zone: str) -> None:
    with pytest.raises(BadDeclaration, match="time zone"):

        @app.cron("0 9 * * *", timezone=zone)
        @app.task
        def nightly() -> None: ...

    assert app.declared == {}


def test_a_schedule_for_a_task_with_required_parameters_is_refused(app: Offload, add: Any) -> None:
    with pytest.raises(BadDeclaration, match=r"a schedule passes no arguments, but shop.add.*'a' is missing"):
        app.cron("0 9 * * *")(add)
    assert app.declared == {}


def test_decorators_in_the_wrong_order_are_named(app: Offload) -> None:
    with pytest.raises(BadDeclaration, match=r"put @app.cron above @app.task"):

        @app.task
        @app.cron("0 9 * * *")  # pyright: ignore[reportArgumentType] - the mistake
        def nightly() -> None: ...

    with pytest.raises(BadDeclaration, match=r"is a task already; put @app.task on a function once"):

        @app.task
        @app.task
        def twice() -> None: ...

    with pytest.raises(BadDeclaration, match=r"@app.middleware goes on an `async def m\(job, call_next\)`"):

        @app.middleware  # pyright: ignore[reportArgumentType] - the mistake
        def plain(job: Any, call_next: Any) -> None: ...


# -- inside a task -------------------------------------------------------------------------------------------------------------


def test_a_result_that_cannot_be_encoded_is_dead_with_that_reason(app: Offload) -> None:
    @app.task
    def connect() -> Any:
        return object()

    handle = connect.enqueue()
    assert run(app) == 1
    with pytest.raises(JobFailed, match=r"the result cannot be carried as JSON.*\(result\)"):
        handle.result(timeout=5)


def test_a_result_that_is_too_large_is_dead_with_that_reason(app: Offload) -> None:
    @app.task
    def export() -> str:
        return "x" * 300_000

    handle = export.enqueue()
    assert run(app) == 1
    with pytest.raises(JobFailed, match=r"store the data elsewhere and pass its key \(result\)"):
        handle.result(timeout=5)


def ends(way: str, isolations: list[Any]) -> list[Record]:
    """How jobs that end this way in each isolation are recorded, with a job behind each that must still run."""
    with tasks.app.testing("memory://"):
        handles = [task.enqueue(way) for task in isolations]
        after = [task.enqueue("well") for task in isolations]
        asyncio.run(Worker(tasks.app, processes=1).drain())
        assert [handle.result(timeout=5) for handle in after] == ["well"] * len(after)
        return [handle.record() for handle in handles]


@pytest.mark.parametrize("way", ["Unprintable", "sys.exit", "KeyboardInterrupt", "MemoryError"])
def test_what_a_task_raises_never_harms_its_worker(way: str) -> None:
    for record in ends(way, [tasks.end_async, tasks.end_thread]):
        assert (record.state, len(record.errors)) == (State.DEAD, 2)
        assert record.errors[-1].traceback


@pytest.mark.process
@pytest.mark.parametrize("way", ["Unprintable", "sys.exit", "KeyboardInterrupt", "MemoryError", "segfault"])
def test_what_a_task_does_in_a_child_process_never_harms_the_worker(way: str) -> None:
    [record] = ends(way, [tasks.end_process])
    assert (record.state, len(record.errors)) == (State.DEAD, 2)
    assert record.errors[-1].traceback
