"""What `offload workflows` and `offload batches` show of a workflow or batch: a row of its numbers, a bar, its numbers as JSON."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from offload.cli import output
from offload.cli.tables import Column, show_table
from offload.errors import JobNotFound
from offload.job import TallyKind
from offload.records import Tally

if TYPE_CHECKING:
    from rich.text import Text

    from offload.app import Offload

R = TypeVar("R")

BAR = 20
"""Characters of a progress bar."""
_PARTS = (
    ("succeeded", "green", "█"),
    ("dead", "red", "X"),
    ("expired", "yellow", "x"),
    ("cancelled", "yellow", "▒"),
    ("running", "cyan", "▓"),
    ("waiting", "dim", "·"),
)
"""How the jobs in each state are drawn; differently also where there are no colours."""
_ENDED = {"succeeded": "succeeded", "failed": "dead", "cancelled": "cancelled"}
"""As what the end of a workflow or batch without any jobs is drawn."""


def columns(kind: TallyKind) -> tuple[Column, ...]:
    """The columns of a list of workflows or batches."""
    return (
        Column(kind, whole=True),
        Column("name", spare=4),
        Column("state", whole=True),
        Column("done", whole=True),
        Column("jobs", whole=True, justify="right"),
        Column("failed", whole=True, spare=3, justify="right"),
        Column("began", whole=True, spare=2),
        Column("ended", whole=True, spare=1),
    )


def takes_page(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command that lists workflows or batches the options --limit and --after."""
    after = click.option("--after", metavar="ID", help="Go on after this one: the last of the page before.")
    limit = click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The most to list.")
    return limit(after(function))


def show_page(app: Offload, kind: TallyKind, limit: int, after: str | None, *, as_json: bool) -> None:
    """Print a page of at most `limit` workflows or batches, and how to go on where there may be more."""
    if after is not None:
        _known(app, kind, after)
    found = (app.workflows if kind == "workflow" else app.batches)(limit=limit, after=after)
    if as_json:
        output.emit([plain(tally) for tally in found])
        return
    now = app.clock.now()
    empty = f"There is no {kind}." if after is None else f"There is no older {kind}."
    show_table(columns(kind), [_row(tally, now) for tally in found], empty=empty)
    if len(found) == limit:
        output.note(f"There may be more: --after {found[-1].id}")


def _known(app: Offload, kind: TallyKind, after: str) -> None:
    try:
        (app.workflow(after) if kind == "workflow" else app.batch(id=after)).progress()
    except JobNotFound as error:
        raise click.ClickException(f"--after {after}: there is no such {kind}, so it is not known where to go on") from error


def _row(tally: Tally, now: datetime) -> tuple[str, ...]:
    return (
        tally.id,
        tally.name,
        state_of(tally),
        plain_bar(tally),
        f"{tally.total:,}",
        f"{tally.dead + tally.expired:,}",
        output.ago(tally.created_at, now),
        output.ago(tally.finished_at, now),
    )


def state_of(tally: Tally) -> str:
    """How it goes, in a word or two."""
    if tally.state == "running" and tally.stopped:
        return "being cancelled"
    if tally.state == "running" and tally.kind == "batch" and not tally.sealed:
        return "open"
    return "abandoned" if tally.abandoned else tally.state


def widths(tally: Tally) -> dict[str, int]:
    """How many characters of the bar each state takes, BAR in all; one at least, where there is any such job."""
    numbers = {name: getattr(tally, name) for name, *_ in _PARTS}
    if tally.finished_at is None:
        numbers["waiting"] += max(tally.size - tally.total, 0 if tally.total else 1)
    elif not tally.total:
        numbers[_ENDED[tally.state]] = 1
    total = sum(numbers.values())
    shown = {name: max(number * BAR // total, 1) if number else 0 for name, number in numbers.items()}
    shown[max(numbers, key=numbers.__getitem__)] += BAR - sum(shown.values())  # what rounding leaves, or takes too much
    return shown


def plain_bar(tally: Tally) -> str:
    """The bar without colours, as it stands in a table."""
    shown = widths(tally)
    return "".join(sign * shown[name] for name, _, sign in _PARTS)


def bar(tally: Tally) -> Text:
    """The bar in colours, with the numbers behind it."""
    from rich.text import Text

    text, shown = Text(), widths(tally)
    for name, style, sign in _PARTS:
        text.append(sign * shown[name], style=style)
    return text.append(f" {tally.told}")


def plain(tally: Tally) -> dict[str, Any]:
    """A workflow or batch, as JSON carries it."""
    numbers = {name: getattr(tally, name) for name in ("total", "waiting", "running", "succeeded", "dead", "cancelled", "expired")}
    return {
        "id": tally.id,
        "name": tally.name,
        "state": tally.state,
        "created_at": output.iso(tally.created_at),
        "finished_at": output.iso(tally.finished_at),
        **numbers,
        **({"size": tally.size} if tally.kind == "workflow" else {"sealed": tally.sealed, "callbacks": dict(tally.callbacks)}),
        "stopped": tally.stopped,
        "abandoned": tally.abandoned,
    }
