"""Runs jobs.

                 ┌────────────────────────── Worker ──────────────────────────┐
 session ─fetch──▶ Fetcher ──Lease──▶ Executor ──Outcome──▶ Settler ──settle──▶ session
   ▲  ▲          │                  running: {attempts}       (batches)        │
   │  └─beat─────┤ Keeper (own thread)  lost lease → stop the attempts         │
   └──maintain───┤ Maintainer (promotes, rescues, ticks, forgets)              │
                 └─────────────────────────────────────────────────────────────┘

One duty a file; the order of `async with` is the order of shutdown. The executor never touches the broker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

from offload.broker import Broker, Session
from offload.errors import BadDeclaration, BrokerError, BrokerUnusable, SessionLost
from offload.job import Beat, WorkerInfo
from offload.schedule import next_tick
from offload.worker.children import Children
from offload.worker.executor import Executor
from offload.worker.fetcher import Fetcher
from offload.worker.greeting import greeting
from offload.worker.keeper import Keeper
from offload.worker.maintainer import Maintainer
from offload.worker.memory import resident_bytes
from offload.worker.news import News, title
from offload.worker.patience import Outage, Patience
from offload.worker.queues import Queues
from offload.worker.settler import Settler
from offload.worker.signals import told_to_stop
from offload.worker.source import Source, refuse_while_loading, source_of

if TYPE_CHECKING:
    from offload.app import Offload

log = logging.getLogger("offload.worker")

Ended: TypeAlias = Literal["stopped", "idle", "recycle"]
"""Why a worker's run ended: it was told to, `burst` found nothing left, or it is time for a fresh process."""

LOOK_AT_LIMITS_EVERY = 0.5
DEFAULT_THREADS = 16
OPENING = "opening a session"


class Serving(NamedTuple):
    """The parts at work under one session."""

    fetcher: Fetcher
    settler: Settler
    maintainer: Maintainer


class Worker:
    """Runs the jobs of one app in this process.

    `queues` in strict order (`["vip", "default"]` or `"vip,default"`), by weight (`"vip:3,default:1"`), or None for all. `concurrency`
    bounds the jobs that run at once, of which at most `threads` in threads and `processes` in child processes (as many as there
    are CPUs unless said). `grace` is the seconds that running jobs have to end once it is told to stop. After `max_jobs` attempts or
    above `max_memory` bytes of resident memory the run ends with "recycle", nothing dropped.

    `await run()` works until `stop()`; `async with Worker(app):` works beside other code, for instance in a web process;
    `await drain()` runs what is due and returns.
    """

    def __init__(
        self,
        app: Offload,
        queues: Sequence[str] | str | None = None,
        concurrency: int = 100,
        *,
        threads: int = DEFAULT_THREADS,
        processes: int | None = None,
        grace: float = 30.0,
        burst: bool = False,
        max_jobs: int | None = None,
        max_memory: int | None = None,
        source: Source | None = None,
    ) -> None:
        for name, number in (("concurrency", concurrency), ("threads", threads), ("processes", 1 if processes is None else processes)):
            if number < 1:
                raise BadDeclaration(f"a worker's {name} must be at least 1, not {number}")
        self.app = app
        self.name = f"{platform.node()}:{os.getpid()}"
        self._queues = Queues.parse(queues)
        self._concurrency = concurrency
        self._threads = min(threads, concurrency)
        self._processes = processes or os.cpu_count() or 1
        self._grace = grace
        self._burst = burst
        self._max_jobs = max_jobs
        self._max_memory = max_memory
        self._source = source
        self._news = News(app)
        self._outage = Outage()
        self._greeted = False
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._told_to_leave = asyncio.Event()
        self._recycle = False
        self._task: asyncio.Task[Ended] | None = None
        self._opened: asyncio.Future[None] | None = None

    # -- doors -------------------------------------------------------------------------------------------------------------

    async def run(self) -> Ended:
        """Work until told to stop, by `stop` or, where the program has no handler for it, by SIGTERM.

        Raises what the app's lifespan raises, and BrokerUnusable for a broker that will never work.
        """
        with told_to_stop(self.stop):
            return await self._work()

    async def _work(self) -> Ended:
        """What is opened first is closed last."""
        self._news = News(self.app)
        async with self._executor() as executor:
            while not self._stopping.is_set():
                if await self._one_session(executor):
                    break
        if self._recycle and not self._told_to_leave.is_set():
            return "recycle"
        return "stopped" if self._stopping.is_set() else "idle"

    def stop(self) -> None:
        """Stop fetching, let running jobs end for `grace` seconds, release the rest, leave. A second call releases at once."""
        if self._told_to_leave.is_set():
            self._hurry.set()
        self._told_to_leave.set()
        self._stopping.set()

    async def __aenter__(self) -> Self:
        """Work in the background of this event loop; returns once the worker has its session."""
        self._opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._work(), name="offload-worker")
        try:
            await asyncio.wait({self._task, self._opened}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._task.cancel()
            raise
        if self._task.done():
            self._task.result()
        self._task.add_done_callback(self._tell_end)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop as `stop` does, and wait for the end."""
        self.stop()
        if self._task is not None:
            await self._task

    def _tell_end(self, task: asyncio.Task[Ended]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("worker %s has failed; the rest of this program runs on without it", self.name, exc_info=error)

    async def drain(self) -> int:
        """Run all that is due, here, until nothing is ready. Returns how many attempts ran."""
        self._news = News(self.app)
        async with self._executor() as executor, self._serving(executor, watched=False) as serving:
            while True:
                await serving.maintainer.catch_up()
                limit, room = executor.demand()
                if await serving.fetcher.fetch(limit, room) == 0 and not executor.running:
                    await serving.settler.flushed.wait()
                    await serving.maintainer.catch_up()
                    if await serving.fetcher.fetch(*executor.demand()) == 0:
                        return executor.ended
                await executor.idle()
                await serving.settler.flushed.wait()

    # -- parts -------------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _executor(self) -> AsyncGenerator[Executor]:
        refuse_while_loading()
        source = self._source or source_of(self.app)
        isolated = [task.name for task in self.app.tasks.values() if task.isolation == "process"]
        if source is None and isolated:
            raise BadDeclaration(
                f"{isolated[0]!r} runs in a child process, which must import the app: make the app an attribute of a module"
            )
        children = Children(self._processes if source is not None else 0, source)
        async with self.app.opened_lifespan() as state:
            executor = Executor(self.app, self._concurrency, self._threads, children, self._news, state)
            try:
                yield executor
            finally:
                await executor.close()

    async def _one_session(self, executor: Executor) -> bool:
        """Work under one session. True when there is nothing more to do, False when the session was lost."""
        began = False
        try:
            async with self._serving(executor, watched=True) as serving:
                began = True
                await serving.fetcher.run(self._stopping, burst=self._burst)
                if self._recycle:  # nobody waits for this worker to leave, so jobs longer than the grace may end too
                    await executor.come_to_rest(self._told_to_leave)
                await executor.finish(self._grace, self._hurry)
        except SessionLost:
            log.error("worker %s lost its session: it stops what it runs, which others run again, and opens a new one", self.name)
            return False
        except BrokerUnusable:
            raise
        except BrokerError as error:
            if self._opened is not None and not self._opened.done():
                raise  # it never had a session: whoever starts it inside a program is told
            if not self._stopping.is_set():
                log.error("worker %s could not close its session (%s); it opens a new one", self.name, error)
                return False
            left = "others rescue what it still held" if began else "it had no session, and so no job"
            log.error("worker %s leaves while the broker is away (%s); %s", self.name, error, left)
        return True

    @asynccontextmanager
    async def _serving(self, executor: Executor, *, watched: bool) -> AsyncGenerator[Serving]:
        async with AsyncExitStack() as stack:
            broker, session = await self._session(stack)
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
            if watched and not self._greeted:
                self._greet()
            guard = _Guard()
            maintainer = Maintainer(broker.clock, session, self._news, self._outage)

            def told(beat: Beat) -> None:
                self._told(beat, executor, maintainer, settler, guard)

            keeper = Keeper(session, self.app.heartbeat, told, executor.blocking, self._outage)
            settler = Settler(broker, session, self._news, keeper.report, keeper.lives, self._hurry, self._outage)
            await stack.enter_async_context(keeper)
            await stack.enter_async_context(settler)
            guard.watch(settler.task)
            if watched:
                await stack.enter_async_context(maintainer)
                guard.watch(maintainer.task)
                limits = asyncio.create_task(self._watch_limits(executor), name="offload-limits")
                stack.callback(limits.cancel)
                guard.watch(limits)
            fetcher = Fetcher(session, self._queues, executor, settler, keeper, maintainer, self._outage)
            with guard:
                try:
                    yield Serving(fetcher, settler, maintainer)
                except BaseException as error:
                    if guard.lost or isinstance(error, SessionLost):
                        settler.void()
                        executor.abandon()
                    else:  # nothing may run on that others may be given as soon as the session is closed
                        await executor.finish(0, self._hurry)
                    raise

    async def _session(self, stack: AsyncExitStack) -> tuple[Broker, Session]:
        """Open a session, trying until the broker answers. Returns the broker with it."""
        patience = Patience(OPENING, self._outage)
        self._outage.left_to(OPENING)
        while True:
            try:
                broker = await self.app.client()
                session = await stack.enter_async_context(broker.session(self._info(broker.clock.now())))
            except BrokerError as error:
                if self._opened is not None and not self._opened.done():
                    raise  # who starts a worker inside a program is told at once
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience.failed(error)):
                        await self._stopping.wait()
                if self._stopping.is_set():
                    raise
                continue
            patience.succeeded()
            return broker, session

    def _greet(self) -> None:
        """Say who works for what, once: a session shows that the broker is there and lets it work."""
        self._greeted = True
        source = self._source or source_of(self.app)
        app = "an app" if source is None else f"{source.module}:{source.attribute}"
        log.info("%s", greeting(self.name, str(self._queues), app, self.app.producer.clients.place, self.app.tasks))

    def _told(self, beat: Beat, executor: Executor, maintainer: Maintainer, settler: Settler, guard: _Guard) -> None:
        """What a beat brought down."""
        if not beat.alive:
            settler.void()
            executor.abandon()
            guard.end(SessionLost("the session was found dead by others"))
        if beat.stop:
            executor.cancel(beat.stop)
        if beat.rescue:
            maintainer.poke()

    def _info(self, now: datetime) -> WorkerInfo:
        return WorkerInfo(
            name=self.name,
            host=platform.node(),
            pid=os.getpid(),
            queues=self._queues.names,
            tasks={task.name: task.isolation for task in self.app.tasks.values()},
            schedules=tuple((schedule, next_tick(schedule, now)) for schedule in self.app.declared.values()),
            limits=tuple(rule for task in self.app.tasks.values() for rule in task.rules()),
            concurrency=self._concurrency,
            version=version("offload"),
            session_timeout=self.app.session_timeout,
            heartbeat=self.app.heartbeat,
        )

    async def _watch_limits(self, executor: Executor) -> None:
        """Ask for a fresh process when this one has run enough, grown too large, or has a thread that will not end."""
        while True:
            reason = None
            if self._max_jobs is not None and executor.ended >= self._max_jobs:
                reason = f"it has run {executor.ended} jobs"
            elif self._max_memory is not None and (executor.ended or executor.busy) and (used := resident_bytes()) > self._max_memory:
                reason = f"it uses {used / 2**20:.0f} MiB"
            elif executor.stuck and self._opened is None:  # inside another program there is no process to replace: it works on
                reason = f"a thread will not end: {', '.join(title(attempt) for attempt in executor.stuck)}"
            if reason is not None and not self._recycle:
                log.warning("worker %s is due to be recycled: %s", self.name, reason)
                self._recycle = True
                self._stopping.set()
            await asyncio.sleep(LOOK_AT_LIMITS_EVERY)


class _Guard:
    """Raises in the block what ends it from outside: the loss of the session, which the keeper learns of, or the failure of a part."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._error: BaseException | None = None
        self._inside = False
        self._cancelling = 0

    @property
    def lost(self) -> bool:
        """Whether the session is gone."""
        return isinstance(self._error, SessionLost)

    def end(self, error: BaseException) -> None:
        """End the block with `error`; the first counts."""
        if self._error is not None:
            return
        self._error = error
        if self._inside and self._task is not None:
            self._task.cancel()

    def watch(self, part: asyncio.Task[None] | None) -> None:
        """End the block with the error of `part`, should it fail."""
        if part is not None:
            part.add_done_callback(self._part_ended)

    def _part_ended(self, part: asyncio.Task[None]) -> None:
        if not part.cancelled() and (error := part.exception()) is not None:
            self.end(error)

    def __enter__(self) -> None:
        self._inside = True
        self._cancelling = 0 if self._task is None else self._task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._inside = False
        if self._error is None:
            return
        others_cancel = self._task is not None and kind is asyncio.CancelledError and self._task.uncancel() > self._cancelling
        if not others_cancel:
            raise self._error
