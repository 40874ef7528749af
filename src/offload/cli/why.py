"""`offload why`: says why a job is not running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from offload.cli import output
from offload.cli.loading import takes_app

if TYPE_CHECKING:
    from offload.app import Offload


@click.command()
@click.argument("id")
@output.json_option
@takes_app
def why(app: Offload, id: str, as_json: bool) -> None:
    """Say why the job ID is not running, on which worker it runs, or how it ended."""
    explained = app.why(id)
    if as_json:
        output.emit({"id": id, "why": explained})
    else:
        click.echo(output.printable(explained))
