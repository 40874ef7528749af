"""`offload enqueue`: enqueues a job by the name of its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from offload.cli import output, records
from offload.cli.groups import near
from offload.cli.loading import takes_app
from offload.cli.values import Seconds, arguments
from offload.errors import JobEnded, ResultTimeout

if TYPE_CHECKING:
    from offload.app import Offload
    from offload.handle import Handle


@click.command()
@click.argument("task")
@click.argument("words", nargs=-1, metavar="[JSON | KEY=VALUE]...")
@click.option("--queue", help="The queue, instead of the task's own.")
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher runs first.")
@click.option("--delay", type=Seconds(), help="Not before so long from now, such as 90, 5m or 2h.")
@click.option("--id", help="The job's id; with the same arguments it enqueues nothing twice.")
@click.option("--unique", help="The unique key.")
@click.option("--wait", is_flag=True, help="Wait until it has ended and print the result; exit 1 unless it succeeded.")
@click.option("--timeout", type=Seconds(), help="With --wait: wait no longer than this.")
@output.json_option
@takes_app
def enqueue(app: Offload, task: str, words: tuple[str, ...], wait: bool, timeout: float | None, as_json: bool, **changes: Any) -> None:
    r"""Enqueue a job of TASK and print its id.

    Arguments are a JSON object, or KEY=VALUE where the value is read as JSON if it is JSON, else as text:

    \b
      offload enqueue mail.digest user_id=7 note="see you"
      offload enqueue mail.digest '{"user_id": 7}' --delay 5m
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to --wait; give that too")
    if app.tasks and task not in app.tasks:
        hint = near(task, list(app.tasks)) or f"; its tasks are: {', '.join(sorted(app.tasks))}"
        raise click.UsageError(f"the app has no task {task!r}{hint} (--url enqueues any name, unchecked)")
    handle = app.using(**changes).enqueue(task, **arguments(words))
    if wait:
        _wait(app, handle, timeout, as_json=as_json)
    elif as_json:
        output.emit({"id": handle.id, "task": task})
    else:
        click.echo(handle.id)


def _wait(app: Offload, handle: Handle[Any], timeout: float | None, *, as_json: bool) -> None:
    """Print how the job ended: with `as_json` its record, else its result as JSON."""
    output.note(f"Enqueued {handle.id}; waiting for it to end.")
    try:
        result: Any = handle.result(timeout)
    except JobEnded as ended:
        if as_json:
            output.emit(records.plain(ended.record, app, reveal=False))
        raise
    except ResultTimeout:
        if as_json:
            output.emit(records.plain(handle.record(), app, reveal=False))
        raise
    if as_json:
        output.emit(records.plain(handle.record(), app, reveal=False))
    else:
        output.emit(_plain(result))


def _plain(result: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(result)
