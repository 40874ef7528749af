"""The options of a task, what `using(...)` changes of them for one job, and what of either cannot work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args

import msgspec

from offload import limits
from offload.duration import Duration, seconds
from offload.errors import BadDeclaration
from offload.job import KEEP_SUCCEEDED, Draft, Isolation, Limit, OnDead, UniqueKey
from offload.limits import Concurrency, Key, Limits, Rate, Unique
from offload.retry import RetryPolicy

R = TypeVar("R")

HIGHEST_PRIORITY = 100
LONGEST_NAME = 200
"""The most characters of an id and of the names of queues and tasks: what every store can index."""
IN_NO_QUEUE = re.compile(r"[\s,:*\0]")
"""What the name of a queue must not hold: `-q vip:3,default` reads lists and weights, and a shell reads the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `@app.task(...)` takes. See there."""

    name: str | None = None
    queue: str = "default"
    priority: int = 0
    retry: RetryPolicy | int | bool | None = True
    timeout: Duration | None = 3600.0
    isolation: Isolation | None = None
    unique: Unique | Key | None = None
    order_by: Key | None = None
    on_dead: OnDead = "continue"
    limits: Limits = ()
    fair_by: Key | None = None
    expires_in: Duration | None = None
    keep: Duration = KEEP_SUCCEEDED
    log: Sequence[str] = ()
    mask: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What `using(...)` changes for one job; None leaves what the task says. Raises BadDeclaration for what cannot work."""

    delay: Duration | None = None
    run_at: datetime | None = None
    priority: int | None = None
    queue: str | None = None
    unique: str | Unique | None = None
    order_by: str | None = None
    on_dead: OnDead | None = None
    limits: Limits | None = None
    fair_by: str | None = None
    id: str | None = None
    expires_in: Duration | None = None
    timeout: Duration | None = None
    keep: Duration | None = None
    connection: Any = None

    def __post_init__(self) -> None:
        self._check_time()
        self._check_keys()
        if self.id is not None and not isinstance(self.id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"using(id={self.id!r}) must be a text, such as 'signup-7'")
        if self.id is not None and not self.id:
            raise BadDeclaration("using(id='') is empty; leave it out to have one made")
        if self.id is not None:
            short(self.id, "using(id=...)")
        if self.queue is not None:
            queue_of(self.queue, "using(queue=...)")
        if self.priority is not None:
            priority_of(self.priority, "using(priority=...)")
        for name, least in (("delay", 0.0), ("expires_in", 0.001), ("timeout", 0.001), ("keep", 0.0)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, seconds(value, f"using({name}=...)", least=least))

    def _check_time(self) -> None:
        if self.delay is not None and self.run_at is not None:
            raise BadDeclaration("using(delay=..., run_at=...): a job has one time; give one of the two")
        if self.run_at is not None and not isinstance(self.run_at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"using(run_at={self.run_at!r}) must be an aware datetime; using(delay=...) takes seconds")
        if self.run_at is not None and self.run_at.tzinfo is None:
            raise BadDeclaration(
                f"using(run_at={self.run_at!r}) has no time zone; make it aware, for example datetime.now(UTC) + timedelta(hours=1)"
            )

    def _check_keys(self) -> None:
        if self.unique is not None and not isinstance(self.unique, str | Unique):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"using(unique={self.unique!r}): give a key as a text, or a Unique")
        if self.unique is not None and not self.unique:
            raise BadDeclaration("using(unique='') is empty; leave it out for no key")
        for name in ("order_by", "fair_by"):
            if (key := getattr(self, name)) is not None:
                limits.given_key(key, f"using({name}=...): the key of this job")
        on_dead_of(self.on_dead or "continue", "using(on_dead=...)")
        if self.limits is not None:
            given = limits.checked_limits(self.limits, "using(limits=...)")
            object.__setattr__(self, "limits", given)
            for limit in given:
                limits.given_key(limit.key, f"using(limits=...): the key of {type(limit).__name__} for this job")

    def literals(self) -> list[tuple[str, str]]:
        """The keys that are taken as they are, each behind the option that it was given for."""
        if self.unique is None and self.order_by is None and self.fair_by is None and self.limits is None:
            return []
        unique = self.unique.key if isinstance(self.unique, Unique) else self.unique
        given = () if self.limits is None else limits.checked_limits(self.limits, "limits")
        keys = [("unique", unique), ("order_by", self.order_by), ("fair_by", self.fair_by), *(("limits", limit.key) for limit in given)]
        return [(option, key) for option, key in keys if isinstance(key, str)]

    def applied(self, draft: Draft[R], declared: Unique | None) -> Draft[R]:
        """`draft` with the changes; a literal key takes the rest of its rule from the one that the task has `declared`."""
        plain = ("id", "queue", "priority", "delay", "expires_in", "timeout", "keep", "on_dead")
        given: dict[str, Any] = {name: value for name in plain if (value := getattr(self, name)) is not None}
        if self.run_at is not None:
            given["run_at"] = self.run_at.astimezone(UTC)
        if self.unique is not None:
            given["unique"] = self._key(declared)
        for name in ("order_by", "fair_by"):
            if (key := getattr(self, name)) is not None:
                given[name] = key
        if self.limits is not None:
            given["limits"] = limits.strictest([_literal(limit) for limit in limits.checked_limits(self.limits, "limits")])
        made = msgspec.structs.replace(draft, **given)
        ordered(made.on_dead, made.order_by, "using(on_dead=...)")
        return made

    def _key(self, declared: Unique | None) -> UniqueKey:
        if isinstance(self.unique, Unique):
            return limits.literal(self.unique, self.unique.key, "using(unique=...)")
        return limits.literal(declared or Unique("key"), self.unique, "using(unique=...)")


def name_of(name: Any) -> str:
    """The name of a task. Raises BadDeclaration."""
    if not isinstance(name, str) or not name.strip():
        raise BadDeclaration(f"@app.task(name=...) must be a text that is not empty, not {name!r}")
    return short(name, "@app.task(name=...)")


def short(name: str, what: str) -> str:
    """A name or id that is not too long. Raises BadDeclaration."""
    if len(name) > LONGEST_NAME:
        raise BadDeclaration(f"{what}, {name[:40]!r}..., has {len(name):,} characters, of at most {LONGEST_NAME}: use a hash of it")
    return name


def queue_of(queue: Any, what: str) -> str:
    """The name of a queue. Raises BadDeclaration."""
    if not isinstance(queue, str) or not queue.strip():
        raise BadDeclaration(f"{what} must be a name that is not empty, not {queue!r}")
    if IN_NO_QUEUE.search(queue):
        raise BadDeclaration(f"{what} {queue!r} could not be named by `offload worker -q`: leave out white space, ',', ':', '*' and NUL")
    return short(queue, what)


def on_dead_of(on_dead: Any, what: str) -> OnDead:
    """What becomes of a key whose job is dead. Raises BadDeclaration."""
    if on_dead not in get_args(OnDead):
        raise BadDeclaration(f"{what} must be one of {', '.join(get_args(OnDead))}, not {on_dead!r}")
    return on_dead


def ordered(on_dead: OnDead, order_by: Key | None, what: str) -> OnDead:
    """Raise BadDeclaration for what is to hold a line where there is none."""
    if on_dead == "hold" and order_by is None:
        raise BadDeclaration(f"{what}: on_dead='hold' stops the jobs of an order at a dead one; give order_by= too, or leave it out")
    return on_dead


def _literal(limit: Concurrency | Rate) -> Limit:
    return limits.limit_of(limit, limits.given_key(limit.key, f"the key of {type(limit).__name__}"))


def priority_of(priority: Any, what: str) -> int:
    """A priority. Raises BadDeclaration."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not -HIGHEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise BadDeclaration(
            f"{what} must be a whole number from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY} (higher runs first), not {priority!r}"
        )
    return priority
