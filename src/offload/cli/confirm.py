"""Asks before what cannot be undone, and shows how far a long action is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import click

CHUNK = 500
"""Jobs that one call to the broker acts on."""

yes_option = click.option("-y", "--yes", is_flag=True, help="Do it without being asked.")


def ask(question: str, *, yes: bool) -> None:
    """Return when the answer is yes; else the program ends with 1 and nothing was changed."""
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)  # the question has no end of line of its own
        raise click.ClickException("nothing was changed: nobody was there to answer; give --yes to do it without being asked") from None
    if not agreed:
        raise click.ClickException("nothing was changed")


def in_chunks(ids: Sequence[str], doing: str, act: Callable[[list[str]], Iterable[str]]) -> set[str]:
    """Call `act` with all `ids`, a chunk at a time, with a progress bar on a terminal. Returns the ids it was done to."""
    starts: Iterable[int] = range(0, len(ids), CHUNK)
    if len(ids) > CHUNK and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        starts = track(starts, description=doing, console=Console(stderr=True), transient=True)
    done: set[str] = set()
    for start in starts:
        done.update(act(list(ids[start : start + CHUNK])))
    return done
