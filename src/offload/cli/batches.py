"""`offload batches`: lists batches, shows one with its progress and callbacks, seals or cancels one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from offload.cli import output
from offload.cli.confirm import ask, yes_option
from offload.cli.groups import ListingGroup
from offload.cli.loading import app_argument, takes_app
from offload.cli.tallies import bar, plain, show_page, state_of, takes_page
from offload.cli.values import Name
from offload.errors import JobNotFound
from offload.job import State

if TYPE_CHECKING:
    from offload.app import Offload

id_argument = click.argument("batch_id", metavar="ID", type=Name())


@click.group(cls=ListingGroup)
def batches() -> None:
    """List, show, seal and cancel batches. Without a command it lists."""


@batches.command("list")
@app_argument
@takes_page
@output.json_option
@takes_app
def list_batches(app: Offload, limit: int, after: str | None, as_json: bool) -> None:
    """List batches, newest first, with how far each is."""
    show_page("batch", app.batches(limit=limit, after=after), limit, app.clock.now(), as_json=as_json)


@batches.command()
@id_argument
@output.json_option
@takes_app
def show(app: Offload, batch_id: str, as_json: bool) -> None:
    """Show how far the batch ID is, and what becomes of its callbacks."""
    from rich.text import Text

    tally = app.batch(id=batch_id).progress()
    if as_json:
        output.emit(plain(tally))
        return
    output.show(Text(f"{tally.name or tally.id}  {state_of(tally)}  ", style="bold").append_text(bar(tally)))
    for which, id in tally.callbacks:
        click.echo(f"on_{which}: {_callback(app, id)}  {id}")


def _callback(app: Offload, id: str) -> str:
    try:
        record = app.handle(id).record()
    except JobNotFound:
        return "gone, for it never came due or its record is forgotten"
    return "not due" if record.state is State.WAITING else record.state.value


@batches.command()
@id_argument
@takes_app
def seal(app: Offload, batch_id: str) -> None:
    """Let no more jobs be added to the batch ID from outside.

    It is finished once those that it has have ended.
    """
    batch = app.batch(id=batch_id)
    batch.progress()
    click.echo(f"Batch {batch_id} is sealed." if batch.seal() else f"Batch {batch_id} was sealed before.")


@batches.command()
@id_argument
@yes_option
@takes_app
def cancel(app: Offload, batch_id: str, yes: bool) -> None:
    """Cancel all jobs of the batch ID, and seal it.

    Those that run are stopped by their workers within a beat.
    """
    batch = app.batch(id=batch_id)
    tally = batch.progress()
    if open_jobs := tally.waiting + tally.running:
        ask(f"Cancel {open_jobs:,} jobs of batch {batch_id}?", yes=yes)
    click.echo(f"Batch {batch_id} is being cancelled." if batch.cancel() else f"Batch {batch_id} has ended already.")
