"""`offload migrate`: brings the broker's schema to this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from offload.cli import output
from offload.cli.loading import app_argument, takes_app_or_makes

if TYPE_CHECKING:
    from offload.app import Offload


@click.command()
@app_argument
@output.json_option
@takes_app_or_makes
def migrate(app: Offload, as_json: bool) -> None:
    """Bring the schema of the app's broker to this version of Offload. Safe to repeat."""
    before, after = app.migrate()
    if as_json:
        output.emit({"from": before, "to": after})
    elif before == after:
        click.echo(f"The schema has version {after} already.")
    else:
        click.echo(f"The schema went from version {before} to {after}." if before else f"The schema was made, in version {after}.")
