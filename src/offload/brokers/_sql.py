"""Reads SQL files, so that SQL lives in files of its own and not in Python strings."""

from __future__ import annotations

from importlib.resources import files


def script(package: str, name: str) -> str:
    """The text of the SQL file `name` beside the modules of `package`."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def queries(package: str, name: str) -> dict[str, str]:
    """The statements of an SQL file by the names in their `-- name:` lines."""
    sections = script(package, name).split("-- name:")[1:]
    return {title.strip(): body.strip() for title, _, body in (section.partition("\n") for section in sections)}
