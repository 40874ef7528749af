"""`offload workers`: lists who is at work."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from offload.cli import output
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import Column, show_table
from offload.presence import quiet, silent
from offload.records import SessionRecord

if TYPE_CHECKING:
    from offload.app import Offload

COLUMNS = (
    Column("worker", whole=True),
    Column("queues"),
    Column("tasks", whole=True, spare=2, justify="right"),
    Column("running", whole=True, justify="right"),
    Column("concurrency", whole=True, spare=4, justify="right"),
    Column("last beat", whole=True, spare=5),
    Column("started", whole=True, spare=3),
    Column("version", whole=True, spare=1),
)


@click.command()
@app_argument
@output.json_option
@takes_app
def workers(app: Offload, as_json: bool) -> None:
    """List the workers whose sessions are open, oldest first, with what they serve and when they last beat."""
    found, now = app.workers(), app.clock.now()
    if as_json:
        output.emit([plain(each, now) for each in found])
        return
    show_table(COLUMNS, [_row(each, now) for each in found], empty="No worker is alive; start one with `offload worker`.")


def _row(session: SessionRecord, now: datetime) -> tuple[str, ...]:
    info = session.info
    queues = "all" if info.queues is None else ", ".join(info.queues)
    beat = output.ago(session.beat_at, now) + (" (silent)" if quiet(session, now) else "")
    started = output.ago(session.started_at, now)
    return (info.name, queues, str(len(info.tasks)), str(session.running), str(info.concurrency), beat, started, info.version)


def plain(session: SessionRecord, now: datetime) -> dict[str, Any]:
    """A worker as JSON carries it."""
    info = session.info
    return {
        "name": info.name,
        "host": info.host,
        "pid": info.pid,
        "queues": None if info.queues is None else list(info.queues),
        "tasks": sorted(info.tasks),
        "running": session.running,
        "concurrency": info.concurrency,
        "version": info.version,
        "started_at": output.iso(session.started_at),
        "beat_at": output.iso(session.beat_at),
        "silent": silent(session, now),
    }
