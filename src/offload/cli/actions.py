"""Does one thing to many jobs: counts them first, asks, acts in pieces, and says what was left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click
from msgspec.structs import replace

from offload.cli import output
from offload.cli.confirm import CHUNK, ask, in_chunks, yes_option
from offload.cli.filters import matching
from offload.job import State
from offload.portal import portal
from offload.records import Filter, Record
from offload.roots import Roots, felled_by, roots_of

if TYPE_CHECKING:
    from offload.app import Offload

F = TypeVar("F", bound=Callable[..., object])

UNSTARTED = (State.SCHEDULED, State.WAITING, State.READY)
ENDED_BADLY = (State.DEAD, State.CANCELLED, State.EXPIRED)
MOST_EXPLAINED = 3
"""Of so many jobs that a filter found is said why they were left alone."""


@dataclass(frozen=True, slots=True)
class Action:
    """A verb on jobs in `states`; `irrevocable` ones ask even when ids are given."""

    verb: str
    doing: str
    done: str
    states: Sequence[State]
    irrevocable: bool = False


CANCEL = Action("cancel", "Cancelling", "cancelled", (*UNSTARTED, State.RUNNING))
RETRY = Action("retry", "Retrying", "retried", ENDED_BADLY)
DELETE = Action("delete", "Deleting", "deleted", tuple(state for state in State if state is not State.RUNNING), irrevocable=True)


def takes_way(function: F) -> F:
    """Give a command that acts on jobs the options that say how: `yes`, `dry`, `as_json`."""
    return click.option("--dry-run", "dry", is_flag=True, help="Only count them.")(yes_option(output.json_option(function)))


def carry_out(
    app: Offload,
    action: Action,
    ids: Sequence[str],
    act: Callable[[list[str]], Iterable[str]],
    *,
    named: bool,
    yes: bool,
    dry: bool,
    as_json: bool,
) -> None:
    """Do it to `ids`, which were `named` one by one or found by a filter. Exits 1 when some that were named were left alone."""
    ids = list(dict.fromkeys(ids))
    jobs = output.count(len(ids), "job")
    if dry:
        _say({f"would_be_{action.done}": ids}, f"{jobs} would be {action.done}.", as_json=as_json)
        return
    if ids and (action.irrevocable or not named):
        ask(f"{action.verb.capitalize()} {jobs}?" + (" This cannot be undone." if action.irrevocable else ""), yes=yes)
    done = in_chunks(ids, action.doing, act)
    while action is RETRY and (more := in_chunks([id for id in ids if id not in done], action.doing, act)):
        done |= more  # they could not before the others were: one that waits for another comes back after that one
    left = [id for id in ids if id not in done]
    _tell(app, action, [id for id in ids if id in done], left, as_json=as_json)
    if not left:
        return
    if not named:
        _note_left(app, action, left)
        return
    records = _records(app, left)
    for id in left:
        output.note(f"{id} was left alone: {_why_not(app, action, records.get(id))}.")
    raise SystemExit(1)


def retry_failed(app: Offload, filter: Filter, *, yes: bool, dry: bool, as_json: bool) -> None:
    """Retry those of a workflow or batch that failed by themselves, with whom the others come back."""
    felled = {record.id: felled_by(record) for state in ENDED_BADLY for record in matching(app, replace(filter, state=state))}
    ids = [id for id, parent in felled.items() if parent not in felled]
    carry_out(app, RETRY, ids, app.retry, named=False, yes=yes, dry=dry, as_json=as_json)


def _note_left(app: Offload, action: Action, left: Sequence[str]) -> None:
    """Say what became of those that a filter found and that were left alone."""
    records = _records(app, left)
    back = [id for id in left if action is RETRY and id in records and not records[id].state.terminal]
    if back:
        output.note(f"{output.count(len(back), 'job')} came back with those that they had fallen with.")
    alone = [id for id in left if id not in back]
    for id in alone[:MOST_EXPLAINED]:
        output.note(f"{id} was left alone: {_why_not(app, action, records.get(id))}.")
    if (more := len(alone) - MOST_EXPLAINED) > 0:
        output.note(f"{output.count(more, 'more job')} changed meanwhile or cannot be {action.done}, and left alone.")


def _tell(app: Offload, action: Action, done: Sequence[str], left: list[str], *, as_json: bool) -> None:
    """What was done. Cancelling has two answers: what had not started has ended, what runs is yet to be stopped by its worker."""
    if action is not CANCEL:
        _say({action.done: list(done), "left_alone": left}, f"{output.count(len(done), 'job')} {action.done}.", as_json=as_json)
        return
    asked = {id for id, record in _records(app, done).items() if record.state is not State.CANCELLED}
    ended = [id for id in done if id not in asked]
    lines = [f"{output.count(len(ended), 'job')} cancelled."] if ended or not asked else []
    if asked:
        lines.append(f"{output.count(len(asked), 'running job')} {'was' if len(asked) == 1 else 'were'} asked to stop.")
    value = {"cancelled": ended, "asked_to_stop": [id for id in done if id in asked], "left_alone": left}
    _say(value, "\n".join(lines), as_json=as_json)


def _records(app: Offload, ids: Sequence[str]) -> Mapping[str, Record]:
    async def got() -> Mapping[str, Record]:
        store = await app.store()
        return {id: record for start in range(0, len(ids), CHUNK) for id, record in (await store.get(ids[start : start + CHUNK])).items()}

    return portal.run(got)


def _why_not(app: Offload, action: Action, record: Record | None) -> str:
    if record is None:
        return "there is no such job: it was never enqueued, was deleted, or its record is forgotten"
    if record.state not in action.states:
        way_out = ": cancel it first" if action is DELETE else ""
        return f"it is {record.state}{way_out}" if not record.state.terminal else f"it is {record.state} already"
    if action is RETRY and (advice := (roots := portal.run(_roots, app, record)).advice(record)):
        return f"it comes after {roots.told or 'others that failed'}. {advice}".removesuffix(".")
    if action is RETRY and record.unique is not None:
        states = UNSTARTED if record.unique.until == "started" else (*UNSTARTED, State.RUNNING)
        for holder in (each for state in states for each in app.find(key=record.unique.key, state=state)):
            if holder.unique is not None and holder.unique.key == record.unique.key:  # and not only an order or limit of that key
                return f"its unique key {record.unique.key!r} is held by job {holder.id}, which is {holder.state}"
    if action is RETRY and record.schedule is not None:
        return f"another job of schedule {record.schedule!r} has not ended"
    parents = [parent.id for parent in record.parents] if action is RETRY else []
    known = _records(app, parents)
    if missing := [id for id in parents if id not in known]:
        return f"it waits for job {missing[0]}, which is not there: enqueue it anew"
    return "it changed meanwhile; try again"


async def _roots(app: Offload, record: Record) -> Roots:
    return await roots_of((await app.store()).get, record)


def _say(value: dict[str, list[str]], text: str, *, as_json: bool) -> None:
    if as_json:
        output.emit(value)
    else:
        click.echo(text)
