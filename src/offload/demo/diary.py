"""The diary: what happened in the demo, a line each, written by all its processes and read by the terminal and the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal["web", "job", "mail", "file", "tidy", "worker"]


class Entry(msgspec.Struct, frozen=True):
    """One thing that happened. `bad` marks what went wrong, though all may end well."""

    at: float
    kind: Kind
    text: str
    bad: bool = False


class Diary:
    """A file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, kind: Kind, text: str, *, bad: bool = False) -> None:
        """Add a line. One write to a file opened for appending is not interleaved with those of other processes."""
        line = msgspec.json.encode(Entry(time(), kind, text, bad)) + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def read(self, start: int = 0) -> tuple[Sequence[Entry], int]:
        """The entries from byte `start` on, and the byte from which to read next time."""
        if not self._path.exists():
            return [], start
        with self._path.open("rb") as file:
            file.seek(start)
            whole, newline, _ = file.read().rpartition(b"\n")
        return msgspec.json.decode(b"[" + whole.replace(b"\n", b",") + b"]", type=list[Entry]), start + len(whole) + len(newline)
