"""`offload workflows`: lists workflows, draws one as a tree, retries or cancels one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from offload.cli import output
from offload.cli.actions import retry_failed, takes_way
from offload.cli.confirm import ask, yes_option
from offload.cli.groups import ListingGroup
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import STYLES
from offload.cli.tallies import bar, plain, show_page, state_of, takes_page
from offload.cli.values import Name
from offload.records import Filter

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from offload.app import Offload
    from offload.composing import WorkflowRecord
    from offload.records import Record

MOST_DRAWN = 200
"""The most jobs that a tree shows."""
MOST_OTHERS = 3
"""The most parents that a line names besides the one below which it is drawn."""
id_argument = click.argument("workflow_id", metavar="ID", type=Name())


@click.group(cls=ListingGroup)
def workflows() -> None:
    """List, show, retry and cancel workflows. Without a command it lists."""


@workflows.command("list")
@app_argument
@takes_page
@output.json_option
@takes_app
def list_workflows(app: Offload, limit: int, after: str | None, as_json: bool) -> None:
    """List workflows, newest first, with how far each is."""
    show_page(app, "workflow", limit, after, as_json=as_json)


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


@workflows.command()
@id_argument
@takes_way
@takes_app
def retry(app: Offload, workflow_id: str, **how: bool) -> None:
    """Retry the jobs of the workflow ID that failed.

    Those that fell with them wait again, and what has succeeded is not run again. A workflow that was cancelled goes on by it.
    """
    app.workflow(workflow_id).progress()
    retry_failed(app, Filter(workflow=workflow_id), **how)


def _drawn(record: WorkflowRecord) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    title = Text(f"{record.name or record.id}  {state_of(record)}  ", style="bold").append_text(bar(record))
    tree = Tree(title)
    known = {job.id for job in record.jobs}
    below: defaultdict[str | None, list[Record]] = defaultdict(list)
    for job in record.jobs:  # those that wait were stored in the reverse of the order in which they were added
        below[_drawn_below(job, known)].append(job)
    below[None].reverse()
    left = MOST_DRAWN
    waiting = [(tree, job) for job in reversed(below[None])]
    while waiting and left:
        branch, job = waiting.pop()
        left -= 1
        twig = branch.add(_line(job, _drawn_below(job, known)))
        waiting += [(twig, child) for child in reversed(below[job.id])]
    return tree


def _drawn_below(job: Record, known: Collection[str]) -> str | None:
    """The first of its parents that is drawn; None where there is none."""
    return next((parent.id for parent in job.parents if parent.id in known), None)


def _line(job: Record, below: str | None) -> Text:
    from rich.text import Text

    text = Text(f"{job.task} ").append(job.state.value, style=STYLES[job.state.value]).append(f"  {job.id}", style="dim")
    others = [parent.id for parent in job.parents if parent.id != below]
    if others:
        more = f" and {len(others) - MOST_OTHERS:,} more" if len(others) > MOST_OTHERS else ""
        text.append(f"  {'also ' if below else ''}after {', '.join(others[:MOST_OTHERS])}{more}", style="dim")
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
