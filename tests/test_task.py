"""Declaring tasks, and making jobs of them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from offload import BadDeclaration, BadPayload, Concurrency, Offload, Rate, Retry, State, Unique
from offload.job import RateLimit, SlotLimit, UniqueKey
from offload.task import MOST_TOLD, AsyncTask, Task
from offload.testing.clock import START, TestClock


@pytest.fixture
def app() -> Offload:
    return Offload("memory://", clock=TestClock())


def greet(name: str, times: int = 1) -> str:
    """Say hello."""
    return f"hello {name}" * times


async def agreet(name: str) -> str:
    return f"hello {name}"


def test_a_task_can_be_called_as_before(app: Offload) -> None:
    assert app.task(greet)("Ann", times=2) == "hello Annhello Ann"
    assert asyncio.run(app.task(agreet)("Ann")) == "hello Ann"


def test_an_async_def_gives_an_async_task(app: Offload) -> None:
    assert type(app.task(agreet)) is AsyncTask
    assert type(app.task(greet)) is Task
    assert type(app.task(name="other")(greet)) is Task


def test_a_task_looks_like_its_function(app: Offload) -> None:
    task, asynchronous = app.task(greet), app.task(agreet)
    assert (task.__name__, task.__doc__, task.__wrapped__) == ("greet", "Say hello.", greet)  # pyright: ignore[reportAttributeAccessIssue]
    assert inspect.signature(task) == inspect.signature(greet)
    assert inspect.iscoroutinefunction(asynchronous)
    assert not inspect.iscoroutinefunction(task)


def test_the_defaults(app: Offload) -> None:
    task = app.task(greet)
    assert task.name == f"{__name__}.greet"
    assert (task.queue, task.priority, task.timeout, task.isolation) == ("default", 0, 3600.0, "thread")
    assert (task.retry, task.unique, task.expires_in, task.keep, task.log, task.mask) == (Retry(), None, None, 86_400.0, (), ())
    assert app.task(agreet).isolation == "async"


def test_all_options(app: Offload) -> None:
    task = app.task(
        name="mail.greet",
        queue="mail",
        priority=10,
        retry=3,
        timeout=timedelta(minutes=5),
        isolation="process",
        unique="greet:{name}",
        expires_in=timedelta(hours=1),
        keep=0,
        log=("name",),
        mask=("times",),
    )(greet)
    assert app.tasks == {"mail.greet": task}
    assert (task.queue, task.priority, task.retry, task.timeout) == ("mail", 10, Retry(max_retries=3), 300.0)
    assert (task.isolation, task.unique, task.expires_in, task.keep) == ("process", Unique("greet:{name}"), 3600.0, 0.0)
    assert (task.log, task.mask) == (("name",), ("times",))


def test_no_time_limit(app: Offload) -> None:
    assert app.task(timeout=None)(greet).timeout is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": 101}, "priority must be a whole number from -100 to 100"),
        ({"priority": True}, "priority"),
        ({"queue": " "}, "queue must be a name"),
        ({"queue": None}, "queue must be a name"),
        ({"timeout": 0}, "timeout must be at least"),
        ({"timeout": "5m"}, "timeout must be seconds or a timedelta, not '5m'"),
        ({"isolation": "fiber"}, "there is no isolation 'fiber'; known are async, thread, process"),
        ({"isolation": "async"}, "is a def and cannot run with isolation='async'; use 'thread' or 'process'"),
        ({"expires_in": -1}, "expires_in"),
        ({"keep": -1}, "keep"),
        ({"log": ("nick",)}, "log names 'nick', which is no parameter; known are: name, times"),
        ({"mask": "nick"}, "mask names 'nick'"),
        ({"unique": "{nick}"}, "names 'nick'"),
        ({"retry": "often"}, "retry must be"),
        ({"unique": 5}, r"greet: unique must be a Unique, or its key, a template or a callable, not 5"),
        ({"name": 5}, r"@app.task\(name=...\) must be a text"),
        ({"log": 5}, "log must be names of parameters, not 5"),
        *(({"queue": queue}, f"queue {queue!r} could not be named by `offload worker -q`") for queue in ("a,b", "a:3", "my queue")),
        ({"queue": "a\0b"}, "could not be named .*leave out white space, .* and NUL"),
        ({"queue": "mail*"}, r"queue 'mail\*' could not be named"),
        ({"order_by": ""}, "order_by must be a text that is not empty"),
        ({"order_by": "{nick}"}, "order_by: the key '{nick}' names 'nick', which is no parameter"),
        ({"order_by": "x" * 201}, "order_by: the key, 'x+'..., has 201 characters, of at most 200"),
        ({"on_dead": "hold"}, "on_dead='hold' stops the jobs of an order at a dead one; give order_by= too"),
        ({"on_dead": "wait", "order_by": "k"}, "on_dead must be one of continue, hold, not 'wait'"),
        ({"limits": [Rate("1/s", "k"), Rate("5/m", "k")]}, "two Rate limits have the key 'k'"),
    ],
)
def test_options_that_cannot_work_are_refused(app: Offload, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        app.task(**options)(greet)
    assert app.tasks == {}


def test_an_option_that_does_not_exist_is_refused_with_the_task_and_those_that_do(app: Offload) -> None:
    with pytest.raises(BadDeclaration, match=r"task .*\.greet: there is no option 'weight'; known are name, queue, priority, .* mask$"):
        app.task(weight="x")(greet)  # pyright: ignore[reportCallIssue]
    with pytest.raises(BadDeclaration, match=r"task mail: there is no option 'isolated' \(did you mean 'isolation'\?\)"):
        app.task(name="mail", isolated=True)(greet)  # pyright: ignore[reportCallIssue]
    assert app.tasks == {}


def test_an_async_def_cannot_run_in_a_thread(app: Offload) -> None:
    with pytest.raises(BadDeclaration, match="is an async def and cannot run with isolation='thread'; use 'async' or 'process'"):
        app.task(isolation="thread")(agreet)


def generator() -> Iterator[int]:
    yield 1


async def agenerator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, "has no name of its own; give one with @app.task"),
        (partial(greet, "Ann"), "has no name of its own"),
        (generator, "is a generator"),
        (agenerator, "is a generator"),
        (Path, "goes on a function"),
        (7, "goes on a function"),
    ],
)
def test_what_is_no_function_with_a_name_is_refused(app: Offload, function: Any, message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        app.task(function)


class Shop:
    def sell(self, order: int) -> int: ...

    @classmethod
    def open(cls) -> None: ...

    @staticmethod
    def price(order: int) -> int:
        return order * 2


@pytest.mark.parametrize("method", [Shop.sell, Shop().sell, Shop.open])
def test_a_method_is_refused_where_it_is_declared(app: Offload, method: Any) -> None:
    with pytest.raises(BadDeclaration, match=r"Shop\.(sell|open) is a method, and a worker has no '(self|cls)' to call it with; make it a"):
        app.task(method)
    assert app.tasks == {}


def test_a_static_method_is_a_function(app: Offload) -> None:
    task = app.task(Shop.price)
    assert (task.name.endswith(".Shop.price"), task(3), task.job(3).payload) == (True, 6, b'{"order":3}')


@pytest.mark.parametrize("name", ["delay", "send", "apply_async"])
def test_what_others_call_enqueue_is_no_attribute_and_says_what_is(app: Offload, name: str) -> None:
    for task in (app.task(greet), app.task(agreet)):
        with pytest.raises(AttributeError, match=rf"a task has no '{name}'; use {task.function.__name__}\.enqueue\(\.\.\.\), or"):
            getattr(task, name)
    with pytest.raises(AttributeError, match=r"a task has no 'nonsense'$"):
        task.nonsense  # pyright: ignore[reportAttributeAccessIssue] # noqa: B018


def test_a_lambda_and_a_partial_may_be_given_a_name(app: Offload) -> None:
    assert app.task(name="double")(lambda x: 2 * x)(2) == 4
    assert app.task(name="hello.ann")(partial(greet, "Ann"))() == "hello Ann"
    bound = app.task(name="hello.bob")(partial(agreet, "Bob"))
    assert asyncio.run(bound()) == "hello Bob"
    assert inspect.iscoroutinefunction(bound)
    assert bound.job().payload == b"{}"


def test_a_task_is_no_task_again(app: Offload) -> None:
    with pytest.raises(BadDeclaration, match="is a task already"):
        app.task(app.task(greet))


def test_two_tasks_of_one_name_are_refused_naming_both(app: Offload) -> None:
    app.task(name="mail")(greet)
    with pytest.raises(BadDeclaration, match=r"two tasks are named 'mail', .*test_task.greet .*test_task.py:\d+\) and .*test_task.agreet"):
        app.task(name="mail")(agreet)


def test_a_nested_function_keeps_its_place_in_its_name(app: Offload) -> None:
    @app.task
    def inner() -> None: ...

    assert inner.name.endswith("test_a_nested_function_keeps_its_place_in_its_name.<locals>.inner")


PROGRAM = """
from offload import Offload
app = Offload("memory://")
@app.task
def work(): ...
print(work.name)
"""


def test_a_program_and_the_worker_that_imports_it_agree_on_names(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "shop.py").write_text(PROGRAM)

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    assert run("shop.py") == run("-c", "import shop") == "shop.work"
    assert run("-m", "inner.shop") == run("-c", "import inner.shop") == "inner.shop.work"
    assert run("-c", PROGRAM) == "__main__.work"


def test_in_a_session_at_the_prompt_a_function_may_be_defined_again() -> None:
    source = "from offload import Offload\napp = Offload('memory://')\n" + "@app.task\ndef work(): ...\n" * 2
    assert subprocess.run([sys.executable, "-c", source], check=False, timeout=30).returncode == 0


def test_a_file_that_declares_a_function_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from offload import Offload\napp = Offload('memory://')\n" + "@app.task\ndef work(): ...\n" * 2)
    with pytest.raises(BadDeclaration, match="two tasks are named"):
        runpy.run_path(str(tmp_path / "shop.py"))


def test_a_draft_carries_what_the_task_says(app: Offload) -> None:
    task = app.task(queue="mail", priority=5, unique="greet:{name}:{times}", expires_in=60, keep=7, name="greet")(greet)
    draft = task.job("Ann")
    assert (draft.task, draft.payload, draft.queue, draft.priority) == ("greet", b'{"name":"Ann"}', "mail", 5)
    assert (draft.unique, draft.expires_in, draft.keep) == (UniqueKey("greet:Ann:1"), 60.0, 7.0)
    assert (draft.id, draft.delay, draft.run_at, draft.timeout) == (None, None, None, None)


def test_a_wrong_call_is_refused_before_anything_is_enqueued(app: Offload) -> None:
    task = app.task(greet)
    calls: list[tuple[Any, tuple[Any, ...]]] = [(task.job, ()), (task.enqueue, (7,)), (task.using(delay=5).enqueue, ("Ann", 1, 2))]
    for call, args in calls:
        with pytest.raises(BadPayload, match=r"greet\(name: str, times: int = 1\) -> str cannot be called so"):
            call(*args)
    assert app.counts() == {}


def test_a_function_may_have_parameters_named_self_and_task(app: Offload) -> None:
    @app.task
    def odd(self: int, task: int, function: int, method: int) -> None: ...

    record = odd.enqueue(self=1, task=2, function=3, method=4).record()
    assert record.payload == b'{"self":1,"task":2,"function":3,"method":4}'
    assert odd.using(priority=1).job(self=1, task=2, function=3, method=4).payload == record.payload


def test_enqueue_stores_a_job_and_gives_its_handle(app: Offload) -> None:
    handle = app.task(name="greet")(greet).enqueue("Ann")
    record = handle.record()
    assert (record.id, record.task, record.payload, record.state) == (handle.id, "greet", b'{"name":"Ann"}', State.READY)
    assert record.enqueued_at == START


def test_using_changes_one_job(app: Offload) -> None:
    task = app.task(queue="mail", priority=5, name="greet")(greet)
    handle = task.using(
        delay=timedelta(minutes=1), priority=50, queue="vip", unique="u", id="signup-7", expires_in=90, timeout=5, keep=0
    ).enqueue("Ann")  # fmt: skip
    record = handle.record()
    assert handle.id == record.id == "signup-7"
    assert (record.state, record.run_at, record.expires_at) == (
        State.SCHEDULED,
        START + timedelta(seconds=60),
        START + timedelta(seconds=90),
    )
    assert (record.priority, record.queue, record.unique, record.timeout, record.keep) == (50, "vip", UniqueKey("u"), 5.0, 0.0)
    assert (task.queue, task.priority) == ("mail", 5)


def test_a_time_of_any_zone_is_kept_in_utc(app: Offload) -> None:
    at = datetime(2030, 6, 1, 9, tzinfo=timezone(timedelta(hours=2)))
    record = app.task(greet).using(run_at=at).enqueue("Ann").record()
    assert str(record.run_at) == str(datetime(2030, 6, 1, 7, tzinfo=UTC))


def test_a_literal_key_follows_the_rule_that_the_task_declares(app: Offload) -> None:
    task = app.task(unique=Unique("greet:{name}", until="started", on_conflict="replace"))(greet)
    assert task.using(unique="{literal}").job("Ann").unique == UniqueKey("{literal}", "started", "replace")
    assert task.using(unique=Unique("{literal}", until=60)).job("Ann").unique == UniqueKey("{literal}", 60.0)
    assert task.using(delay=1).job("Ann").unique == UniqueKey("greet:Ann", "started", "replace")


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"unique": "u:{name}"}, "unique"),
        ({"unique": Unique("u:{name}", until=60)}, "unique"),
        ({"order_by": "u:{name}"}, "order_by"),
        ({"fair_by": "u:{name}"}, "fair_by"),
        ({"limits": Concurrency(1, "u:{name}")}, "limits"),
        ({"limits": [Concurrency(1, "k"), Rate("1/s", "u:{name}")]}, "limits"),
    ],
)
def test_a_literal_key_that_reads_as_a_template_is_warned_of_once(
    app: Offload, caplog: pytest.LogCaptureFixture, options: dict[str, Any], option: str
) -> None:
    task = app.task(name="greet")(greet)
    for name in ("Ann", "Bob"):
        task.using(**options).job(name)
        app.using(**options).job("greet", name)
    (said,) = caplog.records
    assert (said.name, said.levelno) == ("offload.task", logging.WARNING)
    text = said.getMessage()
    assert text.startswith(f"task greet: using({option}=...) got the key 'u:{{name}}', and strings in using() are literal")
    assert f"f-string, or a template or callable to @app.task({option}=...)" in text


@pytest.mark.parametrize("key", ["u:{name!r}", "u:{name.first}:{times:02}", "{other}{name[0]}", "{{name}}"])
def test_whatever_a_template_may_hold_is_seen_in_a_literal_key(app: Offload, caplog: pytest.LogCaptureFixture, key: str) -> None:
    app.task(name="greet")(greet).using(unique=key)
    assert repr(key) in caplog.text


@pytest.mark.parametrize("key", ["name", "{other}", '{"name": 1}', "{}", "{0}", "{name", "name}", "{na{me}"])
def test_a_literal_key_that_names_no_parameter_in_braces_is_not_warned_of(app: Offload, caplog: pytest.LogCaptureFixture, key: str) -> None:
    app.task(name="greet")(greet).using(unique=key)
    assert not caplog.records


def test_the_keys_of_which_a_task_warns_are_bounded(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    task = app.task(name="greet")(greet)
    for number in range(MOST_TOLD + 10):
        task.using(unique=f"{number}:{{name}}")
    assert len(caplog.records) == MOST_TOLD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_at": datetime(2030, 1, 1)}, "has no time zone; make it aware"),
        ({"delay": -1}, r"using\(delay=...\) must be at least 0 seconds"),
        ({"delay": 1, "run_at": START}, "a job has one time"),
        ({"priority": 101}, "from -100 to 100"),
        ({"id": ""}, "is empty"),
        ({"queue": ""}, "must be a name"),
        ({"unique": ""}, "is empty"),
        ({"expires_in": 0}, "expires_in"),
        ({"timeout": 0}, "timeout"),
        ({"keep": -1}, "keep"),
        ({"delay": float("inf")}, "delay"),
        ({"order_by": ""}, r"using\(order_by=...\): the key of this job must be a text that is not empty"),
        ({"order_by": "x" * 201}, "has 201 characters, of at most 200"),
        ({"order_by": str}, "must be a text"),
        ({"on_dead": "wait"}, "must be one of continue, hold"),
        ({"limits": 5}, "limits are a list"),
        ({"limits": [Concurrency(1, str)]}, r"the key of Concurrency for this job must be a text"),
        ({"limits": [Concurrency(1, "k"), Concurrency(2, "k")]}, "two Concurrency limits have the key 'k'"),
    ],
)
def test_using_refuses_what_cannot_work(app: Offload, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        app.task(greet).using(**options)
    with pytest.raises(BadDeclaration, match=message):
        app.using(**options)


def test_a_job_carries_the_keys_that_its_task_declares(app: Offload) -> None:
    limits = [Concurrency(2, "n:{times}"), Rate("100/s", lambda name, times: name, burst=20)]
    task = app.task(name="greet", order_by="o:{name}", on_dead="hold", limits=limits)(greet)
    job = task.job("Ann", times=3)
    assert (job.order_by, job.on_dead) == ("o:Ann", "hold")
    slot, token = job.limits
    assert slot == SlotLimit("n:3", 2, "n:{times}")
    assert token == RateLimit("Ann", 10_000, 20, 1, token.rule)
    assert token.rule.startswith("greet[1] ")
    assert [limit.rule for limit in task.rules()] == ["n:{times}", token.rule]


def test_using_changes_the_keys_of_one_job(app: Offload) -> None:
    task = app.task(order_by="o:{name}", limits=Concurrency(2, "n"))(greet)
    job = task.using(order_by="{literal}", on_dead="hold", limits=[Rate("1/s", "{r}"), Concurrency(1, "n")]).job("Ann")
    assert (job.order_by, job.on_dead) == ("{literal}", "hold")
    assert job.limits == (RateLimit("{r}", 1_000_000), SlotLimit("n", 1))
    assert task.using(limits=()).job("Ann").limits == ()


def test_a_job_without_an_order_cannot_hold_its_line(app: Offload) -> None:
    message = r"using\(on_dead=...\): on_dead='hold' stops .*; give order_by= too"
    with pytest.raises(BadDeclaration, match=message):
        app.task(name="greet")(greet).using(on_dead="hold").job("Ann")
    with pytest.raises(BadDeclaration, match=message):
        app.using(on_dead="hold").job("greet", "Ann")
    assert app.using(order_by="k", on_dead="hold").job("greet", "Ann").on_dead == "hold"


def test_the_async_forms_do_the_same(app: Offload) -> None:
    task = app.task(agreet)

    async def main() -> None:
        first = await task.aenqueue(name="Ann")
        second = await task.using(id="two").aenqueue("Bob")
        assert (await first.arecord()).payload == b'{"name":"Ann"}'
        assert (await second.arecord()).id == "two"

    asyncio.run(main())
