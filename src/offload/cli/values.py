"""Values as people type them: sizes, durations, arguments of tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import click

from offload.errors import BadDeclaration
from offload.limits import given_key

SIZES = {
    "": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


class _Quantity(click.ParamType[Any]):
    units: dict[str, int]
    example: str

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int | float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
        if found is None or found[2] not in self.units:
            self.fail(f"{value!r} is no {self.name}; write it like {self.example}", param, ctx)
        return float(found[1]) * self.units[found[2]]


class Size(_Quantity):
    """Bytes: `500MB`, `1.5GiB`, `1000000`."""

    name = "size"
    units = SIZES
    example = "500MB, 1.5GiB or 500000000"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return int(super().convert(value, param, ctx))


class Seconds(_Quantity):
    """Seconds: `90`, `1.5m`, `2h`."""

    name = "duration"
    units = SECONDS
    example = "90, 90s, 5m, 2h or 1d"


class Name(click.ParamType[str]):
    """A name that is not empty."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("the name is empty", param, ctx)
        return str(value)


class Key(click.ParamType[str]):
    """The key of an order or a limit; it may consist of spaces."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return given_key(value, "the key")
        except BadDeclaration as error:
            self.fail(str(error), param, ctx)


def arguments(given: Sequence[str]) -> dict[str, Any]:
    """The arguments of a job from JSON objects and `key=value` words; a value is JSON where it can be, else text."""
    named: dict[str, Any] = {}
    for word in given:
        more = json_object(word) if word.lstrip().startswith("{") else _pair(word)
        if twice := named.keys() & more.keys():
            raise click.UsageError(f"the argument {min(twice)!r} is given twice")
        named |= more
    return named


def json_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises UsageError for anything else."""
    try:
        value: Any = json.loads(text, parse_constant=_not_json)
    except ValueError as error:
        raise click.UsageError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"{text!r} is no JSON object; write the arguments by name, such as '{{\"user_id\": 7}}'")
    return cast(dict[str, Any], value)


def _pair(word: str) -> dict[str, Any]:
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{word!r} is neither a JSON object nor key=value, such as user_id=7")
    try:
        return {name: json.loads(text, parse_constant=_not_json)}
    except ValueError:
        return {name: text}


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")
