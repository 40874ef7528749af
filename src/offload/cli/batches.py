"""`offload batches`: lists batches, shows one with its progress and callbacks, seals, retries or cancels one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from offload.cli import output
from offload.cli.actions import retry_failed, takes_way
from offload.cli.confirm import ask, yes_option
from offload.cli.groups import ListingGroup
from offload.cli.loading import app_argument, takes_app
from offload.cli.tallies import bar, plain, show_page, state_of, takes_page
from offload.cli.values import Name
from offload.errors import JobNotFound
from offload.job import Callback, State
from offload.records import Filter, Tally

if TYPE_CHECKING:
    from offload.app import Offload

id_argument = click.argument("batch_id", metavar="ID", type=Name())


@click.group(cls=ListingGroup)
def batches() -> None:
    """List, show, seal, retry and cancel batches. Without a command it lists."""


@batches.command("list")
@app_argument
@takes_page
@output.json_option
@takes_app
def list_batches(app: Offload, limit: int, after: str | None, as_json: bool) -> None:
    """List batches, newest first, with how far each is."""
    show_page(app, "batch", limit, after, as_json=as_json)


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
        click.echo(f"on_{which}: {_callback(app, tally, which, id)}  {id}")


def _callback(app: Offload, tally: Tally, which: Callback, id: str) -> str:
    try:
        record = app.handle(id).record()
    except JobNotFound:
        return "gone, for it never came due or its record is forgotten"
    return record.state.value if record.state is not State.WAITING or _is_due(tally, which) else "not due"


def _is_due(tally: Tally, which: Callback) -> bool:
    """Whether what a callback waits for has come: if it waits all the same, that is for something else, such as a slot."""
    match which:
        case "failure":
            return tally.abandoned or tally.dead + tally.expired > 0
        case "success":
            return tally.state == "succeeded"
        case "complete":
            return tally.finished_at is not None


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
@takes_way
@takes_app
def retry(app: Offload, batch_id: str, **how: bool) -> None:
    """Retry the jobs of the batch ID that failed, its callbacks included.

    The batch is running again, and can still succeed; callbacks that have been called are not called again.
    """
    app.batch(id=batch_id).progress()
    retry_failed(app, Filter(batch=batch_id), **how)


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
