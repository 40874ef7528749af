"""Where a thread stands, for log lines about what blocks or does not end; and what the frames of an ended attempt hold."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from typing import Any, cast

_SUSPENDABLE = 0 if sys.version_info >= (3, 13) else CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR
"""Frames that may yet go on, and that clearing would end; from Python 3.13 on it refuses to."""


def stack_of(thread: int) -> list[str]:
    """The frames of a thread of this process, outermost first, each as `file:line in function: code`; empty when it has ended."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] - documented; the underscore only warns
    if frame is None:
        return []
    return [f"{each.filename}:{each.lineno} in {each.name}: {each.line}" for each in traceback.extract_stack(frame)]


def let_go(error: BaseException) -> None:
    """Drop the local variables of the functions that `error` went through; its traceback keeps their lines.

    Who keeps the error would else keep the task's cursors, and with an open one of SQLite the lock on the file that its job is settled in.
    """
    for each in _chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if not frame.f_code.co_flags & _SUSPENDABLE:
                with suppress(RuntimeError):  # one that still runs: the worker's own
                    frame.clear()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """It, and what caused it or was on the way when it was raised."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[Any]", each).exceptions
