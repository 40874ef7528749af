"""What `offload workflows` and `offload batches` show of a workflow or batch: a row of its numbers, a bar, its numbers as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from offload.cli import output
from offload.cli.tables import Column, show_table
from offload.job import Tally

if TYPE_CHECKING:
    from rich.text import Text

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


def columns(kind: str) -> tuple[Column, ...]:
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


def show_tallies(kind: str, found: Sequence[Tally], now: datetime) -> None:
    """Print a list of workflows or batches."""
    rows = [
        (
            tally.id,
            tally.name,
            state_of(tally),
            plain_bar(tally),
            f"{tally.total:,}",
            f"{tally.dead + tally.expired:,}",
            output.ago(tally.created_at, now),
            output.ago(tally.finished_at, now),
        )
        for tally in found
    ]
    show_table(columns(kind), rows, empty=f"There is no {kind}.")


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
