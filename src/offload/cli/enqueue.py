"""`offload enqueue`: enqueues a job by the name of its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from offload.cli import output, records
from offload.cli.groups import near
from offload.cli.loading import takes_app_or_makes
from offload.cli.values import Seconds, arguments
from offload.diagnosis import unserved
from offload.errors import JobEnded, JobNotFound, ResultTimeout
from offload.ids import new_ids
from offload.job import TERMINAL, State
from offload.portal import portal
from offload.records import Standing

if TYPE_CHECKING:
    from offload.app import Offload
    from offload.handle import Handle


PATIENCE = 3.0
"""Seconds of waiting before it is said that no worker is there; under --reload one comes back sooner."""


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
@takes_app_or_makes
def enqueue(app: Offload, task: str, words: tuple[str, ...], wait: bool, timeout: float | None, as_json: bool, **changes: Any) -> None:
    """Enqueue a job of TASK and print its id.

    Arguments are a JSON object, or KEY=VALUE where the value is read as JSON if it is JSON, else as text:

    \b
      offload enqueue mail.digest user_id=7 note="see you"
      offload enqueue mail.digest '{"user_id": 7}' --delay 5m
    """  # noqa: D301 - the mark by which click leaves a paragraph as it is
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to --wait; give that too")
    if app.tasks and task not in app.tasks:
        hint = near(task, list(app.tasks)) or f"; its tasks are: {', '.join(sorted(app.tasks))}"
        raise click.UsageError(f"the app has no task {task!r}{hint} (--url enqueues any name, unchecked)")
    handle, already = _enqueued(app, task, arguments(words), changes)
    if already is not None and not (as_json and not wait):
        output.note(f"Already enqueued as {handle.id}; {already}.")
    if wait:
        _wait(app, handle, timeout, as_json=as_json, new=already is None)
    elif as_json:
        output.emit({"id": handle.id, "task": task, "stored": already is None})
    else:
        click.echo(handle.id)


def _enqueued(app: Offload, task: str, given: dict[str, Any], changes: dict[str, Any]) -> tuple[Handle[Any], str | None]:
    """The handle of the job, and what became of these arguments where an earlier job stands for it."""
    [fresh] = new_ids(1, app.clock.now())
    id: str = fresh if changes["id"] is None else changes["id"]
    known = id != fresh and _is_known(app, id)
    options: dict[str, Any] = {**changes, "id": id}
    draft = app.using(**options).job(task, **given)
    [handle] = app.enqueue_many([draft])
    if not known and handle.id == id:
        return handle, None
    replaced = not known and draft.unique is not None and draft.unique.on_conflict in ("replace", "debounce", "keep_last")
    return handle, "it takes these arguments unless it has started" if replaced else "nothing was stored"


def _is_known(app: Offload, id: str) -> bool:
    try:
        app.handle(id).record()
    except JobNotFound:
        return False
    return True


def _wait(app: Offload, handle: Handle[Any], timeout: float | None, *, as_json: bool, new: bool) -> None:
    """Print how the job ended: with `as_json` its record, else its result as JSON."""
    output.note(f"{f'Enqueued {handle.id}; waiting' if new else 'Waiting'} for it to end.")
    try:
        result = _result(app, handle, timeout)
    except JobEnded as ended:
        if as_json:
            output.emit(records.plain(ended.record, app, reveal=False))
        raise
    except ResultTimeout as late:
        if as_json:
            output.emit(records.plain(handle.record(), app, reveal=False))
        within = output.count(int(timeout or 0), "second") if timeout == int(timeout or 0) else f"{timeout:g} seconds"
        nobody = _unserved(app, handle.id)
        raise click.ClickException(
            f"job {handle.id} has not ended within {within}; it goes on, see `offload why {handle.id}`" + (f". {nobody}" if nobody else "")
        ) from late
    if as_json:
        output.emit(records.plain(handle.record(), app, reveal=False))
    else:
        output.emit(_plain(result))


def _result(app: Offload, handle: Handle[Any], timeout: float | None) -> Any:
    """What the job returns; after a while of waiting, a word to the one who waits where nobody will run it."""
    if timeout is None or timeout > PATIENCE:
        try:
            return handle.result(PATIENCE)
        except ResultTimeout:
            if (nobody := _unserved(app, handle.id)) is not None:
                output.note(nobody)
        timeout = None if timeout is None else timeout - PATIENCE
    return handle.result(timeout)


def _unserved(app: Offload, id: str) -> str | None:
    """What to tell where no live worker serves the queue of a job that is yet to run."""
    standing = portal.run(_standing, app, id)
    return None if standing is None or standing.record.state in (State.RUNNING, *TERMINAL) else unserved(standing)


async def _standing(app: Offload, id: str) -> Standing | None:
    return await (await app.store()).standing(id)


def _plain(result: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(result)
