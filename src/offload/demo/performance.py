"""One run of the demo from its first line in the terminal to its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from time import monotonic

from rich.box import SIMPLE_HEAD
from rich.table import Table

from offload.demo.console import Terminal
from offload.demo.place import Place
from offload.demo.stage import Stage, stage
from offload.demo.story import Check, Story
from offload.demo.workers import newest_lines

INTERRUPTED = 130
"""The exit code that shells give to what Ctrl-C ended."""


async def perform(place: Place, listening: socket.socket, *, once: bool, kept: bool) -> int:
    """Run until Ctrl-C (or SIGTERM), or until the story is told. Returns the exit code.

    `kept` is whether the folder is there afterwards.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    terminal = Terminal(place.diary)
    _introduce(terminal, place, once)
    if once:
        return await _by_itself(place, listening, terminal, stopped)
    return await _for_visitors(place, listening, terminal, stopped, kept=kept)


async def _by_itself(place: Place, listening: socket.socket, terminal: Terminal, stopped: asyncio.Event) -> int:
    """Tell the story and give the account of it."""
    began = monotonic()
    async with stage(place, listening, terminal) as running:
        checks = await _told(running, stopped)
        terminal.say("\n[bold]Taking everything down[/bold]")
    if checks is None:
        return INTERRUPTED
    ended = running.worker.returncode
    checks.append(Check("the worker stops when told to", ended == 0, f"exit code {ended}"))
    return _account(terminal, place, checks, monotonic() - began)


async def _for_visitors(place: Place, listening: socket.socket, terminal: Terminal, stopped: asyncio.Event, *, kept: bool) -> int:
    """Until Ctrl-C. The worker command ends by itself only when it cannot work."""
    async with stage(place, listening, terminal) as running:
        waiting = {asyncio.create_task(stopped.wait()), asyncio.create_task(running.worker.wait())}
        _, unfinished = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in unfinished:
            task.cancel()
        terminal.say("\nStopping; jobs under way have three seconds to end.")
    if stopped.is_set():
        terminal.say(
            f"All is kept in {place.folder}; what had not ended goes on when the demo is started there again."
            if kept
            else f"{place.folder} is deleted with all that was in it; --folder FOLDER keeps the next one."
        )
        return 0
    terminal.say(f"[red]The worker ended with exit code {running.worker.returncode}:[/red]")
    terminal.console.print(newest_lines(place), markup=False, soft_wrap=True)
    return 1


def _introduce(terminal: Terminal, place: Place, once: bool) -> None:
    terminal.say("[bold]The Offload demo[/bold]: a web site, a worker with two processes, and a mail server that can be down\n")
    terminal.say(f"  web site      [link={place.address}]{place.address}[/link]")
    terminal.say(f"  mail server   127.0.0.1:{place.smtp_port}")
    terminal.say(f"  files         {place.folder}")
    if not once:
        terminal.say(f"  look inside   {command()} jobs --url {quote(place.environment['OFFLOAD_URL'])}")
        terminal.say("\nOpen the web site; what happens is shown here. Ctrl-C stops everything.\n")


def command() -> str:
    """How this very `offload` is called from here, whether or not its environment is active."""
    script = Path(sys.executable).parent / "offload"
    if not script.exists():
        return f"{quote(sys.executable)} -m offload"
    if os.environ.get("PATH", "").split(os.pathsep)[:1] == [str(script.parent)]:
        return "offload"
    here = Path.cwd()
    return quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


async def _told(running: Stage, stopped: asyncio.Event) -> list[Check] | None:
    """The checks of the story; None when it was interrupted."""
    telling = asyncio.create_task(Story(running).play())
    interrupted = asyncio.create_task(stopped.wait())
    await asyncio.wait({telling, interrupted}, return_when=asyncio.FIRST_COMPLETED)
    interrupted.cancel()
    if telling.done():
        return telling.result()
    telling.cancel()
    await asyncio.wait({telling})
    return None


def _account(terminal: Terminal, place: Place, checks: Sequence[Check], seconds: float) -> int:
    table = Table(title="What was observed", title_style="bold", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("check")
    table.add_column("observed", overflow="fold")
    for check in checks:
        table.add_row("[green]✓[/green]" if check.holds else "[red]✗[/red]", check.what, check.observed)
    terminal.say()
    terminal.console.print(table)
    failed = [check.what for check in checks if not check.holds]
    if failed:
        terminal.say(f"\n[red]{len(failed)} of {len(checks)} checks failed after {seconds:.0f} s:[/red] {'; '.join(failed)}")
        terminal.say(f"Its files are kept in {place.folder}")
        return 1
    terminal.say(f"\n[green]All {len(checks)} checks hold.[/green] It took {seconds:.0f} s.")
    return 0
