"""Errors and directives as values: they survive the way to another process, and say what they are given."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

import offload
from offload import (
    BadPayload,
    Cancel,
    Discard,
    IdConflict,
    JobCancelled,
    JobEnded,
    JobExpired,
    JobFailed,
    ParentNotFound,
    Record,
    RetryLater,
    Snooze,
    State,
    UniqueConflict,
)
from offload.codec import Arguments, Returns
from offload.job import Failure
from offload.testing.clock import START

RECORD = Record(
    id="j1", task="mail", enqueued_at=START, state=State.DEAD, errors=(Failure(1, START, "OSError", "down", "Traceback"),), steps={"a": 1}
)
MADE: dict[type[BaseException], tuple[Any, ...]] = {
    UniqueConflict: ("digest:7", "j1"),
    IdConflict: ("j1",),
    ParentNotFound: ("j1", "j0"),
    **dict.fromkeys((JobEnded, JobFailed, JobCancelled, JobExpired), ("it is dead", RECORD)),
    RetryLater: (30,),
    Snooze: (60,),
    Discard: ("no such user",),
    Cancel: ("too late",),
}
EXPORTED = [each for name in offload.__all__ if isinstance(each := getattr(offload, name), type) and issubclass(each, BaseException)]
WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickle_and_copy(kind: type[BaseException], way: str) -> None:
    error = kind(*MADE.get(kind, ("what happened",)))
    error.add_note("seen in the shop")
    back = WAYS[way](error)
    assert type(back) is kind
    assert (str(back), back.args, back.__dict__) == (str(error), error.args, error.__dict__)


@pytest.mark.parametrize("kind", [RetryLater, Snooze])
def test_a_delay_is_seconds_or_a_timedelta(kind: type[RetryLater | Snooze]) -> None:
    assert kind(timedelta(minutes=2)).delay == kind(120).delay == 120


def test_what_is_too_large_is_said_in_good_english() -> None:
    with pytest.raises(BadPayload, match="the result takes 300,002 bytes of JSON"):
        Returns(lambda: "").encode("x" * 300_000)


def test_json_keeps_its_name_in_messages() -> None:
    def work(number: int) -> None: ...

    with pytest.raises(BadPayload, match=": JSON is malformed"):
        Arguments(work).prove(b'{"number":]}')
    with pytest.raises(BadPayload, match="argument 'number': expected int, got str"):
        Arguments(work).prove(msgspec.json.encode({"number": "one"}))
