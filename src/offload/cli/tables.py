"""Tables that fit: whole ids always, lesser columns only where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from offload.cli import output

if TYPE_CHECKING:
    from rich.text import Text

GAP = 2

STYLES = {
    "SCHEDULED": "blue", "WAITING": "magenta", "READY": "cyan", "RUNNING": "bold green", "SUCCEEDED": "green",
    "DEAD": "bold red", "CANCELLED": "yellow", "EXPIRED": "yellow", "error": "bold red", "warning": "yellow", "info": "blue",
    "paused": "yellow",
}  # fmt: skip
"""How words that stand alone in a cell look."""


@dataclass(frozen=True, slots=True)
class Column:
    """Where it is narrow, columns are cut down to `least` characters (but `whole` ones), and then left out by their `spare`, 1 first."""

    title: str
    whole: bool = False
    spare: int = 0
    least: int = 8
    justify: Literal["left", "right"] = "left"


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print the rows, or on standard error that there are none."""
    if not rows:
        output.note(empty)
        return
    from rich.table import Table

    rows = [[output.line(cell) for cell in row] for row in rows]
    widths = fitting(columns, rows, output.width())
    table = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold", pad_edge=False)
    for index, width in widths.items():
        column = columns[index]
        table.add_column(column.title, no_wrap=True, width=width, justify=column.justify, overflow="fold" if column.whole else "ellipsis")
    for row in rows:
        table.add_row(*(_cell(row[index]) for index in widths))
    output.show(table)


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> dict[int, int]:
    """The columns for which there is room, by index, and how wide each is. What is left over goes to the first that can use it."""
    from rich.cells import cell_len

    full = [max(cell_len(cell) for cell in cells) for cells in zip([column.title for column in columns], *rows, strict=True)]
    least = [width if column.whole else min(width, column.least) for column, width in zip(columns, full, strict=True)]
    kept = list(range(len(columns)))
    while _total(least, kept) > room and (spare := [index for index in kept if columns[index].spare]):
        kept.remove(min(spare, key=lambda index: columns[index].spare))
    over = max(0, room - _total(least, kept))
    widths: dict[int, int] = {}
    for index in kept:
        more = min(over, full[index] - least[index])
        widths[index] = least[index] + more
        over -= more
    return widths


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[index] for index in kept) + GAP * (len(kept) - 1)


def _cell(text: str) -> Text:
    from rich.text import Text

    return Text(text, style=STYLES.get(text, ""))
