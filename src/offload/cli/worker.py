"""`offload worker`: runs jobs in this process, or keeps several such processes running."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from offload.cli import logs
from offload.cli.loading import WAYS, NoApp, Reference, app_argument, app_option, check_module, find_reference, load_app
from offload.cli.output import count
from offload.cli.values import Seconds, Size

if TYPE_CHECKING:
    from offload.app import Offload
    from offload.worker import Worker

log = logging.getLogger("offload.cli")

STOPS = (signal.SIGTERM, signal.SIGINT)
POSITIVE = click.IntRange(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one worker process is told."""

    queues: str | None
    concurrency: int
    threads: int
    children: int | None
    grace: float
    burst: bool
    max_jobs: int | None
    max_memory: int | None
    log_level: str
    json_logs: bool

    def arguments(self) -> list[str]:
        """The same as a command line."""
        given: dict[str, Any] = {
            "--queues": self.queues,
            "--concurrency": self.concurrency,
            "--threads": self.threads,
            "--children": self.children,
            "--grace": self.grace,
            "--max-jobs": self.max_jobs,
            "--max-memory": self.max_memory,
            "--log-level": self.log_level,
        }
        flags = [name for name, on in (("--burst", self.burst), ("--json-logs", self.json_logs)) if on]
        return [*(f"{name}={value}" for name, value in given.items() if value is not None), *flags]


@click.command()
@app_argument
@app_option
@click.option(
    "-q",
    "--queues",
    multiple=True,
    metavar="NAMES",
    help="The queues to serve: vip,default in strict order, vip:3,default:1 by weight; all unless given.",
)
@click.option(
    "-c", "--concurrency", type=POSITIVE, metavar="N", default=100, show_default=True, help="The most jobs at once in each worker process."
)
@click.option(
    "-p",
    "--processes",
    type=POSITIVE,
    metavar="N",
    default=1,
    show_default=True,
    help="Whole workers, each a process with its own concurrency, threads and children; more than 1 run under a supervisor.",
)
@click.option(
    "--threads", type=POSITIVE, metavar="N", default=16, show_default=True, help="Of those jobs, the most in threads (plain functions)."
)
@click.option(
    "--children",
    type=POSITIVE,
    metavar="N",
    help='Of those jobs, the most in child processes (tasks with isolation="process"; in code `Worker(processes=N)`); as many as there '
    "are CPUs unless given.",
)
@click.option("--grace", type=Seconds(), default=30, show_default=True, help="Seconds that running jobs have to end when told to stop.")
@click.option("--reload", is_flag=True, help="Restart when a Python file below this folder changes (needs the extra 'reload').")
@click.option("--burst", is_flag=True, help="End when nothing is ready; what waits for a time or a token is left.")
@click.option("--max-jobs", type=POSITIVE, metavar="N", help="Start afresh after so many attempts.")
@click.option("--max-memory", type=Size(), help="Start afresh above this memory, such as 500MB.")
@click.option("--log-level", type=click.Choice(logs.LEVELS, case_sensitive=False), default="info", show_default=True)
@click.option("--json-logs", is_flag=True, help="Log one JSON object a line.")
def worker(reference: str | None, app_name: str | None, queues: tuple[str, ...], processes: int, reload: bool, **settings: Any) -> None:
    """Run the jobs of MODULE:APP until told to stop.

    SIGTERM or Ctrl-C lets running jobs end for the grace, then hands the rest back; a second one hands them back at once.
    """
    from offload.worker.queues import Queues

    told = Settings(queues=",".join(queues) if queues else None, **settings)
    Queues.parse(told.queues)
    found = find_reference(app_name or reference)
    if found is None:
        raise NoApp(f"which app is to be worked for? {WAYS}")
    logs.configure(told.log_level, json_lines=told.json_logs)
    if processes > 1 or reload:
        raise SystemExit(_supervise(found, told, processes, reload=reload))
    _work(found, told)


def _work(reference: Reference, told: Settings) -> NoReturn:
    """Work in this process, and end it. Where no supervisor would replace it, it replaces itself when it is due to be recycled."""
    from offload.worker.process import RECYCLE, leave, work
    from offload.worker.supervisor import follow_supervisor

    for number in (*STOPS, *([] if sys.platform == "win32" else [signal.SIGHUP])):
        signal.signal(number, _stopped_while_starting)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    supervised = follow_supervisor()
    app = load_app(reference)
    if not app.broker.durable:
        log.warning("%s keeps jobs in this process only: no other can enqueue here, and they end with it", app.producer.clients.place)
    code = work(lambda: _worker(app, reference, told))
    if code == RECYCLE and not supervised:
        _start_afresh(_command(reference, told))
    leave(code)
    raise AssertionError("unreachable")


def _stopped_while_starting(*_: object) -> NoReturn:
    """Nothing was taken on yet, so there is nothing to finish."""
    raise SystemExit(0)


def _start_afresh(command: list[str]) -> NoReturn:
    """Become a fresh process of the same id. A signal that comes on the way is kept for it."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606 - our own command line, no shell


def _worker(app: Offload, reference: Reference, told: Settings) -> Worker:
    from offload.worker import Worker
    from offload.worker.source import Source

    return Worker(
        app,
        told.queues,
        told.concurrency,
        threads=told.threads,
        processes=told.children,
        grace=told.grace,
        burst=told.burst,
        max_jobs=told.max_jobs,
        max_memory=told.max_memory,
        source=Source(reference.module, reference.attribute),
    )


def _supervise(reference: Reference, told: Settings, processes: int, *, reload: bool) -> int:
    """Keep worker processes running. The app is never imported here."""
    from offload.worker.supervisor import Supervisor

    check_module(reference)
    changes = _changes(Path.cwd()) if reload else None
    log.info("supervisor %d keeps %s of %s running", os.getpid(), count(processes, "worker process", "worker processes"), reference)
    supervisor = Supervisor(_command(reference, told), processes, burst=told.burst)
    return asyncio.run(supervisor.run(changes))


def _command(reference: Reference, told: Settings) -> list[str]:
    return [sys.executable, "-m", "offload", "worker", str(reference), *told.arguments()]


def _changes(folder: Path) -> AsyncIterator[object]:
    """The changes of Python files below `folder`."""
    try:
        import watchfiles
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"--reload needs the package {error.name!r}; install it from a clone of Offload: pip install '.[reload]'"
        ) from error
    log.info("watching the Python files below %s", folder)
    return watchfiles.awatch(folder, watch_filter=watchfiles.PythonFilter())  # pyright: ignore[reportUnknownMemberType] - one of its types is trio's
