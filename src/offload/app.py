"""The app: where a program's tasks, schedules and settings come together with the broker that holds its jobs."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeAlias, TypeVar, cast, overload

from offload.batching import Batch
from offload.broker import Broker, Store
from offload.clients import Clients
from offload.clock import Clock, SystemClock
from offload.codec import HoldsOutputs, encode_plain, without_outputs
from offload.composing import Run
from offload.control import Control
from offload.drafts import thousands
from offload.duration import Duration, seconds
from offload.errors import BadDeclaration, BadPayload
from offload.events import Event, EventName, F
from offload.handle import Handle
from offload.job import KEEP_SUCCEEDED, Draft, Isolation, Job, OnDead, Schedule
from offload.limits import Key, Limits, Unique
from offload.options import Changes, short
from offload.portal import portal, refuse_inside_loop, sync
from offload.producer import Producer
from offload.retry import RetryPolicy
from offload.scheduling import Scheduling
from offload.task import AsyncTask, Task, called, task_of, warn_of_templates

P = ParamSpec("P")
R = TypeVar("R")

Middleware: TypeAlias = Callable[[Job, Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""`async def m(job, call_next)`: what it returns is the result, what it raises is the failure."""
M = TypeVar("M", bound=Middleware)
Lifespan: TypeAlias = "Callable[[Offload], AbstractAsyncContextManager[Any] | AsyncIterator[Any]]"

DEFAULT_URL = "sqlite:///offload.db"


class TaskDecorator(Protocol):
    """What `@app.task(...)` with options is."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class Offload(Control, Scheduling):
    """An app. `Offload()` uses the environment variable OFFLOAD_URL, else the file offload.db in the working directory.

    `url` names the broker: `sqlite:///offload.db`, `postgresql://host/database`, `redis://host:6379/0`, `memory://`. `clock` is for
    tests. `lifespan(app)` opens what tasks share, in each worker and each of its child processes: an async context manager, or an
    async generator function that yields once; its value is `current.state`. A worker whose beats have not been seen for
    `session_timeout` seconds is held for dead; it beats every `heartbeat` seconds. Raises BadDeclaration for a URL that cannot work,
    BrokerNotInstalled for one whose engine is not installed. Connects only when first used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        clock: Clock | None = None,
        lifespan: Lifespan | None = None,
        session_timeout: float = 15.0,
        heartbeat: float = 3.0,
    ) -> None:
        if url is not None and not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"Offload takes the URL of a broker, such as {DEFAULT_URL!r}, not {url!r}")
        session_timeout, heartbeat = seconds(session_timeout, "session_timeout"), seconds(heartbeat, "heartbeat")
        if not 0 < heartbeat <= session_timeout / 2:
            raise BadDeclaration(f"heartbeat ({heartbeat!r} s) must be above 0 and at most half of session_timeout ({session_timeout!r} s)")
        self.producer = Producer(Clients(_url(url), clock or SystemClock()))
        self.session_timeout = session_timeout
        self.heartbeat = heartbeat
        self.tasks: dict[str, Task[..., Any]] = {}
        self.declared: dict[str, Schedule] = {}
        self.middlewares: list[Middleware] = []
        self._lifespan = lifespan
        portal.at_close(self.aclose)

    @property
    def url(self) -> str:
        """The broker's URL."""
        return self.producer.clients.url

    @property
    def clock(self) -> Clock:
        """The clock that the app and its broker go by."""
        return self.producer.clients.clock

    @property
    def broker(self) -> Broker:
        """The broker, not open; `client()` gives one to use."""
        return self.producer.clients.broker

    def __repr__(self) -> str:
        return f"<Offload with {len(self.tasks)} tasks on {self.producer.clients.kind.__name__}>"

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        retry: RetryPolicy | int | bool | None = True,
        timeout: Duration | None = 3600.0,
        isolation: Isolation | None = None,
        unique: Unique | Key | None = None,
        order_by: Key | None = None,
        on_dead: OnDead = "continue",
        limits: Limits = (),
        fair_by: Key | None = None,
        expires_in: Duration | None = None,
        keep: Duration = KEEP_SUCCEEDED,
        log: Sequence[str] = (),
        mask: Sequence[str] = (),
    ) -> TaskDecorator: ...
    def task(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Make a function a task: `@app.task`, or `@app.task(...)` with options. The function stays directly callable.

        `name`: module.qualname unless said. `queue`: the line its jobs wait in. `priority`: -100 to 100, higher runs first. `retry`: a
        `Retry`, a number of retries, False for none, or a callable `(attempt, error) -> seconds | None`. `timeout`: seconds for
        one attempt, None for no limit. `isolation`: "async" for an async def and "thread" for a def unless said, or "process".
        `unique`: a `Unique`, or its key alone. `order_by`: a key whose jobs run one after the other, in the order in which
        they were first due, retries included; `on_dead`: "continue", or "hold" to stop the key at a dead job until it is retried or
        deleted. `limits`: a list of `Concurrency` and `Rate`. `fair_by`: a key that takes turns with others in its queue. Each key is a
        template over the arguments, or a callable that takes those of them that it names.
        `expires_in`: seconds from the enqueue within which it must start. `keep`: seconds that record and result are kept once
        succeeded, 0 for not at all. `log`, `mask`: arguments shown on each log line, or never shown. Raises BadDeclaration for what
        cannot work, Unsupported for what the broker cannot keep.
        """
        caller: str = sys._getframe(1).f_globals.get("__name__", "")  # pyright: ignore[reportPrivateUsage] - as logging does

        def declare(function: Callable[..., Any]) -> Task[..., Any]:
            task = self._register(task_of(function, options, self.producer))
            task.declared_in = caller
            return task

        return declare if function is None else declare(function)

    def _register(self, task: Task[..., Any]) -> Task[..., Any]:
        known = self.tasks.get(task.name)
        if known is not None and not _typed_again(known, task):
            raise BadDeclaration(f"two tasks are named {task.name!r}, {_place(known)} and {_place(task)}: give one another name")
        self.tasks[task.name] = task
        self.producer.signatures[task.name] = task.arguments
        return task

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
    ) -> ByName:
        """Options for jobs enqueued by the name of their task; as `Task.using`."""
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
        return ByName(self, changes)

    async def aenqueue(self, name: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Enqueue a job by the name of its task, whose code need not be importable here.

        A task registered here checks the arguments and gives its options. Of others nothing is known: arguments are taken by
        keyword only, unchecked, and the job goes to the queue "default" unless `app.using(queue=...)` says otherwise.
        """
        return await ByName(self, Changes()).aenqueue(name, *args, **kwargs)

    def enqueue(self, name: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Enqueue a job by the name of its task, whose code need not be importable here.

        As `aenqueue`, for sync code. Raises LoopRunning on a running event loop.
        """
        return ByName(self, Changes()).enqueue(name, *args, **kwargs)

    async def aenqueue_many(self, drafts: Iterable[Draft[R]], *, connection: Any = None) -> list[Handle[R]]:
        """Enqueue what `task.job(...)` gave, in order; returns a handle each.

        Each thousand is one atomic operation: all of it is stored or none. When one fails, the thousands before it stay
        enqueued; on a `connection` all are part of the transaction that is open there. Raises UniqueConflict, IdConflict, Unsupported,
        BrokerError.
        """
        ids = [id for chunk in thousands(drafts, "enqueue_many") for id in await self.producer.enqueue(chunk, connection)]
        return [Handle(id, self.producer) for id in ids]

    def enqueue_many(self, drafts: Iterable[Draft[R]], *, connection: Any = None) -> list[Handle[R]]:
        """Enqueue what `task.job(...)` gave, in order, a thousand at a time; returns a handle each.

        As `aenqueue_many`, for sync code.
        """
        if connection is None:
            refuse_inside_loop("enqueue_many")
        enqueue = self.producer.enqueue_blocking
        ids = [id for chunk in thousands(drafts, "enqueue_many") for id in enqueue("enqueue_many", lambda chunk=chunk: chunk, connection)]
        return [Handle(id, self.producer) for id in ids]

    def batch(
        self,
        name: str = "",
        *,
        on_success: Draft[Any] | None = None,
        on_failure: Draft[Any] | None = None,
        on_complete: Draft[Any] | None = None,
        id: str | None = None,
    ) -> Batch:
        """A batch: many jobs counted together. Use it in a `with` or `async with` block, and add jobs there.

        `on_success` runs when all its jobs have succeeded, `on_failure` at the first that is DEAD or EXPIRED, `on_complete` when all have
        ended; each at most once, and once when it is due. With `id` it is found again, as by another process that adds to it, and opened
        once only. Raises BadDeclaration, Unsupported.
        """
        return Batch(self.producer, name, id, {"success": on_success, "failure": on_failure, "complete": on_complete})

    def workflow(self, id: str) -> Run:
        """A workflow that was enqueued, by its id, whether or not there is one: to wait for it, look at it or cancel it."""
        return Run(id, self.producer)

    def handle(self, id: str) -> Handle[Any]:
        """The handle of a job by its id, whether or not there is such a job."""
        return Handle(id, self.producer)

    def middleware(self, function: M) -> M:
        """Wrap every attempt: `async def m(job, call_next)` awaits `call_next()` for the task's result. The first declared is outermost."""
        if not inspect.iscoroutinefunction(function):
            raise BadDeclaration(f"@app.middleware goes on an `async def m(job, call_next)`, not on {function!r}")
        self.middlewares.append(function)
        return function

    def on(self, name: EventName) -> Callable[[F], F]:
        """Call the function below, plain or async, with each `Event` of that name in this process. What it raises is logged.

        "enqueued" is told where the job is enqueued, all others in the worker. Raises BadDeclaration for an unknown name.
        """

        def observe(observer: F) -> F:
            self.producer.observers.on(name, observer)
            return observer

        return observe

    def observes(self, name: EventName) -> bool:
        """Whether anyone asked to be told of events of that name. For workers, which make no others."""
        return self.producer.observers.observes(name)

    async def emit(self, events: Sequence[Event]) -> None:
        """Tell the observers, as workers do. Raises nothing that they raise."""
        await self.producer.observers.emit(events)

    def opened_lifespan(self) -> AbstractAsyncContextManager[Any]:
        """What tasks share, to be opened with `async with`, as workers do; its value is `current.state`. None without a `lifespan=`."""
        if self._lifespan is None:
            return nullcontext()
        opened = self._lifespan(self)
        if isinstance(opened, AbstractAsyncContextManager):
            return opened
        if not inspect.isasyncgen(opened):
            raise BadDeclaration(f"lifespan= must give an async context manager or an async generator, not {opened!r}")
        return asynccontextmanager(lambda: cast(AsyncGenerator[Any, None], opened))()

    async def client(self) -> Broker:
        """The broker's client for the running event loop, open; for what the app itself has no call. Raises BrokerError."""
        return await self.producer.clients.client()

    async def store(self) -> Store:
        """The same client, typed as the `Store` that it is. Raises Unsupported when the broker only carries jobs."""
        return await self.producer.clients.store()

    async def amigrate(self) -> tuple[int, int]:
        """Make the broker's tables, or bring them to this version; as `offload migrate`. Returns the versions (from, to)."""
        return await self.producer.clients.migrate()

    migrate = sync(amigrate)

    async def aclose(self) -> None:
        """Let go of connections. The app can still be used: it connects again."""
        await self.producer.clients.close()

    close = sync(aclose)

    async def __aenter__(self) -> Self:
        await self.client()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def testing(self, url: str = "memory://", clock: Clock | None = None) -> Testing:
        """Use another broker, and another clock, for the time of a `with` or `async with` block: for tests."""
        return Testing(self.producer, url, clock or SystemClock())


class ByName:
    """Enqueues by the name of the task. What `app.using(...)` gives."""

    def __init__(self, app: Offload, changes: Changes) -> None:
        self._app = app
        self._changes = changes

    def job(self, name: str, /, *args: Any, **kwargs: Any) -> Draft[Any]:
        """A job of the task of that name that is not enqueued yet. Raises BadPayload."""
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - the mistake this is for
            instead = f"; use {called(name)}.enqueue(...)" if isinstance(name, Task) else ""
            raise BadDeclaration(f"app.enqueue takes the name of a task, not {name!r}{instead}")
        task = self._app.tasks.get(name)
        if task is not None:
            warn_of_templates(task, self._changes)
            return self._changes.applied(task.job(*args, **kwargs), task.unique)
        if args:
            raise BadPayload(f"task {name!r} is not registered here, so the names of its parameters are unknown: pass keyword arguments")
        short(name, "app.enqueue(...): the name of the task")
        try:
            payload, outputs = encode_plain(kwargs, f"task {name}"), ()
        except HoldsOutputs:
            payload, outputs = without_outputs(kwargs, f"task {name}")
        return self._changes.applied(Draft(task=name, payload=payload, outputs=outputs, producer=self._app.producer), None)

    async def aenqueue(self, name: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Enqueue a job of the task of that name; as `Offload.enqueue`."""
        [id] = await self._app.producer.enqueue([self.job(name, *args, **kwargs)], self._changes.connection)
        return Handle(id, self._app.producer)

    def enqueue(self, name: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Enqueue a job of the task of that name; as `Offload.enqueue`."""
        [id] = self._app.producer.enqueue_blocking("enqueue", lambda: [self.job(name, *args, **kwargs)], self._changes.connection)
        return Handle(id, self._app.producer)


class Testing:
    """A stretch of time in which an app uses another broker."""

    __test__ = False  # pytest collects classes of this name otherwise

    def __init__(self, producer: Producer, url: str, clock: Clock) -> None:
        self._producer = producer
        self._clients = Clients(url, clock)
        self._before = producer.clients
        self._closing: asyncio.Task[None] | None = None

    def __enter__(self) -> Clients:
        self._before, self._producer.clients = self._producer.clients, self._clients
        return self._clients

    def __exit__(self, *exc: object) -> None:
        self._producer.clients = self._before
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            portal.run(self._clients.close)
        else:
            self._closing = loop.create_task(self._clients.close())

    async def __aenter__(self) -> Clients:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self._producer.clients = self._before
        await self._clients.close()


def _url(given: str | None) -> str:
    """The URL to use. Raises BadDeclaration for an empty one: where it was meant to come from another variable, that is not set."""
    if given is not None:
        url, said = given, "Offload(url='')"
    else:
        url, said = os.environ.get("OFFLOAD_URL", DEFAULT_URL), "OFFLOAD_URL is set, but empty: it"
    if not url.strip():
        raise BadDeclaration(f"{said} names no broker; give its URL, such as postgresql://host/database, or leave it out for {DEFAULT_URL}")
    return url


def _typed_again(known: Task[..., Any], task: Task[..., Any]) -> bool:
    """In a REPL or notebook a function is often defined once more; there the new one takes its place."""
    return known.function.__module__ == task.function.__module__ == "__main__" and task.name.startswith("__main__.")


def _place(task: Task[..., Any]) -> str:
    code = getattr(inspect.unwrap(task.function), "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{task.function.__module__}.{getattr(task.function, '__qualname__', repr(task.function))}{where}"
