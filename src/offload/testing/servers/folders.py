"""The folder that holds what a program's servers write: one a program, removed at its end, or by a later one if it was killed."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import IO

PREFIX = "offload-servers-"


def mine() -> Path:
    """This program's folder. Others may pass through it, since servers of root run as another user, but not list it."""
    return _made_by(os.getpid())


def new(name: str) -> Path:
    """A new empty folder for one server."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=mine()))


@cache
def _made_by(process: int) -> Path:
    # Keyed by the process: a forked child must not share, and at its end remove, its parent's.
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_place()))
    folder.chmod(0o711)
    # The lock is held until this process ends, however it ends; it gets its name once it is locked, so that no other takes it for left.
    lock = (folder / "locking").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "locking").rename(folder / "lock")
    atexit.register(_remove, folder, lock, process)
    return folder


def _remove(folder: Path, lock: IO[str], process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _place() -> Path:
    """Where temporary files go, but for root only where other users may pass, since servers that refuse root run as one of them."""
    usual = Path(tempfile.gettempdir()).resolve()
    return usual if os.getuid() or passable(usual) else Path("/tmp")  # noqa: S108 - a folder of its own is made there


def passable(folder: Path) -> bool:
    """Whether every user may pass through a folder and those above it."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))


def _sweep() -> None:
    """Remove the folders of programs that were killed."""
    for lock in _place().glob(f"{PREFIX}*/lock"):
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(lock.parent)
        except OSError:
            continue  # in use, another user's, or just removed


def _clear(folder: Path) -> None:
    """Remove a folder, its lock last: by that a later program finds what a server wrote meanwhile that was still on its way down."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != "lock":
            entry.unlink()
    if all(entry.name == "lock" for entry in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
