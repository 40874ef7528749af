"""The demo's terminal: what happens, a line each, as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

from rich.console import Console
from rich.text import Text

from offload.demo.diary import Diary, Entry, Kind

COLOURS: dict[Kind, str] = {"web": "cyan", "job": "blue", "mail": "magenta", "file": "green", "tidy": "green", "worker": "yellow"}
LOOK_EVERY = 0.1
WIDTH = 130
"""Characters a line where the output goes to a file or a pipe, which have no width."""


class Terminal:
    """Prints the diary as it grows."""

    def __init__(self, diary: Diary) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self._diary = diary
        _, self._read = diary.read()

    def say(self, text: str | Text = "") -> None:
        """Print a line of our own, after all that happened before it."""
        self.catch_up()
        self.console.print(text, soft_wrap=True)

    def catch_up(self) -> None:
        """Print what is new in the diary."""
        entries, self._read = self._diary.read(self._read)
        for entry in entries:
            self.console.print(line(entry), soft_wrap=True)

    @asynccontextmanager
    async def following(self) -> AsyncGenerator[None]:
        """Print what happens during the block."""
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            self.catch_up()

    async def _follow(self) -> None:
        while True:
            self.catch_up()
            await asyncio.sleep(LOOK_EVERY)


def line(entry: Entry) -> Text:
    """One entry as one line."""
    at = datetime.fromtimestamp(entry.at).astimezone()
    return Text.assemble(
        (f"  {at:%H:%M:%S}.{at.microsecond // 1000:03} ", "dim"),
        (f"{entry.kind:<6} ", COLOURS[entry.kind]),
        (entry.text, "yellow" if entry.bad else ""),
    )
