"""`offload queues`: lists queues; pauses and resumes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from offload.cli import output
from offload.cli.groups import ListingGroup, near
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import Column, show_table
from offload.cli.values import Name
from offload.job import State
from offload.portal import portal
from offload.records import Facts, SessionRecord

if TYPE_CHECKING:
    from offload.app import Offload

ALWAYS = (State.READY, State.RUNNING, State.SCHEDULED, State.DEAD)
"""The states that have a column even when no job is in them."""


@click.group(cls=ListingGroup)
def queues() -> None:
    """List, pause and resume queues. Without a command it lists."""


@queues.command("list")
@app_argument
@output.json_option
@takes_app
def list_queues(app: Offload, as_json: bool) -> None:
    """List queues with their jobs by state.

    With how long the oldest ready job waits, and how many workers serve the queue.
    """
    counts, facts = app.counts(), portal.run(_facts, app)
    names = sorted({*counts, *facts.paused, *(name for session in facts.sessions for name in session.info.queues or ())})
    if as_json:
        output.emit([_plain(name, counts.get(name, {}), facts) for name in names])
        return
    states = [state for state in State if state in ALWAYS or any(state in each for each in counts.values())]
    columns = (
        Column("queue", whole=True),
        *(Column(state.lower(), whole=True, justify="right", spare=0 if state in ALWAYS else 1) for state in states),
        Column("oldest ready", whole=True, spare=2),
        Column("workers", whole=True, justify="right", spare=3),
        Column("", whole=True),
    )
    rows: list[tuple[str, ...]] = []
    for name in names:
        numbers = [f"{counts.get(name, {}).get(state, 0):,}" for state in states]
        oldest = output.ago(facts.oldest_ready.get(name), facts.now)
        rows.append((name, *numbers, oldest, str(len(_serving(name, facts))), "paused" if name in facts.paused else ""))
    show_table(columns, rows, empty="There is no queue yet: one comes into being with its first job.")


async def _facts(app: Offload) -> Facts:
    return await (await app.store()).inspect()


def _serving(queue: str, facts: Facts) -> list[SessionRecord]:
    return [session for session in facts.sessions if session.info.queues is None or queue in session.info.queues]


def _plain(name: str, counts: dict[State, int], facts: Facts) -> dict[str, Any]:
    return {
        "queue": name,
        "paused": name in facts.paused,
        "jobs": {state.value: counts.get(state, 0) for state in State},
        "oldest_ready_at": output.iso(facts.oldest_ready.get(name)),
        "workers": [session.info.name for session in _serving(name, facts)],
    }


@queues.command()
@click.argument("queue", type=Name())
@takes_app
def pause(app: Offload, queue: str) -> None:
    """Let no job of QUEUE start until it is resumed.

    Running ones go on.
    """
    known = _known(app)
    if queue not in known:
        output.note(f"Warning: no job, task or worker here knows a queue {queue!r}{near(queue, sorted(known))}")
    app.pause(queue)
    click.echo(f"Queue {queue!r} is paused. `offload queues resume {queue}` lets it go on.")


@queues.command()
@click.argument("queue", type=Name())
@takes_app
def resume(app: Offload, queue: str) -> None:
    """Let a paused QUEUE go on."""
    paused = app.paused()
    app.resume(queue)
    click.echo(f"Queue {queue!r} goes on." if queue in paused else f"Queue {queue!r} was not paused{near(queue, sorted(paused)) or '.'}")


def _known(app: Offload) -> set[str]:
    """The queues that have jobs or workers, or that a task here names; a pause alone makes none."""
    served = (name for session in app.workers() for name in session.info.queues or ())
    return {*app.counts(), *served, *(task.queue for task in app.tasks.values())}
