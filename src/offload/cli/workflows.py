"""`offload workflows`: lists workflows, draws one as a tree, cancels one."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import click

from offload.cli import output
from offload.cli.confirm import ask, yes_option
from offload.cli.groups import ListingGroup
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import STYLES
from offload.cli.tallies import bar, plain, show_page, state_of, takes_page
from offload.cli.values import Name

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from offload.app import Offload
    from offload.composing import WorkflowRecord
    from offload.records import Record

MOST_DRAWN = 200
"""The most jobs that a tree shows."""
id_argument = click.argument("workflow_id", metavar="ID", type=Name())


@click.group(cls=ListingGroup)
def workflows() -> None:
    """List, show and cancel workflows. Without a command it lists."""


@workflows.command("list")
@app_argument
@takes_page
@output.json_option
@takes_app
def list_workflows(app: Offload, limit: int, after: str | None, as_json: bool) -> None:
    """List workflows, newest first, with how far each is."""
    show_page("workflow", app.workflows(limit=limit, after=after), limit, app.clock.now(), as_json=as_json)


@workflows.command()
@id_argument
@output.json_option
@takes_app
def show(app: Offload, workflow_id: str, as_json: bool) -> None:
    """Draw the workflow ID as a tree: each job below the one that it waits for, with its state.

    A job that waits for several is drawn below the first of them, and names the others.
    """
    record = app.workflow(workflow_id).record()
    if as_json:
        output.emit({**plain(record), "jobs": [_plain_job(job) for job in reversed(record.jobs)]})
        return
    output.show(_drawn(record))
    if len(record.jobs) > MOST_DRAWN:
        output.note(f"The first {MOST_DRAWN} jobs of {record.total:,}; `offload jobs --workflow {workflow_id}` lists them all.")


@workflows.command()
@id_argument
@yes_option
@takes_app
def cancel(app: Offload, workflow_id: str, yes: bool) -> None:
    """Cancel all jobs of the workflow ID.

    Those that run are stopped by their workers within a beat.
    """
    run = app.workflow(workflow_id)
    open_jobs = (found := run.record()).waiting + found.running
    if open_jobs:
        ask(f"Cancel {open_jobs:,} jobs of workflow {workflow_id}?", yes=yes)
    click.echo(f"Workflow {workflow_id} is being cancelled." if run.cancel() else f"Workflow {workflow_id} has ended already.")


def _drawn(record: WorkflowRecord) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    title = Text(f"{record.name or record.id}  {state_of(record)}  ", style="bold").append_text(bar(record))
    tree = Tree(title)
    known = {job.id for job in record.jobs}
    below: defaultdict[str | None, list[Record]] = defaultdict(list)
    for job in record.jobs:  # those that wait were stored in the reverse of the order in which they were added
        below[next((parent.id for parent in job.parents if parent.id in known), None)].append(job)
    below[None].reverse()
    left = MOST_DRAWN
    waiting = [(tree, job) for job in reversed(below[None])]
    while waiting and left:
        branch, job = waiting.pop()
        left -= 1
        twig = branch.add(_line(job))
        waiting += [(twig, child) for child in reversed(below[job.id])]
    return tree


def _line(job: Record) -> Text:
    from rich.text import Text

    text = Text(f"{job.task} ").append(job.state.value, style=STYLES[job.state.value]).append(f"  {job.id}", style="dim")
    if len(job.parents) > 1:
        others = ", ".join(parent.id for parent in job.parents[1:4])
        text.append(f"  also after {others}{f' and {len(job.parents) - 4:,} more' if len(job.parents) > 4 else ''}", style="dim")
    return text


def _plain_job(job: Record) -> dict[str, object]:
    return {
        "id": job.id,
        "task": job.task,
        "state": job.state.value,
        "parents": [parent.id for parent in job.parents],
        "if_parent_fails": job.if_parent_fails,
        "reason": job.reason,
        "started_at": output.iso(job.started_at),
        "finished_at": output.iso(job.finished_at),
    }
