"""Unique keys: what may be declared, and the key of one job."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from offload.errors import BadDeclaration, BadPayload
from offload.job import UniqueKey
from offload.limits import LONGEST_KEY, Unique, declared, literal, resolve


def test_a_template_is_filled_from_the_arguments() -> None:
    unique = Unique("digest:{user_id}:{name[0]}", until="started", on_conflict="replace")
    assert resolve(unique, {"user_id": 7, "name": "Ann"}, (7,), {}, "task x") == UniqueKey("digest:7:A", "started", "replace")


def test_a_callable_takes_the_same_arguments() -> None:
    unique = Unique(lambda user_id, name="": f"{user_id}/{name.lower()}")
    assert resolve(unique, {}, (7,), {"name": "Ann"}, "task x") == UniqueKey("7/ann")


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
    assert declared("mail:{user.id}", {"user": None}, "task x") == Unique("mail:{user.id}")
    with pytest.raises(BadDeclaration, match=r"task x: the unique key 'mail:{to}' names 'to', which is no parameter; known are: user"):
        declared("mail:{to}", {"user": None}, "task x")
    with pytest.raises(BadDeclaration, match="names ''"):
        declared("mail:{}", {"user": None}, "task x")
    with pytest.raises(BadDeclaration, match="no valid template"):
        declared("mail:{", {"user": None}, "task x")


@pytest.mark.parametrize(
    ("key", "message"),
    [("{text}", "not empty"), ("{text.nothing}", "could not be made: AttributeError"), (lambda text: 7, "must be a text")],
)
def test_a_key_that_cannot_be_made_is_refused_at_enqueue(key: Any, message: str) -> None:
    with pytest.raises(BadPayload, match=message):
        resolve(Unique(key), {"text": ""}, ("",), {}, "task x")


def test_a_key_has_a_greatest_length() -> None:
    assert literal(Unique("k"), "x" * LONGEST_KEY, "x").key == "x" * LONGEST_KEY
    with pytest.raises(BadPayload, match="has 201 characters, of at most 200"):
        literal(Unique("k"), "x" * (LONGEST_KEY + 1), "x")
