"""A small program of a user, in a folder of its own, and the command line called in it."""

from __future__ import annotations

import asyncio
import importlib
import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from offload import Offload, Record, State, Worker
from offload.cli import main

SHOP = """
import os
import time
from pathlib import Path
from offload import Offload, Unique

app = Offload("sqlite:///shop.db", session_timeout=2, heartbeat=0.5)

@app.task(name="greet", mask=("token",))
def greet(user_id: int, token: str = "", note: str = "") -> dict:
    return {"user": user_id, "note": note}

@app.task(name="boom", queue="bad", retry=False)
def boom(n: int = 0) -> None:
    raise ValueError(f"no user {n}")

@app.task(name="crash", queue="bad", retry=False)
def crash() -> None:
    raise KeyError("gone")

@app.task(name="whoami", keep=3600)
def whoami() -> int:
    with Path("pids").open("a") as pids:
        pids.write(f"{os.getpid()}\\n")
    return os.getpid()

@app.task(name="slow")
def slow() -> None:
    while not Path("go").exists():
        time.sleep(0.01)

@app.cron("0 9 * * MON", timezone="Europe/Berlin")
@app.task(name="weekly")
async def weekly() -> None: ...
"""


class Project:
    """The folder is the working directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("shop.py", SHOP)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, *args: str, input: str | None = None) -> Result:
        """Call `offload` in this process."""
        result = CliRunner().invoke(main, args, input=input, prog_name="offload")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def json(self, *args: str) -> Any:
        """What a command that is to succeed prints with --json."""
        result = self.run(*args, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def ok(self, *args: str, input: str | None = None) -> str:
        """What a command that is to succeed prints."""
        result = self.run(*args, input=input)
        assert result.exit_code == 0, result.output
        return result.stdout

    def empty(self) -> Project:
        """With a database that holds nothing: commands that only look do not make one."""
        self.ok("migrate", "shop:app")
        return self

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Call `offload` in a process of its own; standard error goes to the file `log`."""
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "offload", *args],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # so that it can be sent what a terminal sends
            )

    @property
    def app(self) -> Offload:
        return importlib.import_module("shop").app

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def record(self, id: str) -> Record:
        return self.app.handle(id).record()

    def succeeded(self, *ids: str) -> bool:
        return all(self.record(id).state is State.SUCCEEDED for id in ids)

    def drain(self) -> int:
        """Run all that is due, here, by an app that shares nothing with the one that commands work with."""
        app: Offload = runpy.run_path(str(self.folder / "shop.py"))["app"]

        async def drained() -> int:
            async with app:
                return await Worker(app).drain()

        return asyncio.run(drained())


def eventually(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """The first truth that `condition` gives, asked again and again."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return answer
