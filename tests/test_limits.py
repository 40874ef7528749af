"""What may be declared of keys, the key of one job, and what may be set for a key."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import integers, sampled_from
from msgspec import UNSET

from offload import Offload
from offload.errors import BadDeclaration, BadPayload
from offload.job import LimitChange, RateLimit, SlotLimit, UniqueKey
from offload.limits import (
    LONGEST_KEY,
    MOST_PER_PERIOD,
    Concurrency,
    Rate,
    Unique,
    change_of,
    declared,
    declared_limits,
    fits,
    interval_of,
    limit_of,
    literal,
    rule_of,
    spec_of,
    strictest,
)


def task_of(function: Callable[..., Any], **options: Any) -> Any:
    """The function as a task, under its own name."""
    return Offload("memory://").task(name=function.__name__, **options)(function)


def digest(user_id: int, name: str = "Ann") -> None: ...


def test_a_template_is_filled_from_the_arguments() -> None:
    unique = Unique("digest:{user_id}:{name[0]}", until="started", on_conflict="replace")
    assert task_of(digest, unique=unique).job(7, "Ann").unique == UniqueKey("digest:7:A", "started", "replace")


@pytest.mark.parametrize(
    ("key", "made"),
    [
        (lambda user_id, name: f"{user_id}/{name.lower()}", "7/ann"),
        (lambda name, user_id: f"{user_id}/{name}", "7/Ann"),
        (lambda user_id: f"user {user_id}", "user 7"),
        (lambda *, name: name, "Ann"),
        (lambda user_id, name="nobody", day="monday": f"{user_id} {name} {day}", "7 Ann monday"),
        (lambda: "all", "all"),
        (lambda **arguments: repr(arguments), "{'user_id': 7, 'name': 'Ann'}"),
        (lambda user_id, **arguments: f"{user_id} {arguments}", "7 {'name': 'Ann'}"),
        (lambda number, word, /: f"{number} {word}", "7 Ann"),
        (partial(lambda day, user_id: f"{day} {user_id}", "monday"), "monday 7"),
    ],
)
def test_a_callable_takes_of_the_arguments_what_it_names(key: Callable[..., str], made: str) -> None:
    task = task_of(digest, unique=key, order_by=key, fair_by=key, limits=[Concurrency(1, key), Rate("1/s", key)])
    for job in (task.job(7, "Ann"), task.job(7, name="Ann"), task.job(user_id=7, name="Ann"), task.job(7)):
        assert (job.unique, job.order_by, job.fair_by) == (UniqueKey(made), made, made)
        assert [limit.key for limit in job.limits] == [made, made]


@pytest.mark.parametrize(
    ("key", "made"),
    [
        (lambda first: f"{first}", "1"),
        (lambda tenant: tenant, "x"),
        (lambda tenant, plan="free": f"{tenant} {plan}", "x free"),
        (lambda first, *rest, **more: f"{first} {rest} {more}", "1 () {'level': 5, 'tenant': 'x'}"),
        (lambda *rest, **more: f"{rest} {more}", "(1, 2, 3) {'tenant': 'x'}"),
        (lambda a, b, c, tenant: f"{a} {b} {c} {tenant}", "1 2 3 x"),
        (lambda first, level, **more: f"{first} {level} {more}", "1 5 {'tenant': 'x'}"),
    ],
)
def test_a_callable_takes_of_a_task_whatever_its_arguments_are_like(key: Callable[..., str], made: str) -> None:
    def spread(first: int, /, *rest: int, level: int = 5, **more: str) -> None: ...

    assert task_of(spread, order_by=key).job(1, 2, 3, tenant="x").order_by == made


def test_what_a_task_was_not_given_is_empty_and_what_a_callable_misses_is_told_at_enqueue() -> None:
    def spread(*rest: int, **more: str) -> None: ...

    with pytest.raises(BadPayload, match=r"the key of order_by could not be made: TypeError: .* missing 1 required .* 'tenant'"):
        task_of(spread, order_by=lambda tenant: tenant).job()


def test_a_callable_that_names_nothing_gets_the_call_as_it_was_written() -> None:
    task = task_of(digest, order_by=lambda *arguments: repr(arguments))
    assert [task.job(7).order_by, task.job(7, "Bob").order_by] == ["(7,)", "(7, 'Bob')"]
    assert task.job(7, name="Bob").order_by == "(7, 'Bob')"
    assert task_of(digest, order_by="{user_id}".format).job(user_id=7).order_by == "7"


def test_a_callable_that_does_not_tell_what_it_takes_gets_all() -> None:
    def greet(name: str) -> None: ...

    assert task_of(greet, unique=str).job(name="Ann").unique == UniqueKey("Ann")
    assert task_of(greet, unique=str.lower).job(name="Ann").unique == UniqueKey("ann")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (lambda user_id, name, tenant: "", "the callable takes 'tenant', which is no parameter of the task; known are: user_id, name"),
        (lambda *, tenant: "", "the callable takes 'tenant'"),
        (lambda a, b, c, *rest: "", "the callable takes 'c'"),
    ],
)
@pytest.mark.parametrize("option", ["unique", "order_by", "fair_by", "Unique", "Concurrency", "Rate"])
def test_a_callable_that_no_job_could_satisfy_is_refused_where_it_is_declared(key: Any, said: str, option: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "Unique": {"unique": Unique(key)},
        "Concurrency": {"limits": Concurrency(1, key)},
        "Rate": {"limits": Rate("1/s", key)},
    }
    with pytest.raises(BadDeclaration, match=f"task digest: {option if option != 'Unique' else 'unique'}: .*{said}"):
        task_of(digest, **kinds.get(option, {option: key}))


def test_a_duration_may_be_seconds_or_a_timedelta() -> None:
    assert literal(Unique("k", until=timedelta(minutes=1)), "k", "x") == literal(Unique("k", until=60), "k", "x") == UniqueKey("k", 60.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unique(""), "not empty"),
        (lambda: Unique(7), "text"),  # pyright: ignore[reportArgumentType]
        (lambda: Unique("k", until="ended"), "until='ended'"),  # pyright: ignore[reportArgumentType]
        (lambda: Unique("k", until=0), "until"),
        (lambda: Unique("k", on_conflict="wait"), "known are skip, raise, replace, debounce, keep_last"),  # pyright: ignore[reportArgumentType]
        (lambda: Unique("k", on_conflict="replace"), "needs until='started'"),
        (lambda: Unique("k", on_conflict="debounce", until=60), "needs until='started'"),
        (lambda: Unique("k", on_conflict="keep_last", until="started"), "needs until='finished'"),
    ],
)
def test_what_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        make()


def test_a_template_may_name_parameters_only() -> None:
    parameters = inspect.signature(lambda user: user).parameters
    assert declared("mail:{user.id}", parameters, "task x") == Unique("mail:{user.id}")
    with pytest.raises(BadDeclaration, match=r"task x: unique: the key 'mail:{to}' names 'to', which is no parameter; known are: user"):
        declared("mail:{to}", parameters, "task x")
    with pytest.raises(BadDeclaration, match="names ''"):
        declared("mail:{}", parameters, "task x")
    with pytest.raises(BadDeclaration, match="no valid template"):
        declared("mail:{", parameters, "task x")


@pytest.mark.parametrize(
    ("key", "message"),
    [("{text}", "not empty"), ("{text.nothing}", "could not be made: AttributeError"), (lambda text: 7, "must be a text")],
)
def test_a_key_that_cannot_be_made_is_refused_at_enqueue(key: Any, message: str) -> None:
    with pytest.raises(BadPayload, match=message):
        task_of(lambda text: text, unique=Unique(key)).job("")


def test_a_key_has_a_greatest_length() -> None:
    assert literal(Unique("k"), "x" * LONGEST_KEY, "x").key == "x" * LONGEST_KEY
    with pytest.raises(BadPayload, match="has 201 characters, of at most 200"):
        literal(Unique("k"), "x" * (LONGEST_KEY + 1), "x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Concurrency(0, key="k"), r"Concurrency\(n\) must be a whole number of at least 1, not 0"),
        (lambda: Concurrency(True, key="k"), "not True"),
        (lambda: Concurrency(3, key=""), "the key of Concurrency must be a text that is not empty"),
        (
            lambda: Rate("0/s", key="k"),
            r"a rate of '0/s' lets nothing start: give at least 1; `app.set_limit\(key, paused=True\)` stops a key",
        ),
        (lambda: Rate("1000001/s", key="k"), "a rate of '1000001/s' is too high: give at most 1,000,000 a period; leave the limit out$"),
        (lambda: Rate("2000000/h", key="k"), "at most 1,000,000 a period; say it of a shorter period, or leave the limit out$"),
        (lambda: Rate("fast", key="k"), "such as '100/s' or '5/m', not 'fast'"),
        (lambda: Rate("1.5/s", key="k"), "not '1.5/s'"),
        (lambda: Rate("-1/s", key="k"), "not '-1/s'"),
        (lambda: Rate("5/w", key="k"), "per s, m, h or d"),
        (lambda: Rate(100, key="k"), "not 100"),  # pyright: ignore[reportArgumentType]
        (lambda: Rate("1/s", key=7), "the key of Rate"),  # pyright: ignore[reportArgumentType]
        (lambda: Rate("1/s", key="k", burst=0), r"Rate\(burst=...\)"),
        (lambda: Rate("1/s", key="k", cost=0), r"Rate\(cost=...\)"),
        (lambda: Concurrency(2**31, key="k"), "at most 2,147,483,647, not 2,147,483,648"),
        (lambda: Rate("1/d", key="k", burst=100_001), "at most 100,000, not 100,001"),
        (lambda: Rate("1/s", key="k", burst=2, cost=3), r"so many tokens never gather; give at least burst=3"),
    ],
)
def test_a_limit_that_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        make()


def test_a_rate_is_the_time_from_one_token_to_the_next() -> None:
    assert interval_of("100/s") == interval_of(" 100 / s ") == 10_000
    assert interval_of("3/m") == 20_000_000
    assert interval_of("1/d") == 86_400_000_000
    assert interval_of("7/s") == 142_858  # rounded up: never more than seven in a second


@given(integers(1, MOST_PER_PERIOD), sampled_from("smhd"))
def test_a_rate_reads_as_it_was_written_or_as_another_that_means_the_same(number: int, unit: str) -> None:
    interval = interval_of(f"{number}/{unit}")
    said = spec_of(interval)
    if not said.startswith("1/") or said[2:] in "smhd":
        assert abs(interval_of(said) - interval) <= 1


@pytest.mark.parametrize(
    ("interval", "said"), [(10_000, "100/s"), (20_000_000, "3/m"), (3_600_000_000, "1/h"), (142_858, "7/s"), (7_000_000, "1/7s")]
)
def test_a_rate_is_said_in_the_smallest_unit_of_whole_numbers(interval: int, said: str) -> None:
    assert spec_of(interval) == said


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ([Concurrency(3, "k"), Concurrency(5, "k")], "task x: two Concurrency limits have the key 'k'; keep one of them"),
        ([Rate("1/s", "k"), Rate("5/m", "k")], "two Rate limits have the key 'k'"),
        (5, r"limits are a list of Concurrency\(n, key=...\) and Rate\('100/s', key=...\), not 5"),
        (["k"], "not 'k'"),
        ("5/s", r"limits are a list of Concurrency\(n, key=...\) and Rate\('100/s', key=...\), not '5/s'"),
        (Concurrency(3, "{nick}"), "task x: Concurrency: the key '{nick}' names 'nick', which is no parameter; known are: name"),
        (Concurrency(3, "{"), "no valid template"),
        (Concurrency(3, "x" * 201), "has 201 characters, of at most 200: use a hash of it"),
        (Concurrency(3, "x" * 201 + "{name}"), "has 201 characters"),
        (Concurrency(3, "a\nb"), "holds a line break"),
        (Concurrency(3, "a\0b"), "another control character"),
        (Concurrency(3, "a\ud800"), "half a surrogate pair"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_where_they_are_declared(limits: Any, message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        declared_limits(limits, inspect.signature(lambda name: name).parameters, "task x")


def test_one_limit_alone_will_do_and_kinds_may_share_a_key() -> None:
    assert declared_limits(Concurrency(3, "k"), {}, "x") == (Concurrency(3, "k"),)
    both = (Concurrency(3, "k"), Rate("1/s", "k"))
    assert declared_limits(both, {}, "x") == both


def test_of_limits_whose_templates_give_the_same_key_the_stricter_one_counts() -> None:
    assert strictest([SlotLimit("k", 3), SlotLimit("k", 2), SlotLimit("l", 9)]) == (SlotLimit("k", 2), SlotLimit("l", 9))
    assert strictest([RateLimit("k", 5), RateLimit("k", 7)]) == (RateLimit("k", 7),)
    assert strictest([RateLimit("k", 5, 9), RateLimit("k", 5, 9, 5)]) == (RateLimit("k", 5, 9, 5),)
    assert strictest([RateLimit("k", 5, 9), RateLimit("k", 5, 2)]) == (RateLimit("k", 5, 2),)


def tenant(tenant_id: str) -> str:
    return tenant_id


class Keys:
    def __call__(self, tenant_id: str) -> str:
        return tenant_id


def test_a_declaration_is_known_by_its_template_or_function_and_else_by_its_place() -> None:
    assert rule_of(Concurrency(3, "tenant:{t}"), "task[0]") == "tenant:{t}"
    assert rule_of(Concurrency(3, tenant), "task[0]") == f"{__name__}.tenant"
    made: list[Callable[..., str]] = [
        lambda tenant_id: tenant_id,
        lambda tenant_id: f"a:{tenant_id}",
        lambda tenant_id: f"b:{tenant_id}",
        lambda tenant_id: "all",
        Keys(),
        partial(tenant, "ada"),
    ]
    rules = [rule_of(Concurrency(3, nameless), "task[0]") for nameless in made]
    assert len(set(rules)) == len(made), "what takes another's place is not known as that"
    assert all(rule.startswith("task[0] ") for rule in rules)
    assert rules == [rule_of(Concurrency(5, nameless), "task[0]") for nameless in made]


def test_a_declaration_without_a_name_is_the_same_in_every_process() -> None:
    """Hashes of texts, and so the order of sets, differ from process to process, as places in memory do."""
    program = """
from functools import partial
from offload import Concurrency
from offload.limits import rule_of
print(rule_of(Concurrency(1, lambda tenant: tenant if tenant in {"ada", "bob", "eve"} else "all"), "t[0]"))
print(rule_of(Concurrency(1, partial(lambda given, tenant: tenant, object())), "t[0]"))
"""
    told = {
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1, told


def test_a_limit_that_takes_the_place_of_another_does_not_count_for_its_jobs() -> None:
    def limited(*limits: Concurrency) -> Any:
        return task_of(lambda tenant: tenant, limits=list(limits))

    def smtp() -> Concurrency:
        return Concurrency(2, key=lambda tenant: f"smtp:{tenant}")

    (old,) = limited(smtp()).job("ada").limits
    everybody, same = limited(Concurrency(50, key=lambda tenant: "all"), smtp()).job("ada").limits
    assert (everybody.key, same.key) == ("all", old.key)
    assert old.rule not in (everybody.rule, same.rule)


def test_a_limit_carries_the_declaration_that_it_comes_from() -> None:
    assert limit_of(Concurrency(3, "t:{t}"), "t:7", "t:{t}") == SlotLimit("t:7", 3, "t:{t}")
    assert limit_of(Rate("100/s", "r", burst=20, cost=2), "r") == RateLimit("r", 10_000, 20, 2)


@pytest.mark.parametrize(
    ("key", "template", "fit"),
    [
        ("tenant:7", "tenant:{id}", True),
        ("tenant:", "tenant:{id}", True),
        ("tennant:7", "tenant:{id}", False),
        ("a.b:7!", "a.b:{id}!", True),
        ("axb:7!", "a.b:{id}!", False),
        ("{7}", "{{{id}}}", True),
        ("all", "all", True),
        ("anything", tenant, True),
    ],
)
def test_a_key_fits_a_template_that_could_make_it(key: str, template: Any, fit: bool) -> None:
    assert fits(key, template) is fit


def test_what_is_set_for_a_key_is_what_was_given() -> None:
    assert change_of("k", 3, UNSET, UNSET, UNSET) == LimitChange(n=3)
    assert change_of("k", None, "100/s", 20, UNSET) == LimitChange(n=None, interval=10_000, burst=20)
    assert change_of("k", UNSET, None, None, False) == LimitChange(interval=None, burst=None, paused=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"set_limit\('k'\) changes nothing: give concurrency=, rate=, burst= or paused="),
        ({"key": "", "paused": True}, "the key of set_limit must be a text that is not empty"),
        ({"key": "x" * 201, "paused": True}, "has 201 characters, of at most 200"),
        ({"concurrency": 0}, r"concurrency=...\) must be a whole number of at least 1, or None .*, not 0; paused=True stops a key"),
        ({"concurrency": True}, "not True$"),
        ({"concurrency": False}, "not False$"),
        ({"concurrency": -1}, "not -1$"),
        ({"burst": 0}, r"burst=...\) must be .*, not 0$"),
        ({"rate": "2000000/s"}, "leave the limit out$"),
        ({"rate": "fast"}, "not 'fast'"),
        ({"rate": "0/s"}, "paused=True"),
        ({"rate": 5}, "not 5"),
        ({"paused": None}, "paused=None.*: say True or False"),
    ],
)
def test_what_cannot_be_set_for_a_key_is_refused(given: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"key": "k", "concurrency": UNSET, "rate": UNSET, "burst": UNSET, "paused": UNSET} | given
    with pytest.raises(BadDeclaration, match=message):
        change_of(**asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"limit": 0}, "at least 1"),
        ({"limit": -1}, "at least 1"),
        ({"limit": "7"}, "at least 1"),
        ({"key": ""}, "must be a text that is not empty"),
        ({"after": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_what_limits_cannot_be_asked_for_is_said(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDeclaration, match=message):
        Offload("memory://").limits(**asked)
