"""What `offload workflows` and `offload batches` show of a workflow or batch: a row of its numbers, a bar, its numbers as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from offload.cli import output
from offload.cli.tables import Column, show_table
from offload.job import TallyKind
from offload.records import Tally

if TYPE_CHECKING:
    from rich.text import Text

R = TypeVar("R")

BAR = 20
"""Characters of a progress bar."""
_PARTS = (
    ("succeeded", "green", "█"),
    ("dead", "red", "█"),
    ("expired", "yellow", "█"),
    ("cancelled", "yellow", "▒"),
    ("running", "cyan", "▓"),
)
"""How the jobs in each state are drawn; what waits is drawn as dots."""


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


def show_page(kind: TallyKind, found: Sequence[Tally], limit: int, now: datetime, *, as_json: bool) -> None:
    """Print a page of at most `limit` workflows or batches, and how to go on where there may be more."""
    if as_json:
        output.emit([plain(tally) for tally in found])
        return
    show_table(columns(kind), [_row(tally, now) for tally in found], empty=f"There is no {kind}.")
    if len(found) == limit:
        output.note(f"There may be more: --after {found[-1].id}")


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
    """How many characters of the bar each state takes; one at least, where there is any such job."""
    wanted = {name: getattr(tally, name) for name, *_ in _PARTS}
    total = max(tally.total, tally.size, 1)
    return {name: max(number * BAR // total, 1) if number else 0 for name, number in wanted.items()}


def plain_bar(tally: Tally) -> str:
    """The bar without colours, as it stands in a table."""
    drawn = "".join(sign * widths(tally)[name] for name, _, sign in _PARTS)[:BAR]
    return drawn.ljust(BAR, "·")


def bar(tally: Tally) -> Text:
    """The bar in colours, with the numbers behind it."""
    from rich.text import Text

    text = Text()
    for name, style, sign in _PARTS:
        text.append(sign * min(widths(tally)[name], BAR - len(text)), style=style)
    text.append("·" * (BAR - len(text)), style="dim")
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
