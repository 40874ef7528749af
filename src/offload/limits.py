"""What a key allows: `Unique` keeps a second job of the same key from being enqueued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from string import Formatter
from typing import Any, Literal, TypeAlias, get_args

from offload.duration import seconds
from offload.errors import BadDeclaration, BadPayload
from offload.job import Conflict, UniqueKey, Until

LONGEST_KEY = 200
"""The most characters of a key once its template is filled in."""

Key: TypeAlias = str | Callable[..., str]


@dataclass(frozen=True, slots=True)
class Unique:
    """At most one job of a key: `key` is a `str.format` template over the task's arguments, or a callable taking the same arguments.

    `until` says when the key is free again: when the job is "finished" (the default), "started", or so many seconds (or a timedelta)
    after the enqueue. `on_conflict` says what a second enqueue does: "skip" gives the first job's handle, "raise" raises
    UniqueConflict, "replace" gives the waiting job the new payload and "debounce" also the new time (both with
    `until="started"`), "keep_last" lets one successor wait, always with the newest payload (with `until="finished"`).
    In `using(...)` the key is taken literally. Raises BadDeclaration for what cannot work.
    """

    key: Key
    until: Literal["finished", "started"] | float | timedelta = "finished"
    on_conflict: Conflict = "skip"

    def __post_init__(self) -> None:
        if not callable(self.key) and not (isinstance(self.key, str) and self.key):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"the key of Unique must be a text that is not empty, or a callable, not {self.key!r}")
        if self.on_conflict not in get_args(Conflict):
            raise BadDeclaration(f"Unique(on_conflict={self.on_conflict!r}): known are {', '.join(get_args(Conflict))}")
        if isinstance(self.until, str):
            if self.until not in ("finished", "started"):
                raise BadDeclaration(f"Unique(until={self.until!r}): say 'finished', 'started', or a duration in seconds")
        else:
            object.__setattr__(self, "until", seconds(self.until, "Unique(until=...)", least=0.001))
        if self.on_conflict in ("replace", "debounce") and self.until != "started":
            raise BadDeclaration(f"Unique(on_conflict={self.on_conflict!r}) changes a job that has not started: it needs until='started'")
        if self.on_conflict == "keep_last" and self.until != "finished":
            raise BadDeclaration("Unique(on_conflict='keep_last') lets one job wait for another to end: it needs until='finished'")


def declared(unique: Unique | str, parameters: Mapping[str, object], what: str) -> Unique:
    """`unique` as a task declares it, its template checked against the task's parameters. Raises BadDeclaration."""
    if not isinstance(unique, str | Unique):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise BadDeclaration(f"{what}: unique must be a Unique, or the template of its key, not {unique!r}")
    unique = Unique(unique) if isinstance(unique, str) else unique
    if isinstance(unique.key, str):
        for field in _fields(unique.key, what):
            if field not in parameters:
                known = ", ".join(parameters) or "none"
                raise BadDeclaration(f"{what}: the unique key {unique.key!r} names {field!r}, which is no parameter; known are: {known}")
    return unique


def resolve(unique: Unique, arguments: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], what: str) -> UniqueKey:
    """The key of one job. `arguments` are all by name, defaults filled in; `args` and `kwargs` as they were given. Raises BadPayload."""
    try:
        key: Any = unique.key.format_map(arguments) if isinstance(unique.key, str) else unique.key(*args, **kwargs)
    except Exception as error:
        raise BadPayload(f"{what}: the unique key could not be made: {type(error).__name__}: {error}") from error
    return literal(unique, key, what)


def literal(unique: Unique, key: Any, what: str) -> UniqueKey:
    """The key of one job, with `key` taken as it is. Raises BadPayload when it is empty or too long."""
    if not isinstance(key, str) or not key:
        raise BadPayload(f"{what}: a unique key must be a text that is not empty, not {key!r}")
    if len(key) > LONGEST_KEY:
        raise BadPayload(f"{what}: the unique key {key[:40]!r}... has {len(key)} characters, of at most {LONGEST_KEY}: use a hash of it")
    until: Until = unique.until.total_seconds() if isinstance(unique.until, timedelta) else unique.until
    return UniqueKey(key, until, unique.on_conflict)


def _fields(template: str, what: str) -> list[str]:
    """The arguments that a template names."""
    try:
        parsed = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise BadDeclaration(f"{what}: the unique key {template!r} is no valid template: {error}") from error
    return [name.split(".")[0].split("[")[0] for name in parsed]
