"""A task: a function that can be enqueued. It stays directly callable."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from difflib import get_close_matches
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from offload import limits
from offload.broker import Feature
from offload.callables import Call
from offload.codec import Arguments, HoldsOutputs
from offload.duration import Duration, seconds
from offload.errors import BadDeclaration
from offload.handle import Handle
from offload.job import Draft, Isolation, Limit, OnDead
from offload.limits import Key, Limits, Maker, Unique
from offload.options import Changes, Options, name_of, on_dead_of, ordered, priority_of, queue_of
from offload.producer import Producer
from offload.retry import RetryPolicy, policy_of

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("offload.task")

ISOLATIONS = ("async", "thread", "process")
NAMES_OF_OTHERS = ("delay", "send", "apply_async")
"""What other job queues call `enqueue`."""
DRAFTS_OF_OTHERS = ("s", "si", "signature", "message")
"""What other job queues call `job`."""
MOST_TOLD = 100
"""Of so many literal keys that read as templates a task warns; who makes a new one for each job has heard of it by then."""


class Task(Generic[P, R]):
    """A function that can be enqueued. Calling it calls the function."""

    isolations: tuple[Isolation, ...] = ("thread", "process")

    def __init__(self, function: Callable[P, Any], options: Options, producer: Producer) -> None:
        functools.update_wrapper(self, function)
        self.name = default_name(function) if options.name is None else name_of(options.name)
        what = f"task {self.name}"
        self.function: Callable[P, Any] = function
        self.arguments = Arguments(function, self.name)
        self.queue = queue_of(options.queue, f"{what}: queue")
        self.priority = priority_of(options.priority, f"{what}: priority")
        self.retry: RetryPolicy = policy_of(options.retry)
        self.timeout = None if options.timeout is None else seconds(options.timeout, f"{what}: timeout", least=0.001)
        self.isolation: Isolation = self._isolation(options.isolation, what)
        self.unique = None if options.unique is None else limits.declared(options.unique, self.arguments.parameters, what)
        self.order_by = self._declared_key(options.order_by, f"{what}: order_by")
        self.on_dead = ordered(on_dead_of(options.on_dead, f"{what}: on_dead"), self.order_by, what)
        self.limits = limits.declared_limits(options.limits, self.arguments.parameters, what)
        self.fair_by = self._declared_key(options.fair_by, f"{what}: fair_by")
        self.expires_in = None if options.expires_in is None else seconds(options.expires_in, f"{what}: expires_in", least=0.001)
        self.keep = seconds(options.keep, f"{what}: keep")
        self.log = self._parameters(options.log, f"{what}: log")
        self.mask = self._parameters(options.mask, f"{what}: mask")
        self._makers = self._made_for(what)
        self._limits = [
            (limit, limits.rule_of(limit, f"{self.name}[{place}]"), self._maker(limit.key, f"{what}: the key of {type(limit).__name__}"))
            for place, limit in enumerate(self.limits)
        ]
        self.producer = producer
        self.told: set[str] = set()
        """The literal keys of which it has warned."""
        self.declared_in: str = self.function.__module__
        """The module that made the function a task, as far as is known."""
        producer.check(self._asks(), what)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Just call the function, here and now."""
        return self.function(*args, **kwargs)

    if not TYPE_CHECKING:  # with it, type checkers would take every attribute for one that is there

        def __getattr__(self, name: str) -> Any:
            hint = f"; use {called(self)}.enqueue(...), or {called(self)}.using(delay=60).enqueue(...)" if name in NAMES_OF_OTHERS else ""
            hint = f"; use {called(self)}.job(...)" if name in DRAFTS_OF_OTHERS else hint
            raise AttributeError(f"a task has no {name!r}{hint}", name=name, obj=self)

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> Draft[R]:
        """A job of these arguments that is not enqueued yet. Raises BadPayload when the call could not work."""
        try:
            payload, outputs = self.arguments.encode(args, kwargs), ()
        except HoldsOutputs:
            payload, outputs = self.arguments.encode_open(args, kwargs)
        return Draft(
            task=self.name,
            payload=payload,
            outputs=outputs,
            producer=self.producer,
            queue=self.queue,
            priority=self.priority,
            expires_in=self.expires_in,
            keep=self.keep,
            **(self._keys(Call(args, kwargs, self.arguments.named(args, kwargs))) if self._makers or self._limits else {}),
        )

    def rules(self) -> tuple[Limit, ...]:
        """The limits that the task declares, as stores know them: by their rules."""
        return tuple(limits.limit_of(limit, rule, rule) for limit, rule, _ in self._limits)

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
        order_by: str | None = None,
        on_dead: OnDead | None = None,
        limits: Limits | None = None,
        fair_by: str | None = None,
        id: str | None = None,
        expires_in: Duration | None = None,
        timeout: Duration | None = None,
        keep: Duration | None = None,
        connection: Any = None,
    ) -> Bound[P, R]:
        """The task with other options for the jobs enqueued through what is returned; None leaves what the task says.

        `delay`, `expires_in` (both from the enqueue), `timeout` and `keep` are seconds or timedeltas; `run_at` is an aware datetime;
        `unique`, `order_by`, `fair_by` and the keys of `limits` are literal; `limits` take the place of the task's; `id` makes the enqueue
        idempotent as long as the job's record is kept. With `connection`, a connection or session of the caller's to the database of the
        queue, the job is part of the transaction that is open there: it runs once that commits, and never if it rolls back. Raises
        BadDeclaration.
        """
        changes = Changes(
            delay=delay,
            run_at=run_at,
            priority=priority,
            queue=queue,
            unique=unique,
            order_by=order_by,
            on_dead=on_dead,
            limits=limits,
            fair_by=fair_by,
            id=id,
            expires_in=expires_in,
            timeout=timeout,
            keep=keep,
            connection=connection,
        )
        warn_of_templates(self, changes)
        return Bound(self, changes)

    def _keys(self, call: Call) -> dict[str, Any]:
        """What the keys of a job of this call are, as far as the task has any."""
        made: dict[str, Any] = {option: maker.make(call) for option, maker in self._makers.items()}
        if self.unique is not None:
            made["unique"] = limits.unique_key(self.unique, made["unique"])
        made["limits"] = limits.strictest([limits.limit_of(limit, maker.make(call), rule) for limit, rule, maker in self._limits])
        return {**made, "on_dead": self.on_dead}

    def _made_for(self, what: str) -> dict[str, Maker]:
        """What makes the keys of which a task has one each, by their options."""
        keys = {"unique": None if self.unique is None else self.unique.key, "order_by": self.order_by, "fair_by": self.fair_by}
        shown = {option: "unique key" if option == "unique" else f"key of {option}" for option in keys}
        return {option: self._maker(key, f"{what}: the {shown[option]}") for option, key in keys.items() if key is not None}

    def _maker(self, key: Key, what: str) -> Maker:
        return Maker(key, self.arguments.parameters, what)

    def _declared_key(self, key: Key | None, what: str) -> Key | None:
        return None if key is None else limits.declared_key(key, self.arguments.parameters, what)

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
        asked = {
            Feature.PRIORITY: self.priority != 0,
            Feature.EXPIRY: self.expires_in is not None,
            Feature.UNIQUE: self.unique is not None,
            Feature.ORDER: self.order_by is not None,
            Feature.LIMITS: bool(self.limits),
            Feature.FAIRNESS: self.fair_by is not None,
        }
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


def warn_of_templates(task: Task[..., Any], changes: Changes) -> None:
    """Warn of literal keys that read as templates, of each once: all jobs would share the one key, braces and all."""
    for option, key in changes.literals():
        name = limits.field_in(key, task.arguments.parameters)
        if name is None or key in task.told or len(task.told) >= MOST_TOLD:
            continue
        task.told.add(key)
        log.warning(
            "task %s: using(%s=...) got the key %r, and strings in using() are literal: it is not filled in with the argument %r, "
            "and so the same for all jobs; give the finished key, such as an f-string, or a template or callable to @app.task(%s=...)",
            task.name, option, key, name, option, extra={"task": task.name},
        )  # fmt: skip


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
