"""`offload limits`: lists what keys allow and who holds them; sets, pauses and resumes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from offload.cli import output
from offload.cli.groups import ListingGroup, near
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import Column, show_table
from offload.cli.values import Key
from offload.job import Kind
from offload.keys import WANTED, allows, command, described, few, kind_of, known_for
from offload.limits import fits, limit_of
from offload.presence import live
from offload.records import LimitRecord
from offload.wording import moment

if TYPE_CHECKING:
    from offload.app import Offload

COLUMNS = (
    Column("key", whole=True),
    Column("kind", whole=True, spare=4),
    Column("allows", whole=True),
    Column("held", whole=True, justify="right"),
    Column("waiting", whole=True, justify="right"),
    Column("next", whole=True, spare=2),
    Column("holders", spare=1),
    Column("", whole=True),
)
key_argument = click.argument("key", type=Key())


@click.group(cls=ListingGroup)
def limits() -> None:
    """List, set, pause and resume what keys allow: orders, concurrency limits and rates. Without a command it lists."""


@limits.command("list")
@app_argument
@click.option("--limit", "most", type=click.IntRange(min=1), default=1_000, show_default=True, help="At most so many keys.")
@click.option("--after", type=Key(), help="The keys after this one, such as the last of the page before.")
@output.json_option
@takes_app
def list_limits(app: Offload, most: int, after: str | None, as_json: bool) -> None:
    """List the keys that are held, waited for, or were changed, by name.

    With what each allows, how many jobs hold it or wait for it, and when the next one is expected to pass.
    """
    found, now = app.limits(limit=most, after=after), app.clock.now()
    if as_json:
        output.emit([plain(each) for each in found])
        return
    rows = [_row(each, now) for _, group in groupby(found, key=lambda each: each.key) for each in _telling(list(group))]
    show_table(COLUMNS, rows, empty="No key is held or waited for, and none was changed.")
    if len(keys := _keys(found)) == most:
        output.note(f"There may be more: --after{'=' if keys[-1].startswith('-') else ' '}{shlex.quote(keys[-1])} lists them.")


@limits.command("set")
@key_argument
@click.option("--concurrency", type=int, help="So many jobs of it at a time.")
@click.option("--rate", help="So many starts in a time, such as 100/s, 5/m, 1000/h or 10/d.")
@click.option("--burst", type=click.IntRange(min=1), help="So many may start at once after a pause.")
@takes_app
def set_limit(app: Offload, key: str, **given: Any) -> None:
    """Change what KEY allows, for all workers, until it is changed again or reset.

    What is not given stays. Jobs that run go on.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise click.UsageError(
            "nothing to set: give --concurrency, --rate or --burst; `offload limits reset` goes back to what is declared"
        )
    _refuse_none(key, changes)
    _warn_of_useless(app, key, {"slot" if name == "concurrency" else "token" for name in changes})
    app.set_limit(key, **changes)
    said = ", ".join(f"{name} {value}" for name, value in changes.items())
    click.echo(f"Key {key!r} allows from now on: {said}. {command('reset', key)} goes back to what tasks declare.")


@limits.command()
@key_argument
@takes_app
def reset(app: Offload, key: str) -> None:
    """Let KEY allow again what tasks declare.

    A pause stays.
    """
    was_changed = any(each.changed for each in app.limits(key=key))
    app.set_limit(key, concurrency=None, rate=None, burst=None)
    if was_changed:
        click.echo(f"Key {key!r} allows what tasks declare.")
    else:
        click.echo(f"Key {key!r} was not changed{near(key, _keys(each for each in app.limits() if each.changed)) or '.'}")


@limits.command()
@key_argument
@takes_app
def pause(app: Offload, key: str) -> None:
    """Let no job of KEY start until it is resumed.

    Running ones go on.
    """
    _warn_of_useless(app, key, set())
    app.set_limit(key, paused=True)
    click.echo(f"Key {key!r} is paused. {command('resume', key)} lets it go on.")


@limits.command()
@key_argument
@takes_app
def resume(app: Offload, key: str) -> None:
    """Let a KEY go on that is paused, or that a task holds back."""
    was_stopped = any(_stopped(each) for each in app.limits(key=key))
    app.set_limit(key, paused=False)
    if was_stopped:
        click.echo(f"Key {key!r} goes on.")
    else:
        click.echo(f"Key {key!r} was neither paused nor held back{near(key, _keys(filter(_stopped, app.limits()))) or '.'}")


def _refuse_none(key: str, changes: Mapping[str, Any]) -> None:
    """Raise UsageError for a number under which no job would start, which is what a pause is for."""
    for name in changes.keys() & {"concurrency", "rate"}:
        number = str(changes[name]).partition("/")[0].strip()
        if number.removeprefix("-").isdecimal() and int(number) < 1:
            raise click.UsageError(
                f"--{name} {changes[name]} would let nothing start: give at least 1, or stop the key with {command('pause', key)}"
            )


def _stopped(limit: LimitRecord) -> bool:
    return limit.paused or limit.shut_until is not None


def _keys(found: Iterable[LimitRecord]) -> list[str]:
    return sorted({each.key for each in found})


def _warn_of_useless(app: Offload, key: str, kinds: set[Kind]) -> None:
    """Say where nobody goes by what is changed: the key is mistyped, or jobs have it for something else.

    Not refused, for it may be set before the first such job comes; an idle key leaves no trace but in what declares it.
    """
    now, sessions = app.limits(key=key), live(app.workers(), app.clock.now())
    declared = [limit for session in sessions for limit in session.info.limits]
    known = _made(app, key) | known_for(key, now, declared)
    here = " here" if app.tasks else ""
    if not known:
        whose = f", and no task{here} has such a key" if app.tasks or declared else ""
        alike = near(key, sorted({*_keys(app.limits()), *_templates(app), *(limit.rule for limit in declared)} - {key}))
        output.note(f"Warning: no job holds or waits for a key {key!r} now{whose}{alike or '.'}")
        return
    for kind in sorted(kinds - known.keys()):
        told = ", ".join(known.values())
        output.note(
            f"Warning: nobody holds or waits for {WANTED[kind]} of key {key!r} now; known for it: {told}. "
            "It counts only for jobs that come with such a limit."
        )


def _made(app: Offload, key: str) -> dict[Kind, str]:
    """At which gates jobs of the tasks that are known here may have the key, and what these allow."""
    made: dict[Kind, str] = {}
    for task in app.tasks.values():
        limits = [limit_of(limit, key) for limit in task.limits if fits(key, limit.key)]
        made |= {kind_of(limit): described(limit) for limit in limits}
        if task.order_by is not None and fits(key, task.order_by):
            made["turn"] = described(LimitRecord(key=key, kind="turn"))
    return made


def _templates(app: Offload) -> set[str]:
    """What is declared here as text, fields and all."""
    keys = [key for task in app.tasks.values() for key in (task.order_by, *(limit.key for limit in task.limits))]
    return {key for key in keys if isinstance(key, str)}


def _telling(gates: Sequence[LimitRecord]) -> Sequence[LimitRecord]:
    """Those of one key that say something; a pause holds for all kinds, whether or not the key has them."""
    telling = [each for each in gates if each.held or each.waiting or each.changed or each.shut_until is not None]
    return telling or gates[:1]


def _row(limit: LimitRecord, now: datetime) -> tuple[str, ...]:
    known = limit.held or limit.waiting or limit.changed
    return (
        limit.key,
        limit.kind if known or limit.shut_until is not None else "",
        allows(limit) if known else "",
        f"{limit.held:,}",
        f"{limit.waiting:,}",
        output.ago(limit.next_at, now),
        few(limit.holders, limit.held),
        ", ".join(_notes(limit)),
    )


def _notes(limit: LimitRecord) -> list[str]:
    notes = {
        "paused": limit.paused,
        "held by a dead job": limit.dead,
        f"held back until {moment(limit.shut_until)}": limit.shut_until is not None,
        "changed by a person": limit.changed,
    }
    return [note for note, holds in notes.items() if holds]


def plain(limit: LimitRecord) -> dict[str, Any]:
    """What a key allows, as JSON carries it."""
    return {
        "key": limit.key,
        "kind": limit.kind,
        "allows": allows(limit),
        "concurrency": limit.n,
        "seconds_per_token": None if limit.interval is None else limit.interval / 1_000_000,
        "burst": limit.burst,
        "changed": limit.changed,
        "paused": limit.paused,
        "held_back_until": output.iso(limit.shut_until),
        "next_at": output.iso(limit.next_at),
        "held": limit.held,
        "dead": limit.dead,
        "waiting": limit.waiting,
        "holders": list(limit.holders),
    }
