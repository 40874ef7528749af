"""`offload dead`: the dead letters, by task and error; to be retried, or purged for good."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click

from offload.cli import filters, output, records
from offload.cli.actions import DELETE, RETRY, Action, carry_out, takes_way
from offload.cli.groups import ListingGroup
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import Column, show_table
from offload.job import Failure, State
from offload.records import Filter, Record
from offload.wording import error_text

if TYPE_CHECKING:
    from offload.app import Offload

F = TypeVar("F", bound=Callable[..., object])

COLUMNS = (
    Column("jobs", whole=True, justify="right"),
    Column("task"),
    Column("error"),
    Column("last", whole=True),
    Column("latest id", whole=True, spare=1),
    Column("message", spare=2, least=16),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead jobs are meant; None leaves a field open."""

    task: str | None
    queue: str | None
    error: str | None
    text: str | None

    def find(self, app: Offload) -> Iterator[Record]:
        """The dead jobs meant, newest enqueued first."""
        found = filters.matching(app, Filter(state=State.DEAD, task=self.task, queue=self.queue, text=self.text))
        return (record for record in found if self.error is None or kind(record) == self.error)


def kind(record: Record) -> str:
    """Under which error a dead job is listed: the type of its last failure, or the reason where no attempt failed."""
    return record.errors[-1].type if record.errors else record.reason or "no reason was recorded"


def wanted_options(function: F) -> F:
    """Add --task, --queue, --error and --text."""
    for option in (
        click.option("--text", help="Only jobs with this text in id, task, shown arguments or errors."),
        click.option("--error", help="Only jobs listed under this error."),
        click.option("--queue", help="Only jobs of this queue."),
        click.option("--task", help="Only jobs of this task."),
    ):
        function = option(function)
    return function


@click.group(cls=ListingGroup)
def dead() -> None:
    """List, retry and purge dead jobs. Without a command it lists."""


@dead.command("list")
@app_argument
@wanted_options
@output.json_option
@takes_app
def list_dead(app: Offload, task: str | None, queue: str | None, error: str | None, text: str | None, as_json: bool) -> None:
    """List dead jobs by task and error, most numerous first."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in Wanted(task, queue, error, text).find(app):
        groups.setdefault((record.task, kind(record)), []).append(record)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    if as_json:
        output.emit([_plain(*key, group) for key, group in ordered])
        return
    now = app.clock.now()
    rows: list[tuple[str, ...]] = []
    for (name, failure), group in ordered:
        latest = _latest(group)
        message = _message(latest.errors[-1]) if latest.errors else latest.reason or ""
        rows.append((f"{len(group):,}", name, failure, output.ago(latest.finished_at, now), latest.id, message))
    any_dead = any(State.DEAD in states for states in app.counts().values())
    show_table(COLUMNS, rows, empty="No dead job matches." if any_dead else "No job is dead.")


def _message(failure: Failure) -> str:
    """What it says beside its type, which has a column of its own."""
    return error_text(failure).removeprefix(f"{failure.type}: ") if failure.message else ""


def _latest(group: list[Record]) -> Record:
    return max(group, key=lambda record: (record.finished_at or record.enqueued_at, record.id))


def _plain(task: str, error: str, group: list[Record]) -> dict[str, object]:
    latest = _latest(group)
    ended = [record.finished_at for record in group if record.finished_at is not None]
    return {
        "task": task,
        "error": error,
        "jobs": len(group),
        "first_at": output.iso(min(ended, default=None)),
        "last_at": output.iso(max(ended, default=None)),
        "latest_id": latest.id,
        "latest": records.last_error(latest),
    }


def _acts(function: F) -> F:
    return wanted_options(click.argument("ids", nargs=-1)(takes_way(function)))


def _act(
    app: Offload, action: Action, ids: tuple[str, ...], wanted: Wanted, act: Callable[[list[str]], Iterable[str]], **how: bool
) -> None:
    if ids and wanted != Wanted(None, None, None, None):
        raise click.UsageError("say which jobs: either their ids, or filters such as --task (none for all)")
    if ids:
        known = [id for id in ids if app.handle(id).record().state is State.DEAD]
        if stray := [id for id in ids if id not in known]:
            raise click.ClickException(f"not dead: {', '.join(stray)}; nothing was changed")
    carry_out(app, action, list(ids) or [record.id for record in wanted.find(app)], act, named=bool(ids), **how)


@dead.command()
@_acts
@takes_app
def retry(
    app: Offload, ids: tuple[str, ...], task: str | None, queue: str | None, error: str | None, text: str | None, **how: bool
) -> None:
    """Make dead jobs ready again: IDS, or all that the filters find."""
    _act(app, RETRY, ids, Wanted(task, queue, error, text), app.retry, **how)


@dead.command()
@_acts
@takes_app
def purge(
    app: Offload, ids: tuple[str, ...], task: str | None, queue: str | None, error: str | None, text: str | None, **how: bool
) -> None:
    """Delete dead jobs for good: IDS, or all that the filters find."""
    _act(app, DELETE, ids, Wanted(task, queue, error, text), app.delete, **how)
