"""`offload demo`: a small web site whose slow work is done by Offload, to try and to read.

tasks.py         the app and its tasks: read this first, then site.py, the web site that enqueues them
data.py          the site's own database
letters.py, pictures.py, report.py                what the tasks make
mail.py          a mail server that can be down
overview.py, page.html                            what the page shows
diary.py, console.py                              what happened, and the terminal that shows it
place.py, ports.py, workers.py, stage.py          one folder, its addresses, the real `offload worker`, all of it put up and taken down
performance.py   one run, from its first line in the terminal to its exit code
story.py, client.py                               all of it played without anybody, and what came of it checked (`--once`)
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape

PACKAGES = ("starlette", "uvicorn", "python_multipart", "aiosmtpd", "PIL", "reportlab")


class CannotStart(Exception):
    """The demo cannot start; the text says why and what to do."""


def main(once: bool = False, port: int | None = None, folder: Path | None = None) -> int:
    """Run the demo until Ctrl-C or, with `once`, play all of it and check it. Returns the exit code.

    `port` is the web site's: 8000 if that is free, unless said. `folder` takes every file and is kept; without one a temporary
    folder is used, which is kept only when a check of `once` did not hold.
    """
    home, code = None, 1
    try:
        _check_packages()
        with _listening(port) as listening:
            home = _home(folder, once)
            code = _run(home, listening, once=once, kept=folder is not None)
    except CannotStart as error:
        Console(stderr=True).print(f"[red]The demo cannot start:[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
    finally:
        if folder is None and home is not None and code == 0:
            shutil.rmtree(home, ignore_errors=True)
    return code


def _run(home: Path, listening: socket.socket, *, once: bool, kept: bool) -> int:
    from offload.demo.place import Place
    from offload.demo.ports import free_port

    place = Place(home, f"http://127.0.0.1:{listening.getsockname()[1]}", free_port())
    place.prepare()
    place.enter()
    from offload.demo.performance import perform  # imports the app, which by now finds where its jobs are

    return asyncio.run(perform(place, listening, once=once, kept=kept))


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise CannotStart(
            f"it needs packages of its own ({', '.join(missing)}); install them from a clone of Offload: pip install '.[demo]'"
        )


def _home(folder: Path | None, once: bool) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="offload-demo-"))
    home = folder.absolute()
    if once and (home / "site.db").exists():
        raise CannotStart(f"{home} holds an earlier demo, and --once starts from nothing; give a new folder, or none for a temporary one")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"the folder {home} cannot be made ({error.strerror}); give one that this user may write to") from error
    return home


def _listening(port: int | None) -> socket.socket:
    from offload.demo.ports import listen

    try:
        return listen(port)
    except OSError as error:
        raise CannotStart(f"port {port} cannot be used ({error.strerror}); choose another with --port, or leave it out") from error
