"""Prints: JSON for programs, text for people. Both go through click, which keeps colours and broken pipes away from other programs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

F = TypeVar("F", bound=Callable[..., Any])

UNBOUNDED = 10_000
"""Columns of output that is not a terminal: nothing is cut for a program to miss."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; times are ISO 8601 in UTC.")


def emit(value: Any) -> None:
    """Print plain values as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show(renderable: RenderableType) -> None:
    """Print what rich can render, as wide as the terminal, or as it needs where there is none."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else UNBOUNDED, force_terminal=terminal, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def width() -> int:
    """The columns there are to print in."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED


def note(text: str) -> None:
    """Tell a person something that is no part of the answer."""
    click.echo(text, err=True)


def iso(moment: datetime | None) -> str | None:
    """A moment as JSON carries it."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def ago(moment: datetime | None, now: datetime) -> str:
    """A moment as people say it: `3 s ago`, `in 5 min`."""
    if moment is None:
        return ""
    seconds = (now - moment).total_seconds()
    return f"in {span(-seconds)}" if seconds < -0.5 else f"{span(max(seconds, 0.0))} ago"


def span(seconds: float) -> str:
    """A duration in its largest fitting unit."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def exact(seconds: float) -> str:
    """A duration that was set, in the largest unit that tells it exactly."""
    for unit, size in (("day", 86_400), ("h", 3_600), ("min", 60)):
        if seconds and seconds % size == 0:
            return count(int(seconds // size), unit, "days" if unit == "day" else unit)
    return f"{seconds:g} s"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 job`, `1,200 jobs`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Text from elsewhere with nothing in it that a terminal would obey."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


def line(text: str) -> str:
    """Text from elsewhere as one line."""
    return " ".join(printable(text).split())
