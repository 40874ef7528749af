"""`offload schedules`: lists schedules and their ticks; pauses, resumes, runs and removes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from offload.cli import output
from offload.cli.confirm import ask, yes_option
from offload.cli.groups import ListingGroup, near
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import Column, show_table
from offload.job import Schedule
from offload.records import ScheduleRecord
from offload.schedule import next_tick, preview

if TYPE_CHECKING:
    from offload.app import Offload

COLUMNS = (
    Column("schedule", whole=True),
    Column("rule", whole=True),
    Column("next", whole=True),
    Column("state", whole=True),
    Column("last", whole=True, spare=3),
    Column("fired", whole=True, spare=2, justify="right"),
    Column("skipped", whole=True, spare=1, justify="right"),
    Column("task", spare=5),
    Column("time zone", spare=4),
)


@click.group(cls=ListingGroup)
def schedules() -> None:
    """List, preview, pause, resume, run and remove schedules. Without a command it lists."""


@schedules.command("list")
@app_argument
@output.json_option
@takes_app
def list_schedules(app: Offload, as_json: bool) -> None:
    """List schedules.

    Also those that the app declares and no worker has made known yet.
    """
    now, found = app.clock.now(), app.schedules()
    known = {record.schedule.name for record in found}
    new = [
        ScheduleRecord(schedule=rule, next_at=next_tick(rule, now), declared=True)
        for name, rule in sorted(app.declared.items())
        if name not in known
    ]
    if as_json:
        output.emit([_plain(record, known=record.schedule.name in known) for record in (*found, *new)])
        return
    rows = [
        (
            record.schedule.name,
            rule_of(record.schedule),
            "" if record.paused else output.ago(record.next_at, now) or "never",
            _state(record, known=record.schedule.name in known),
            output.ago(record.last_at, now),
            f"{record.fired:,}",
            f"{record.skipped:,}",
            record.schedule.draft.task,
            record.schedule.timezone,
        )
        for record in (*found, *new)
    ]
    show_table(COLUMNS, rows, empty="There is no schedule.")
    if new:
        output.note("Schedules that are new start with the next worker of the app.")


def rule_of(schedule: Schedule) -> str:
    """The rule in one word or two."""
    return schedule.cron if schedule.cron is not None else f"every {output.span(schedule.every or 0.0)}"


def _state(record: ScheduleRecord, *, known: bool) -> str:
    return "paused" if record.paused else ("on" if known else "new")


def _plain(record: ScheduleRecord, *, known: bool) -> dict[str, Any]:
    rule = record.schedule
    return {
        "name": rule.name,
        "task": rule.draft.task,
        "queue": rule.draft.queue,
        "cron": rule.cron,
        "every": rule.every,
        "timezone": rule.timezone,
        "overlap": rule.overlap,
        "missed": rule.missed,
        "next_at": output.iso(record.next_at),
        "last_at": output.iso(record.last_at),
        "last_job": record.last_job,
        "paused": record.paused,
        "declared": record.declared,
        "known": known,
        "fired": record.fired,
        "skipped": record.skipped,
    }


@schedules.command("preview")
@click.argument("name")
@click.argument("number", type=click.IntRange(1, 1_000), default=5)
@output.json_option
@takes_app
def preview_ticks(app: Offload, name: str, number: int, as_json: bool) -> None:
    """Show the next NUMBER ticks (5 unless given) of the schedule NAME."""
    rules = {record.schedule.name: record.schedule for record in app.schedules()}
    rules = {**app.declared, **rules}
    if name not in rules:
        raise _unknown(name, list(rules))
    rule, now = rules[name], app.clock.now()
    ticks = preview(rule, now, number)
    if as_json:
        output.emit({"name": name, "ticks": [output.iso(tick) for tick in ticks]})
        return
    zone = ZoneInfo(rule.timezone)
    rows = [(f"{tick.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}", output.iso(tick) or "", output.ago(tick, now)) for tick in ticks]
    columns = (Column(rule.timezone, whole=True), Column("UTC", whole=True, spare=1), Column("", whole=True, spare=2))
    shown = (0, 2) if rule.timezone == "UTC" else (0, 1, 2)
    show_table(
        [columns[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        empty=f"Schedule {name!r} has no more ticks.",
    )


@schedules.command()
@click.argument("name")
@takes_app
def pause(app: Offload, name: str) -> None:
    """Let the schedule NAME enqueue nothing until it is resumed."""
    if not app.pause_schedule(name):
        raise _missing(app, name)
    click.echo(f"Schedule {name!r} is paused. `offload schedules resume {name}` lets it go on.")


@schedules.command()
@click.argument("name")
@takes_app
def resume(app: Offload, name: str) -> None:
    """Let the paused schedule NAME go on, with its next tick from now."""
    if not app.resume_schedule(name):
        raise _missing(app, name)
    click.echo(f"Schedule {name!r} goes on.")


@schedules.command()
@click.argument("name")
@output.json_option
@takes_app
def run(app: Offload, name: str, as_json: bool) -> None:
    """Enqueue one extra job of the schedule NAME now.

    Prints the job's id. The ticks of the schedule stay as they are.
    """
    if name not in _names(app):
        raise _missing(app, name)
    handle = app.run_schedule_now(name)
    if handle is None:
        raise click.ClickException(f"schedule {name!r} skips while an earlier job of it has not ended; nothing was enqueued")
    if as_json:
        output.emit({"id": handle.id, "name": name})
    else:
        click.echo(handle.id)


@schedules.command()
@click.argument("name")
@yes_option
@takes_app
def remove(app: Offload, name: str, yes: bool) -> None:
    """Remove the schedule NAME; jobs that it has enqueued stay."""
    if name not in _names(app):
        raise _missing(app, name)
    ask(f"Remove schedule {name!r}?", yes=yes)
    if not app.unschedule(name):
        raise _missing(app, name)
    again = " It is declared in the app's code and comes back with the next worker." if name in app.declared else ""
    click.echo(f"Schedule {name!r} is removed.{again}")


def _names(app: Offload) -> list[str]:
    return [record.schedule.name for record in app.schedules()]


def _missing(app: Offload, name: str) -> click.ClickException:
    if name in app.declared:
        return click.ClickException(
            f"schedule {name!r} is declared in code, but not known to the broker until a worker of the app has started"
        )
    return _unknown(name, _names(app))


def _unknown(name: str, known: list[str]) -> click.ClickException:
    return click.ClickException(f"there is no schedule {name!r}{near(name, known)}")
