"""The options that say which jobs are meant, and the way through all that match."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from offload.cli import records
from offload.job import State
from offload.records import Filter, Record

if TYPE_CHECKING:
    from offload.app import Offload

R = TypeVar("R")

PAGE = 500


def takes_filter(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the argument `filter` from --state, --task, --queue, --key, --workflow, --batch and --text."""

    @click.option("--state", type=click.Choice(list(State), case_sensitive=False), help="Only jobs in this state.")
    @click.option("--task", help="Only jobs of this task.")
    @click.option("--queue", help="Only jobs of this queue.")
    @click.option("--key", help="Only jobs of this key: a unique key, or that of their order, limits or fair turn.")
    @click.option("--workflow", metavar="ID", help="Only jobs of this workflow.")
    @click.option("--batch", metavar="ID", help="Only jobs of this batch, its callbacks included.")
    @click.option("--text", help="Only jobs with this text in id, task, shown arguments or errors.")
    @functools.wraps(function)
    def command(*args: Any, state: str | None, **kwargs: Any) -> R:
        others = {name: kwargs.pop(name) for name in ("task", "queue", "key", "text", "workflow", "batch")}
        filter = Filter(state=None if state is None else State(state), **others)
        return function(*args, filter=filter, **kwargs)

    return command


def find(app: Offload, filter: Filter, limit: int, after: str | None = None, *, reveal: bool = False) -> list[Record]:
    """One page of the records that match, newest enqueued first."""
    return list(islice(matching(app, filter, after, min(limit, PAGE), reveal=reveal), limit))


def matching(app: Offload, filter: Filter, after: str | None = None, most: int = PAGE, *, reveal: bool = False) -> Iterator[Record]:
    """All the records that match, newest enqueued first, asked for `most` at a time. Nobody learns by a text what is masked."""
    while page := _page(app, filter, most, after):
        yield from (record for record in page if filter.text is None or _shows(record, app, filter.text, reveal=reveal))
        if len(page) < most:
            return
        after = page[-1].id


def _page(app: Offload, filter: Filter, limit: int, after: str | None) -> list[Record]:
    return app.find(**msgspec.structs.asdict(filter), limit=limit, after=after)


def _shows(record: Record, app: Offload, text: str, *, reveal: bool) -> bool:
    """Whether the text stands in what may be shown of a job."""
    arguments = msgspec.json.encode(records.payload(record, app, reveal=reveal)).decode()
    said = (record.id, record.task, arguments, *(error.message for error in record.errors))
    return any(text.casefold() in each.casefold() for each in said)


def ids_in(app: Offload, filter: Filter, states: Sequence[State]) -> list[str]:
    """The ids of the jobs that match and are in one of `states`."""
    wanted = [state for state in states if filter.state in (None, state)]
    return [record.id for state in wanted for record in matching(app, msgspec.structs.replace(filter, state=state))]
