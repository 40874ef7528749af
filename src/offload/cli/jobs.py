"""`offload jobs`: lists, shows, cancels, retries and deletes jobs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from offload.cli import filters, output, records
from offload.cli.actions import CANCEL, DELETE, RETRY, Action, carry_out
from offload.cli.confirm import yes_option
from offload.cli.filters import takes_filter
from offload.cli.groups import ListingGroup
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import Column, show_table
from offload.cli.values import json_object
from offload.job import Filter, Record

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
    found = filters.find(app, filter, limit, after)
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


@jobs.command()
@click.argument("id")
@reveal_option
@output.json_option
@takes_app
def show(app: Offload, id: str, reveal: bool, as_json: bool) -> None:
    """Show all that is known of the job ID, with the traceback of every failed attempt."""
    record = app.handle(id).record()
    if as_json:
        output.emit(records.plain(record, app, reveal=reveal))
    else:
        click.echo(_described(record, app, reveal=reveal))


def _described(record: Record, app: Offload, *, reveal: bool) -> str:
    plain = records.plain(record, app, reveal=reveal)
    errors: list[dict[str, Any]] = plain.pop("errors")
    payload: dict[str, Any] = plain.pop("payload")
    shown = {name: value for name, value in plain.items() if value not in (None, {}, "")}
    for name in ("progress", "unique"):
        if name in shown:
            shown[name] = ", ".join(str(each) for each in shown[name].values() if each != "")
    lines = [f"{name.replace('_', ' '):<12} {_value(value)}" for name, value in shown.items()]
    lines += ["", "arguments", *(f"  {name} = {_value(value)}" for name, value in payload.items())]
    if not payload:
        lines[-1] = "arguments    none"
    if records.MASK in payload.values() and record.task not in app.tasks:
        lines.append("  (hidden, for the task is not known here and may mask them: give the app, or --reveal)")
    for error in errors:
        lines += ["", f"attempt {error['attempt']} failed at {error['at']} with {error['type']}: {error['message']}"]
        lines += [f"  {line}" for line in error["traceback"].rstrip().splitlines()]
    return output.printable("\n".join(lines))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def takes_jobs(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the ids it is to act on, by name or by a filter, and how: `named`, `yes`, `dry`, `as_json`."""

    @click.argument("ids", nargs=-1)
    @takes_filter
    @click.option("--all-matching", is_flag=True, help="Act on all the jobs that the filters find, in place of ids.")
    @click.option("--dry-run", "dry", is_flag=True, help="Only count them.")
    @yes_option
    @output.json_option
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
    carry_out(action, chosen, act, named=bool(ids), **how)


@jobs.command()
@takes_jobs
@takes_app
def cancel(app: Offload, ids: tuple[str, ...], filter: Filter, **how: bool) -> None:
    """Cancel jobs: at once where they have not started, else by asking their worker."""
    _act(app, CANCEL, ids, filter, app.cancel, **how)


@jobs.command()
@click.option("--payload", metavar="JSON", help="Other arguments, as a JSON object.")
@takes_jobs
@takes_app
def retry(app: Offload, ids: tuple[str, ...], filter: Filter, payload: str | None, **how: bool) -> None:
    """Make dead, cancelled and expired jobs ready again, with fresh attempts."""
    other = None if payload is None else json_object(payload)
    _act(app, RETRY, ids, filter, lambda chunk: app.retry(chunk, other), **how)


@jobs.command()
@takes_jobs
@takes_app
def delete(app: Offload, ids: tuple[str, ...], filter: Filter, **how: bool) -> None:
    """Delete jobs and their records, but for running ones."""
    _act(app, DELETE, ids, filter, app.delete, **how)
