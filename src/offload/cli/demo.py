"""`offload demo`: starts the tour, which says itself what it needs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--once", is_flag=True, help="Play all of it without you, say what was observed, and exit 0 only if it all held.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port of the web site; 8000 if it is free, unless given.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where its files go; a temporary folder unless given.")
def demo(once: bool, port: int | None, folder: Path | None) -> None:
    """Take the tour: a sign-up site on SQLite, a worker with two processes, and a mail server that can be down."""
    from offload.demo import main

    raise SystemExit(main(once=once, port=port, folder=folder))
