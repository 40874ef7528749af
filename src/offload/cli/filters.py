"""The options that say which jobs are meant, and the way through all that match."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from offload.job import Filter, Record, State

if TYPE_CHECKING:
    from offload.app import Offload

R = TypeVar("R")

PAGE = 500


def takes_filter(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the argument `filter` from --state, --task, --queue, --key and --text."""

    @click.option("--state", type=click.Choice(list(State), case_sensitive=False), help="Only jobs in this state.")
    @click.option("--task", help="Only jobs of this task.")
    @click.option("--queue", help="Only jobs of this queue.")
    @click.option("--key", help="Only jobs with this unique key.")
    @click.option("--text", help="Only jobs with this text in id, task, payload or errors.")
    @functools.wraps(function)
    def command(*args: Any, state: str | None, task: str | None, queue: str | None, key: str | None, text: str | None, **kwargs: Any) -> R:
        filter = Filter(state=None if state is None else State(state), task=task, queue=queue, key=key, text=text)
        return function(*args, filter=filter, **kwargs)

    return command


def find(app: Offload, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
    """One page of the records that match, newest enqueued first."""
    return app.find(state=filter.state, task=filter.task, queue=filter.queue, key=filter.key, text=filter.text, limit=limit, after=after)


def matching(app: Offload, filter: Filter) -> Iterator[Record]:
    """All the records that match, a page at a time, newest enqueued first."""
    after = None
    while page := find(app, filter, PAGE, after):
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].id


def ids_in(app: Offload, filter: Filter, states: Sequence[State]) -> list[str]:
    """The ids of the jobs that match and are in one of `states`."""
    wanted = [state for state in states if filter.state in (None, state)]
    return [record.id for state in wanted for record in matching(app, msgspec.structs.replace(filter, state=state))]
