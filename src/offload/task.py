"""A task: a function that can be enqueued. It stays directly callable."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import msgspec

from offload import limits
from offload.broker import Feature
from offload.codec import Arguments
from offload.duration import Duration, seconds
from offload.errors import BadDeclaration
from offload.handle import Handle
from offload.job import KEEP_SUCCEEDED, Draft, Isolation, UniqueKey
from offload.limits import Unique
from offload.producer import Producer
from offload.retry import RetryPolicy, policy_of

P = ParamSpec("P")
R = TypeVar("R")

HIGHEST_PRIORITY = 100
ISOLATIONS = ("async", "thread", "process")
NAMES_OF_OTHERS = ("delay", "send", "apply_async")
"""What other job queues call `enqueue`."""
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
    unique: Unique | str | None = None
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
    id: str | None = None
    expires_in: Duration | None = None
    timeout: Duration | None = None
    keep: Duration | None = None
    connection: Any = None

    def __post_init__(self) -> None:
        if self.delay is not None and self.run_at is not None:
            raise BadDeclaration("using(delay=..., run_at=...): a job has one time; give one of the two")
        if self.run_at is not None and not isinstance(self.run_at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"using(run_at={self.run_at!r}) must be an aware datetime; using(delay=...) takes seconds")
        if self.run_at is not None and self.run_at.tzinfo is None:
            raise BadDeclaration(
                f"using(run_at={self.run_at!r}) has no time zone; make it aware, for example datetime.now(UTC) + timedelta(hours=1)"
            )
        if self.id is not None and not isinstance(self.id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"using(id={self.id!r}) must be a text, such as 'signup-7'")
        if self.id is not None and not self.id:
            raise BadDeclaration("using(id='') is empty; leave it out to have one made")
        if self.unique is not None and not isinstance(self.unique, str | Unique):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"using(unique={self.unique!r}): give a key as a text, or a Unique")
        if self.unique is not None and not self.unique:
            raise BadDeclaration("using(unique='') is empty; leave it out for no key")
        if self.queue is not None:
            _queue(self.queue, "using(queue=...)")
        if self.priority is not None:
            _priority(self.priority, "using(priority=...)")
        for name, least in (("delay", 0.0), ("expires_in", 0.001), ("timeout", 0.001), ("keep", 0.0)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, seconds(value, f"using({name}=...)", least=least))

    def applied(self, draft: Draft[R], declared: Unique | None) -> Draft[R]:
        """`draft` with the changes; a literal key takes the rest of its rule from the one that the task has `declared`."""
        plain = ("id", "queue", "priority", "delay", "expires_in", "timeout", "keep")
        given: dict[str, Any] = {name: value for name in plain if (value := getattr(self, name)) is not None}
        if self.run_at is not None:
            given["run_at"] = self.run_at.astimezone(UTC)
        if self.unique is not None:
            given["unique"] = self._key(declared)
        return msgspec.structs.replace(draft, **given)

    def _key(self, declared: Unique | None) -> UniqueKey:
        if isinstance(self.unique, Unique):
            return limits.literal(self.unique, self.unique.key, "using(unique=...)")
        return limits.literal(declared or Unique("key"), self.unique, "using(unique=...)")


class Task(Generic[P, R]):
    """A function that can be enqueued. Calling it calls the function."""

    isolations: tuple[Isolation, ...] = ("thread", "process")

    def __init__(self, function: Callable[P, Any], options: Options, producer: Producer) -> None:
        functools.update_wrapper(self, function)
        self.name = default_name(function) if options.name is None else _name(options.name)
        what = f"task {self.name}"
        self.function: Callable[P, Any] = function
        self.arguments = Arguments(function, self.name)
        self.queue = _queue(options.queue, f"{what}: queue")
        self.priority = _priority(options.priority, f"{what}: priority")
        self.retry: RetryPolicy = policy_of(options.retry)
        self.timeout = None if options.timeout is None else seconds(options.timeout, f"{what}: timeout", least=0.001)
        self.isolation: Isolation = self._isolation(options.isolation, what)
        self.unique = None if options.unique is None else limits.declared(options.unique, self.arguments.parameters, what)
        self.expires_in = None if options.expires_in is None else seconds(options.expires_in, f"{what}: expires_in", least=0.001)
        self.keep = seconds(options.keep, f"{what}: keep")
        self.log = self._parameters(options.log, f"{what}: log")
        self.mask = self._parameters(options.mask, f"{what}: mask")
        self.producer = producer
        producer.check(self._asks(), what)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Just call the function, here and now."""
        return self.function(*args, **kwargs)

    if not TYPE_CHECKING:  # with it, type checkers would take every attribute for one that is there

        def __getattr__(self, name: str) -> Any:
            hint = f"; use {called(self)}.enqueue(...), or {called(self)}.using(delay=60).enqueue(...)" if name in NAMES_OF_OTHERS else ""
            raise AttributeError(f"a task has no {name!r}{hint}", name=name, obj=self)

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> Draft[R]:
        """A job of these arguments that is not enqueued yet. Raises BadPayload when the call could not work."""
        return Draft(
            task=self.name,
            payload=self.arguments.encode(args, kwargs),
            queue=self.queue,
            priority=self.priority,
            expires_in=self.expires_in,
            unique=None if self.unique is None else self._key(self.unique, args, kwargs),
            keep=self.keep,
        )

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue a job of these arguments. It is durable on return.

        In a block of `current.transaction()` it becomes part of that transaction instead. Raises BadPayload when the call could not work
        or JSON cannot carry it, UniqueConflict, BrokerError.
        """
        [id] = await self.producer.enqueue([self.job(*args, **kwargs)])
        return Handle(id, self.producer)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue a job of these arguments. It is durable on return.

        As `aenqueue`, for sync code. Raises LoopRunning on a running event loop.
        """
        [id] = self.producer.enqueue_blocking("enqueue", lambda: [self.job(*args, **kwargs)])
        return Handle(id, self.producer)

    def using(
        self,
        *,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        unique: str | Unique | None = None,
        id: str | None = None,
        expires_in: Duration | None = None,
        timeout: Duration | None = None,
        keep: Duration | None = None,
        connection: Any = None,
    ) -> Bound[P, R]:
        """The task with other options for the jobs enqueued through what is returned; None leaves what the task says.

        `delay`, `expires_in` (both from the enqueue), `timeout` and `keep` are seconds or timedeltas; `run_at` is an aware datetime;
        `unique` is a literal key; `id` makes the enqueue idempotent as long as the job's record is kept. With `connection`, a connection or
        session of the caller's to the database of the queue, the job is part of the transaction that is open there: it runs once that
        commits, and never if it rolls back. Raises BadDeclaration.
        """
        changes = Changes(
            delay=delay,
            run_at=run_at,
            priority=priority,
            queue=queue,
            unique=unique,
            id=id,
            expires_in=expires_in,
            timeout=timeout,
            keep=keep,
            connection=connection,
        )
        return Bound(self, changes)

    def _key(self, unique: Unique, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UniqueKey:
        return limits.resolve(unique, self.arguments.named(args, kwargs), args, kwargs, f"task {self.name}")

    def _isolation(self, asked: Isolation | None, what: str) -> Isolation:
        if asked is None:
            return self.isolations[0]
        if asked not in ISOLATIONS:
            raise BadDeclaration(f"{what}: there is no isolation {asked!r}; known are {', '.join(ISOLATIONS)}")
        if asked not in self.isolations:
            kind = "an async def" if "async" in self.isolations else "a def"
            raise BadDeclaration(f"{what} is {kind} and cannot run with isolation={asked!r}; use {' or '.join(map(repr, self.isolations))}")
        return asked

    def _parameters(self, names: Sequence[str], what: str) -> tuple[str, ...]:
        if not isinstance(names, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"{what} must be names of parameters, not {names!r}")
        names = (names,) if isinstance(names, str) else tuple(names)
        known = ", ".join(self.arguments.parameters) or "none"
        for name in names:
            if name not in self.arguments.parameters:
                raise BadDeclaration(f"{what} names {name!r}, which is no parameter; known are: {known}")
        return names

    def _asks(self) -> list[Feature]:
        asked = {Feature.PRIORITY: self.priority != 0, Feature.EXPIRY: self.expires_in is not None, Feature.UNIQUE: self.unique is not None}
        return [feature for feature, wanted in asked.items() if wanted]


class AsyncTask(Task[P, R]):
    """A task whose function is an `async def`. Calling it gives a coroutine."""

    isolations = ("async", "process")

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R]], options: Options, producer: Producer) -> None:
        super().__init__(function, options, producer)
        plain: Any = inspect.unwrap(function)
        while isinstance(plain, functools.partial):
            plain = cast(Any, plain).func
        # With these attributes `inspect.iscoroutinefunction` takes the task for the coroutine function that it is (all Pythons from 3.11).
        self.__name__: str = getattr(function, "__name__", self.name)
        self.__code__ = plain.__code__
        self.__defaults__ = plain.__defaults__
        self.__kwdefaults__ = plain.__kwdefaults__

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # pyright: ignore[reportIncompatibleMethodOverride] - a coroutine of R in place of R is the whole difference
        """Just call the function, here and now; the coroutine is to be awaited."""
        return self.function(*args, **kwargs)


class Bound(Generic[P, R]):
    """A task with options for particular jobs. What `using(...)` gives."""

    __slots__ = ("_changes", "_task")

    def __init__(self, task: Task[P, R], changes: Changes) -> None:
        self._task = task
        self._changes = changes

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> Draft[R]:
        """A job of these arguments that is not enqueued yet. Raises BadPayload when the call could not work."""
        return self._changes.applied(self._task.job(*args, **kwargs), self._task.unique)

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue a job of these arguments; as `Task.aenqueue`, and raises IdConflict where `id` was used with another payload.

        On a `connection` the errors of its driver are raised as they are, and BadDeclaration where it does not fit.
        """
        [id] = await self._task.producer.enqueue([self.job(*args, **kwargs)], self._changes.connection)
        return Handle(id, self._task.producer)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue a job of these arguments; as `aenqueue`, for sync code and, on a running event loop, too, for a sync `connection`."""
        [id] = self._task.producer.enqueue_blocking("enqueue", lambda: [self.job(*args, **kwargs)], self._changes.connection)
        return Handle(id, self._task.producer)


def task_of(function: Callable[..., Any], given: Mapping[str, Any], producer: Producer) -> Task[..., Any]:
    """The task that a function becomes, with the options that were `given`. Raises BadDeclaration."""
    if isinstance(function, Task):
        raise BadDeclaration(f"{function!r} is a task already; put @app.task on a function once")
    if not callable(function) or isinstance(function, type):
        raise BadDeclaration(f"@app.task goes on a function, not on {function!r}")
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise BadDeclaration(f"{plain.__qualname__} is a generator: a task returns one value; return a list, or enqueue a job for each")
    _refuse_method(plain)
    options = _options(function, given)
    if inspect.iscoroutinefunction(function):
        return AsyncTask(function, options, producer)
    return Task(function, options, producer)


def called(task: Task[..., Any]) -> str:
    """What the code calls a task; its name where it has none."""
    return getattr(task.function, "__name__", None) or task.name


def _options(function: Callable[..., Any], given: Mapping[str, Any]) -> Options:
    known = [field.name for field in fields(Options)]
    if unknown := [name for name in given if name not in known]:
        task = given.get("name") or default_name(function)
        alike = get_close_matches(unknown[0], known, n=1, cutoff=0.7)
        hint = f" (did you mean {alike[0]!r}?)" if alike else ""
        raise BadDeclaration(f"task {task}: there is no option {unknown[0]!r}{hint}; known are {', '.join(known)}")
    return Options(**given)


def _refuse_method(function: Any) -> None:
    """Raise BadDeclaration for a function in the body of a class that wants the object, or the class, first."""
    holder = getattr(function, "__qualname__", "").rpartition(".")[0]
    names: tuple[str, ...] = getattr(getattr(function, "__code__", None), "co_varnames", ())
    first = next(iter(names), None)
    if holder and not holder.endswith("<locals>") and first in ("self", "cls"):
        raise BadDeclaration(
            f"{function.__qualname__} is a method, and a worker has no {first!r} to call it with;"
            " make it a function that takes an id and finds the rest, or put @staticmethod above @app.task"
        )


def default_name(function: Callable[..., Any]) -> str:
    """`module.qualname`, where `__main__` stands under the name that it has when imported."""
    name = getattr(function, "__qualname__", None)
    if name is None or name.rpartition(".")[2] == "<lambda>":
        raise BadDeclaration(f"{function!r} has no name of its own; give one with @app.task(name=...)")
    return f"{_module_name(function.__module__)}.{name}"


def _module_name(module: str) -> str:
    """So that `python app.py` and `offload worker app:app` agree."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return spec.name
    file = getattr(main, "__file__", None)
    return PurePath(file).stem if file else module


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise BadDeclaration(f"@app.task(name=...) must be a text that is not empty, not {name!r}")
    return name


def _queue(queue: Any, what: str) -> str:
    if not isinstance(queue, str) or not queue.strip():
        raise BadDeclaration(f"{what} must be a name that is not empty, not {queue!r}")
    if IN_NO_QUEUE.search(queue):
        raise BadDeclaration(f"{what} {queue!r} could not be named by `offload worker -q`: leave out white space, ',', ':', '*' and NUL")
    return queue


def _priority(priority: Any, what: str) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not -HIGHEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise BadDeclaration(
            f"{what} must be a whole number from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY} (higher runs first), not {priority!r}"
        )
    return priority
