"""Does one thing to many jobs: counts them first, asks, acts in pieces, and says what was left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import click

from offload.cli import output
from offload.cli.confirm import ask, in_chunks
from offload.job import State

UNSTARTED = (State.SCHEDULED, State.WAITING, State.READY)
ENDED_BADLY = (State.DEAD, State.CANCELLED, State.EXPIRED)


@dataclass(frozen=True, slots=True)
class Action:
    """A verb on jobs in `states`; `irrevocable` ones ask even when ids are given."""

    verb: str
    doing: str
    done: str
    states: Sequence[State]
    why_not: str
    irrevocable: bool = False


CANCEL = Action("cancel", "Cancelling", "cancelled", (*UNSTARTED, State.RUNNING), "unknown, or it had ended already")
RETRY = Action("retry", "Retrying", "retried", ENDED_BADLY, "unknown, not ended unsuccessfully, or its unique key is taken")
DELETE = Action(
    "delete", "Deleting", "deleted", tuple(state for state in State if state is not State.RUNNING), "unknown, or running: cancel it first",
    irrevocable=True,
)  # fmt: skip


def carry_out(
    action: Action, ids: Sequence[str], act: Callable[[list[str]], Iterable[str]], *, named: bool, yes: bool, dry: bool, as_json: bool
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
    left = [id for id in ids if id not in done]
    number = output.count(len(done), "job")
    _say({action.done: [id for id in ids if id in done], "left_alone": left}, f"{number} {action.done}.", as_json=as_json)
    if not left:
        return
    if not named:
        output.note(f"{output.count(len(left), 'job')} changed meanwhile and left alone.")
        return
    for id in left:
        output.note(f"{id} was left alone: {action.why_not}.")
    raise SystemExit(1)


def _say(value: dict[str, list[str]], text: str, *, as_json: bool) -> None:
    if as_json:
        output.emit(value)
    else:
        click.echo(text)
