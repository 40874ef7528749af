"""Prints the other Pythons of this machine that Offload supports, one path a version, newest patch first.

Looked for on PATH, in pyenv's folder of versions, and beside the interpreters found so (where pyenv, uv and others put siblings).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SUPPORTED = ((3, 11), (3, 12), (3, 13), (3, 14))
ASK = "import sys; print(*sys.version_info[:3], sys.base_prefix)"


def ask(python: Path) -> tuple[tuple[int, int, int], Path] | None:
    """The version and prefix of an interpreter; None for what does not run, such as a pyenv shim of a version not chosen."""
    try:
        answer = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=20, check=True).stdout
        major, minor, patch, prefix = answer.split(maxsplit=3)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return (int(major), int(minor), int(patch)), Path(prefix.strip())


def on_path() -> Iterator[Path]:
    for folder in os.get_exec_path():
        for _, minor in SUPPORTED:
            python = Path(folder, f"python3.{minor}")
            if python.is_file():
                yield python


def shelves(prefixes: set[Path]) -> Iterator[Path]:
    """The folders that hold one interpreter a subfolder."""
    if pyenv := shutil.which("pyenv"):
        yield Path(subprocess.run([pyenv, "root"], capture_output=True, text=True, check=True).stdout.strip(), "versions")
    yield from {prefix.parent for prefix in prefixes if prefix.name.startswith(("3.", "cpython-3."))}


def main() -> None:
    found: dict[tuple[int, int], tuple[int, Path]] = {}
    prefixes = {Path(sys.base_prefix)}

    def note(python: Path) -> None:
        answer = ask(python)
        if answer is None:
            return
        (major, minor, patch), prefix = answer
        prefixes.add(prefix)
        if patch >= found.get((major, minor), (-1, python))[0]:
            found[major, minor] = (patch, python)

    for python in on_path():
        note(python)
    for shelf in set(shelves(set(prefixes))):
        for _, minor in SUPPORTED:
            for python in shelf.glob(f"*3.{minor}*/bin/python3.{minor}"):
                note(python)
    for version in SUPPORTED:
        if version in found and version != sys.version_info[:2]:
            print(found[version][1])


if __name__ == "__main__":
    main()
