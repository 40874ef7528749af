"""`offload jobs`: lists, shows, cancels, retries and deletes jobs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from offload.cli import filters, output, records
from offload.cli.actions import CANCEL, DELETE, RETRY, Action, carry_out, takes_way
from offload.cli.filters import takes_filter
from offload.cli.groups import ListingGroup
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import Column, show_table
from offload.cli.values import json_object
from offload.errors import JobNotFound
from offload.job import State
from offload.portal import portal
from offload.records import Filter, Record
from offload.wording import failed

if TYPE_CHECKING:
    from offload.app import Offload

R = TypeVar("R")

COLUMNS = (
    Column("id", whole=True),
    Column("state", whole=True),
    Column("task"),
    Column("queue", spare=2),
    Column("attempt", whole=True, spare=1, justify="right"),
    Column("when", whole=True, spare=4),
    Column("note", spare=3, least=20),
)

LOOK_EVERY = 0.5
"""Seconds between two looks at a job that is followed."""

reveal_option = click.option("--reveal", is_flag=True, help="Show masked arguments too.")


@click.group(cls=ListingGroup)
def jobs() -> None:
    """List, show, cancel, retry and delete jobs. Without a command it lists."""


@jobs.command("list")
@app_argument
@takes_filter
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The most to list.")
@click.option("--after", metavar="ID", help="Go on after this job: the last one of the page before.")
@reveal_option
@output.json_option
@takes_app
def list_jobs(app: Offload, filter: Filter, limit: int, after: str | None, reveal: bool, as_json: bool) -> None:
    """List jobs, newest first."""
    if after is not None:
        _known(app, after)
    found = filters.find(app, filter, limit, after, reveal=reveal)
    if as_json:
        output.emit([records.plain(record, app, reveal=reveal) for record in found])
        return
    now = app.clock.now()
    rows = [
        (each.id, each.state, each.task, each.queue, str(each.attempt), output.ago(records.since(each), now), records.remark(each))
        for each in found
    ]
    show_table(COLUMNS, rows, empty="No job matches.")
    if len(found) == limit:
        output.note(f"There may be more: --after {found[-1].id}")


def _known(app: Offload, after: str) -> None:
    try:
        app.handle(after).record()
    except JobNotFound as error:
        raise click.ClickException(f"--after {after}: there is no such job, so it is not known where to go on") from error


@jobs.command()
@click.argument("id")
@click.option("--follow", is_flag=True, help="First show its state and progress as they change, until it has ended.")
@reveal_option
@output.json_option
@takes_app
def show(app: Offload, id: str, follow: bool, reveal: bool, as_json: bool) -> None:
    """Show all that is known of the job ID.

    With the traceback of every failed attempt. With --follow and --json, what changes is told on standard error.
    """
    record = app.handle(id).record()
    if follow:
        record = _followed(app, record, aside=as_json)
    if as_json:
        output.emit(records.plain(record, app, reveal=reveal))
    else:
        click.echo(_described(record, app, reveal=reveal))


def _followed(app: Offload, record: Record, *, aside: bool) -> Record:
    """Tell how the job goes on until it has ended. Returns its last record, which is all there is where none is kept."""
    from rich.console import Console

    console = Console(stderr=aside)
    live = console.status(_stage(record)) if console.is_terminal else None
    if live is not None:
        live.start()
    told = ""
    try:
        while True:
            stage = _stage(record)
            if live is not None:
                live.update(stage)
            elif stage != told:
                click.echo(stage, err=aside)
                told = stage
            if record.state.terminal:
                return record
            portal.run(_ended, app, record.id, LOOK_EVERY)
            record = app.handle(record.id).record()
    except JobNotFound:
        output.note("It has ended, and its record is not kept; this is the last that was seen of it.")
        return record
    finally:
        if live is not None:
            live.stop()


async def _ended(app: Offload, id: str, within: float) -> None:
    await (await app.store()).finished([id], within)


def _stage(record: Record) -> str:
    """State, attempt and remark in one line."""
    attempt = f"attempt {record.attempt}" if record.attempt else ""
    return output.line(", ".join(part for part in (record.state.value, attempt, records.remark(record)) if part))


def _described(record: Record, app: Offload, *, reveal: bool) -> str:
    plain = records.plain(records.with_outputs(record), app, reveal=reveal)
    plain.pop("errors")
    payload: dict[str, Any] = plain.pop("payload")
    shown = {name: value for name, value in plain.items() if value not in (None, {}, [], "")}
    shown.pop("cancel_asked")
    shown["state"] = _state(record)
    if record.unique is not None:
        shown["unique"] = ", ".join(str(each) for each in shown["unique"].values())
    if record.limits:
        shown["limits"] = "; ".join(f"{limit['key']}: {limit['allows']}" for limit in plain["limits"])
    if record.state is State.SUCCEEDED:  # what it last said while it ran: whoever has succeeded is not at 8 %
        shown.pop("progress", None)
    elif record.progress is not None:
        shown["progress"] = records.progress(record.progress)
    for name in ("timeout", "keep"):
        if name in shown:
            shown[name] = output.exact(shown[name])
    lines = [f"{name.replace('_', ' '):<12} {_value(value)}" for name, value in shown.items()]
    lines += ["", "arguments", *(f"  {name} = {_value(value)}" for name, value in payload.items())]
    if not payload:
        lines[-1] = "arguments    none"
    if records.MASK in payload.values() and record.task not in app.tasks:
        lines.append("  (hidden, for the task is not known here and may mask them: give the app, or --reveal)")
    earlier = records.earlier_lives(record)
    for number, error in enumerate(record.errors):
        before = " (before it was last retried by hand)" if number < earlier else ""
        lines += ["", f"attempt {error.attempt}{before} {failed(error, f'at {output.iso(error.at)}')}"]
        lines += [f"  {line}" for line in error.traceback.rstrip().splitlines()]
    return output.printable("\n".join(lines))


def _state(record: Record) -> str:
    if record.cancel_asked:
        return f"{record.state} (asked to stop)"
    retried = record.state is not State.SUCCEEDED and records.earlier_lives(record)
    return f"{record.state} (retried by hand, with fresh attempts)" if retried else record.state.value


def _value(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def takes_jobs(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the ids it is to act on, by name or by a filter, and how: `named`, `yes`, `dry`, `as_json`."""

    @click.argument("ids", nargs=-1)
    @takes_filter
    @click.option("--all-matching", is_flag=True, help="Act on all the jobs that the filters find, in place of ids.")
    @takes_way
    @functools.wraps(function)
    def command(*args: Any, ids: tuple[str, ...], all_matching: bool, filter: Filter, **kwargs: Any) -> R:
        filtered = filter != Filter()
        if all_matching == bool(ids) or (ids and filtered):
            raise click.UsageError("say which jobs: either their ids, or filters such as --task with --all-matching")
        return function(*args, ids=ids, filter=filter, **kwargs)

    return command


def _act(
    app: Offload, action: Action, ids: tuple[str, ...], filter: Filter, act: Callable[[list[str]], Iterable[str]], **how: bool
) -> None:
    chosen = list(ids) or filters.ids_in(app, filter, action.states)
    carry_out(app, action, chosen, act, named=bool(ids), **how)


@jobs.command()
@takes_jobs
@takes_app
def cancel(app: Offload, ids: tuple[str, ...], filter: Filter, **how: bool) -> None:
    """Cancel jobs.

    What has not started is cancelled at once. Of what runs the worker is asked to stop it.
    """
    _act(app, CANCEL, ids, filter, app.cancel, **how)


@jobs.command()
@click.option("--payload", metavar="JSON", help="Other arguments, as a JSON object.")
@takes_jobs
@takes_app
def retry(app: Offload, ids: tuple[str, ...], filter: Filter, payload: str | None, **how: bool) -> None:
    """Make dead, cancelled and expired jobs ready again.

    They get fresh attempts.
    """
    other = None if payload is None else json_object(payload)
    _act(app, RETRY, ids, filter, lambda chunk: app.retry(chunk, other), **how)


@jobs.command()
@takes_jobs
@takes_app
def delete(app: Offload, ids: tuple[str, ...], filter: Filter, **how: bool) -> None:
    """Delete jobs and their records, but for running ones."""
    _act(app, DELETE, ids, filter, app.delete, **how)
