"""Reads the pages of the documentation as programs, and runs them.

A page's ```python blocks are one program, run from top to bottom as if they stood in one module that is being imported; a block with
`await` at its top level runs in an event loop. What a block needs and readers need not see stands before it as `<!-- python ... -->`.
Words after the language say more:

    python file=NAME     saved under that name beside the other files of the page, not run; later blocks and commands can import it
    python add=NAME      added to the end of the file of that name
    python needs=NAME    only compiled where the package NAME is not installed
    python raises=NAME   must raise an exception of that name, and with the text that a comment `# NAME: ...` gives
    console              each `$ command` is run by bash, in the page's own folder; the lines below it must be what it prints, where
                         `...` stands for anything. A block whose first command line ends in ` &` runs beside the rest of the page.
    sh                   shown, not run; its `offload` commands must be ones that the program accepts
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<words>[^\n]*)\n(?P<code>.*?)^ *```|^<!-- python(?P<more>[^\n]*)\n(?P<hidden>.*?)^-->",
    re.DOTALL | re.MULTILINE,
)
PATIENCE = 20.0
"""Seconds that a command which only looks may take until it shows what the page shows."""
LOOKS = ("offload jobs", "offload why", "offload dead", "offload queues", "offload schedules", "offload doctor")


class Block(NamedTuple):
    language: str
    words: dict[str, str]
    code: str
    line: int
    """The number of the page's line before the first of the code."""


def all_pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        if match["hidden"] is not None:
            yield Block("python", words_of(match["more"]), match["hidden"], line)
            continue
        indent = len(match["indent"])
        code = "".join(each[indent:] if each.strip() else each for each in match["code"].splitlines(keepends=True))
        yield Block(match["language"], words_of(match["words"]), code, line)


def words_of(text: str) -> dict[str, str]:
    return {word: value for word, _, value in (each.partition("=") for each in text.split())}


class Program:
    """One page at work in the current folder."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.beside: list[subprocess.Popen[bytes]] = []
        name = re.sub(r"\W", "_", page.stem.lower())
        self.module = ModuleType(name)
        spec = ModuleSpec(name, None, origin=str(page))
        vars(spec)["_initializing"] = True  # schedules are declared as in a module that is being imported
        self.module.__spec__ = spec
        sys.modules[name] = self.module
        sys.path.insert(0, str(Path.cwd()))

    def run(self) -> None:
        try:
            for block in blocks(self.page):
                match block.language:
                    case "python":
                        self.python(block)
                    case "console":
                        self.console(block)
                    case _:
                        continue
        finally:
            self.end()

    def python(self, block: Block) -> None:
        if "file" in block.words:
            Path(block.words["file"]).write_text(block.code)
            importlib.invalidate_caches()
            return
        if "add" in block.words:
            with Path(block.words["add"]).open("a") as file:
                file.write(f"\n\n{block.code}")
            return
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile("\n" * block.line + block.code, str(self.page), "exec", flags=flags, dont_inherit=True)
        if "needs" in block.words and importlib.util.find_spec(block.words["needs"]) is None:
            return
        expected = block.words.get("raises")
        try:
            if code.co_flags & inspect.CO_COROUTINE:
                coroutine: Any = eval(code, vars(self.module))
                asyncio.run(coroutine)
            else:
                exec(code, vars(self.module))
        except Exception as error:
            if type(error).__name__ != expected:
                raise
            shown = re.search(rf"# {expected}: (.*)", block.code)
            if shown is not None and not matches(shown[1], str(error)):
                raise AssertionError(f"{self.page}:{block.line}: the text is: {error}") from error
        else:
            assert expected is None, f"{self.page}:{block.line}: the block should raise {expected}"

    def console(self, block: Block) -> None:
        for command, output in commands(block.code):
            if command.startswith("export "):
                name, _, value = command.removeprefix("export ").partition("=")
                os.environ[name] = value
            elif command.endswith(" &"):
                self.beside.append(subprocess.Popen(["bash", "-c", f"exec {command.removesuffix(' &')}"], start_new_session=True))
            else:
                self.command(command, output, f"{self.page}:{block.line}")

    def command(self, command: str, output: str, place: str) -> None:
        deadline = time.monotonic() + (PATIENCE if command.startswith(LOOKS) else 0)
        while True:
            done = subprocess.run(
                ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
            )
            shown = plain(done.stdout)
            if done.returncode == 0 and matches(output, shown):
                return
            if time.monotonic() >= deadline:
                raise AssertionError(
                    f"{place}: `{command}` ended with {done.returncode} and printed\n{shown}\nwhere the page shows\n{output}"
                )

    def end(self) -> None:
        for process in self.beside:
            process.send_signal(signal.SIGTERM)
        for process in self.beside:
            assert process.wait(30) == 0, f"{process.args} ended with {process.returncode}"


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.replace("\\\n", " ").partition("\n")
        yield command, output


def plain(text: str) -> str:
    """Text as the page shows it: without colours, and with single spaces."""
    return re.sub(r"[ \t]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text)).strip()


def matches(expected: str, shown: str) -> bool:
    wanted = plain(expected)
    if not wanted:
        return True
    pattern = ".*".join(re.escape(part.strip()) for part in wanted.split("..."))
    return re.fullmatch(pattern.replace(r"\ ", r"\s+").replace(r"\n", r"\s*\n\s*"), shown, re.DOTALL) is not None


if __name__ == "__main__":
    Program(Path(sys.argv[1])).run()
