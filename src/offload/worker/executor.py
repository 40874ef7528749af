"""Runs attempts and says how each ended. Never touches the broker: outcomes go to the settler."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, assert_never

from offload.current import attempt_var
from offload.errors import BadPayload
from offload.job import Cancelled, Dead, Done, Failure, Isolation, Lease, Outcome, RateLimit, Release
from offload.limits import Rate
from offload.worker.attempt import LocalAttempt, Sink, StopReason
from offload.worker.children import ChildDied, Children
from offload.worker.elsewhere import EndedElsewhere, FailedInChild, seen_from_outside
from offload.worker.lanes import Lane, demand
from offload.worker.news import News, fields, title
from offload.worker.outcome import after, failure_of
from offload.worker.stacks import let_go, stack_of
from offload.worker.threads import Threads

if TYPE_CHECKING:
    from offload.app import Offload

log = logging.getLogger("offload.worker")

NUDGE_EVERY: dict[Isolation, float] = {"async": 10.0, "thread": 1.0, "process": 1.0}
"""Seconds between two tries to stop an attempt that does not end; a coroutine may need some for its own cleaning up."""
CLEANUP = 2.0
"""Seconds that stopped attempts have for cleaning up before a leaving worker releases them."""
STUCK_AFTER = 5.0
"""Seconds after which a thread that was told to stop counts as one that will not."""
STARTING = 60.0
"""Seconds that a child process may take to start, on top of the time limit."""
HAND_BACK_AFTER = 0.2
"""Seconds without a start in a lane after which what waits in it is handed back: it was claimed for the pace of shorter jobs."""
CRASHES_BEFORE_ISOLATION = 2


class Executor:
    """The attempts of one worker process, in its three lanes."""

    def __init__(self, app: Offload, concurrency: int, threads: int, children: Children, news: News, state: Any) -> None:
        self._app = app
        self._news = news
        self._loop = asyncio.get_running_loop()
        self._state = state
        self._concurrency = concurrency
        self._children = children
        self._threads = Threads(threads, self._run_in_thread, self._stopped, self._threads_ended)
        self.lanes: dict[Isolation, Lane] = {"async": Lane(concurrency), "thread": Lane(threads), "process": Lane(children.size)}
        for task in app.tasks.values():
            self.lanes[task.isolation].paced |= any(isinstance(limit, Rate) for limit in task.limits)
        self._waiting: dict[Isolation, deque[LocalAttempt]] = {"async": deque(), "thread": deque(), "process": deque()}
        self.running: set[LocalAttempt] = set()
        self.stuck: set[LocalAttempt] = set()
        self.freed = asyncio.Event()
        """Set when an attempt ended, so that there is room for more."""
        self.ended = 0
        """Attempts that ended, for recycling and for `drain`."""
        self._pumping = False
        self._stalled: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._middlewares = tuple(app.middlewares)
        self._turns: deque[Isolation] = deque(self.lanes)
        self._telling: set[asyncio.Task[None]] = set()

    # -- in ----------------------------------------------------------------------------------------------------------------

    def demand(self) -> tuple[int, dict[Isolation, int]]:
        """How many jobs to claim, in all and of each isolation."""
        now = monotonic()
        for lane in self.lanes.values():
            lane.note_pace(now)
        return demand(self.lanes, self._concurrency)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits for a slot."""
        return bool(self.running) or any(self._waiting.values())

    @property
    def held(self) -> list[Lease]:
        """The leases of all attempts that have not ended."""
        return [attempt.lease for attempts in (self.running, self.stuck, *self._waiting.values()) for attempt in attempts]

    def start(self, leases: Sequence[Lease], sink: Sink) -> Mapping[Isolation, int]:
        """Run leases, each as soon as there is a slot for it. Returns how many there are of each isolation."""
        counts: dict[Isolation, int] = {"async": 0, "thread": 0, "process": 0}
        for lease in leases:
            task = self._app.tasks[lease.job.task]
            isolation: Isolation = "process" if lease.crashes >= CRASHES_BEFORE_ISOLATION else task.isolation
            self._waiting[isolation].append(LocalAttempt(lease, task, isolation, sink, self._loop, self._state))
            self.lanes[isolation].waiting += 1
            counts[isolation] += 1
            if any(isinstance(limit, RateLimit) for limit in lease.job.limits):
                self.lanes[isolation].paced = True
        if leases:
            self._pump()
        return counts

    def _pump(self) -> None:
        """Start what waits, where there is a slot."""
        self._pumping = False
        slots = self._concurrency - len(self.running)
        self._turns.rotate()  # each lane is first in turn, or a flood in one would take every slot that comes free
        for isolation in self._turns:
            waiting, lane = self._waiting[isolation], self.lanes[isolation]
            if not waiting or slots <= 0:
                continue
            count = min(len(waiting), lane.free, slots)
            if count > 0:
                slots -= count
                lane.running += count
                lane.waiting -= count
                self._launch(isolation, [waiting.popleft() for _ in range(count)])
        if self._stalled is None and any(self._waiting.values()):
            self._stalled = self._loop.call_later(HAND_BACK_AFTER, self._hand_back)

    def _hand_back(self) -> None:
        """Hand back what was claimed ahead in lanes where nothing starts: other workers may have room for it."""
        self._stalled = None
        now = monotonic()
        for isolation, lane in self.lanes.items():
            if now - lane.moved >= HAND_BACK_AFTER:
                lane.forget_pace()
                self._return_waiting("claimed ahead, but nothing starts here just now", isolation)
        self._pump()

    def _launch(self, isolation: Isolation, attempts: list[LocalAttempt]) -> None:
        now = self.lanes[isolation].moved = monotonic()
        for attempt in attempts:
            attempt.started = now
            if (limit := _limit(attempt)) is not None:
                attempt.deadline = now + limit + (STARTING if isolation == "process" else 0.0)
                self._wake_at(attempt.deadline)
        self.running.update(attempts)
        if self._news.tells_starts:
            telling = self._loop.create_task(self._news.started(attempts))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        if isolation == "thread" and not self._middlewares:
            self._threads.submit(attempts)
            return
        create = self._loop.create_task
        for attempt in attempts:
            attempt.coroutine = create(self._run(attempt))

    # -- run ---------------------------------------------------------------------------------------------------------------

    async def _run(self, attempt: LocalAttempt) -> None:
        attempt_var.set(attempt)
        try:
            if self._middlewares:
                outcome = await self._through_middlewares(attempt)
            elif attempt.isolation == "process":
                outcome = await self._children.run(attempt, self._begun)
            else:
                outcome = await self._plain(attempt)
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            attempt.error = error
            outcome = self._stopped(attempt, error)
        else:
            if attempt.stop_reason is not None:
                outcome = self._late(attempt, outcome)
        self._end(attempt, outcome)

    async def _plain(self, attempt: LocalAttempt) -> Outcome:
        """An async task without middleware: the hot path."""
        arguments = attempt.task.arguments
        try:
            args, kwargs = arguments.decode(attempt.job.payload)
        except BadPayload as error:
            return Dead("payload", self._failure(error, attempt))
        value = await attempt.task.function(*args, **kwargs)
        return Done() if value is None else self._done(value, attempt)

    def _run_in_thread(self, attempt: LocalAttempt) -> Outcome:
        """A sync task, in one of the threads and in a context of its own."""
        attempt_var.set(attempt)
        try:
            try:
                args, kwargs = attempt.task.arguments.decode(attempt.job.payload)
            except BadPayload as error:
                return Dead("payload", self._failure(error, attempt))
            value = attempt.task.function(*args, **kwargs)
            outcome = Done() if value is None else self._done(value, attempt)
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            attempt.error = error
            return self._stopped(attempt, error)
        finally:
            if attempt.completion is not None and attempt.block is not None:
                attempt.block.close()
        return outcome if attempt.stop_reason is None else self._late(attempt, outcome)

    async def _through_middlewares(self, attempt: LocalAttempt) -> Outcome:
        """Wrap the attempt in the app's middlewares, the first declared outermost."""
        elsewhere: Outcome | None = None

        async def innermost() -> Any:
            nonlocal elsewhere
            if attempt.completed is None:  # a middleware may call again what has failed
                attempt.additions, attempt.added, attempt.named = None, (), None
            if attempt.isolation == "async":
                elsewhere = None
                try:
                    args, kwargs = attempt.task.arguments.decode(attempt.job.payload)
                except BadPayload as error:
                    raise EndedElsewhere(Dead("payload", self._failure(error, attempt))) from None
                return await attempt.task.function(*args, **kwargs)
            elsewhere = await (self._children.run(attempt, self._begun) if attempt.isolation == "process" else self._in_thread(attempt))
            elsewhere = attempt.completed or elsewhere
            if isinstance(elsewhere, Done):
                return None if elsewhere.result is None else attempt.task.arguments.decode_result(elsewhere.result)
            if attempt.error is not None and attempt.stop_reason is None:
                raise attempt.error  # of a thread: middlewares see what the task raised
            raise seen_from_outside(elsewhere)

        call: Callable[[], Awaitable[Any]] = innermost
        for middleware in reversed(self._middlewares):
            call = partial(middleware, attempt.job, call)
        try:
            value = await call()
        except (EndedElsewhere, FailedInChild) as ended:
            return ended.outcome
        return Done() if value is None else self._done(value, attempt)

    async def _in_thread(self, attempt: LocalAttempt) -> Outcome:
        attempt.waiter = self._loop.create_future()
        self._threads.submit([attempt])
        return await asyncio.shield(attempt.waiter)

    def _done(self, value: Any, attempt: LocalAttempt) -> Outcome:
        try:
            return Done(attempt.task.arguments.encode_result(value))
        except BadPayload as error:
            return Dead("result", self._failure(error, attempt))

    def _failure(self, error: BaseException, attempt: LocalAttempt) -> Failure:
        return failure_of(error, attempt.number, self._app.clock.now())

    # -- ends --------------------------------------------------------------------------------------------------------------

    def _stopped(self, attempt: LocalAttempt, error: BaseException) -> Outcome:
        """The outcome of an attempt that raised `error`, by itself or because it was told to stop."""
        now = self._app.clock.now()
        match attempt.stop_reason:
            case "cancel":
                return Cancelled()
            case "lost" | "shutdown":
                return Release()
            case "timeout":
                error = TimeoutError(f"timed out after {_limit(attempt):g} s").with_traceback(error.__traceback__)
            case None if isinstance(error, ChildDied) and attempt.lease.crashes >= CRASHES_BEFORE_ISOLATION:
                return Dead("crashed", self._failure(error, attempt))
            case None:
                pass
            case _:
                assert_never(attempt.stop_reason)
        return after(error, attempt.task.retry, attempt.lease, now, random.random())

    def _late(self, attempt: LocalAttempt, outcome: Outcome) -> Outcome:
        """The outcome of an attempt that came to its own end although it had been told to stop."""
        return outcome if attempt.stop_reason == "shutdown" else self._stopped(attempt, asyncio.CancelledError())

    def _end(self, attempt: LocalAttempt, outcome: Outcome) -> None:
        self.running.discard(attempt)
        self.stuck.discard(attempt)
        if attempt.error is not None:
            let_go(attempt.error)
        lane = self.lanes[attempt.isolation]
        if not attempt.stuck:
            lane.running -= 1
        if not attempt.ended:
            attempt.ended = True
            attempt.took = monotonic() - attempt.started
            self.ended += 1
            lane.ended += 1
            if attempt.completed is not None:
                outcome = self._news.completed(attempt, attempt.completed, outcome)
            elif type(outcome) is Done and (attempt.additions is not None or attempt.added):  # few do: most are spared the call
                outcome = attempt.with_additions(outcome)
            attempt.sink.put(attempt, outcome)
        self.freed.set()
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)  # once for all that end in this turn of the loop; short jobs come in swarms

    def _threads_ended(self, ended: Sequence[tuple[LocalAttempt, Outcome]]) -> None:
        for attempt, outcome in ended:
            if attempt.waiter is None:
                self._end(attempt, outcome)
            elif not attempt.waiter.done():
                attempt.waiter.set_result(outcome)

    # -- stop --------------------------------------------------------------------------------------------------------------

    def cancel(self, asked: Iterable[tuple[str, int]]) -> None:
        """Stop the attempts whose cancellation was asked for, by (job id, claim)."""
        wanted = set(asked)
        for attempt in tuple(self.running):
            if (attempt.job.id, attempt.lease.claim) in wanted:
                self.stop(attempt, "cancel")

    def abandon(self) -> None:
        """Stop everything and settle nothing: the session is gone, and others may run these jobs."""
        self._drop_waiting(*self.lanes)
        for attempt in tuple(self.running):
            attempt.ended = attempt.completed is None
            self.stop(attempt, "lost")

    async def come_to_rest(self, until: asyncio.Event) -> None:
        """Hand back what waits for a slot, and wait until nothing runs, or for `until`."""
        self._return_waiting("the worker is about to be recycled", *self.lanes)
        await self._idle(None, until)

    async def finish(self, grace: float, hurry: asyncio.Event) -> None:
        """Let what runs end within `grace` seconds, then stop it and release it. `hurry` cuts the wait short."""
        self._return_waiting("the worker leaves", *self.lanes)
        await self._idle(grace, hurry)
        for attempt in tuple(self.running):
            self.stop(attempt, "shutdown")
        await self._idle(CLEANUP, hurry)
        for attempt in (*self.running, *self.stuck):
            attempt.ended = True
            attempt.sink.put(attempt, attempt.completed or self._stopped(attempt, TimeoutError("it did not end")))

    async def idle(self) -> None:
        """Wait until nothing runs or waits for a slot."""
        await self._idle(None, asyncio.Event())

    async def _idle(self, seconds: float | None, hurry: asyncio.Event) -> None:
        # Not asyncio.timeout: in a task that is being cancelled it lets its own CancelledError out, on Python 3.11.2.
        deadline = math.inf if seconds is None else monotonic() + seconds
        hurried = asyncio.create_task(hurry.wait())
        while self.busy and not hurry.is_set() and (left := deadline - monotonic()) > 0:
            self.freed.clear()
            freed = asyncio.create_task(self.freed.wait())
            await asyncio.wait({freed, hurried}, timeout=None if left == math.inf else left, return_when=asyncio.FIRST_COMPLETED)
            freed.cancel()
        hurried.cancel()

    def _return_waiting(self, reason: str, *isolations: Isolation) -> None:
        """Hand back what waits for a slot."""
        for attempt in self._drop_waiting(*isolations):
            attempt.returned = reason
            attempt.sink.put(attempt, Release())

    def _drop_waiting(self, *isolations: Isolation) -> list[LocalAttempt]:
        dropped = [attempt for isolation in isolations for attempt in self._waiting[isolation]]
        for isolation in isolations:
            self.lanes[isolation].waiting -= len(self._waiting[isolation])
            self._waiting[isolation].clear()
        return dropped

    def stop(self, attempt: LocalAttempt, reason: StopReason) -> None:
        """Tell a running attempt to end, as its isolation allows; asked again until it does."""
        if attempt.stop_reason is not None:
            return
        attempt.stop_reason, attempt.stopped_at = reason, monotonic()
        attempt.deadline = attempt.stopped_at + NUDGE_EVERY[attempt.isolation]
        self._wake_at(attempt.deadline)
        if attempt.isolation == "process":
            self._children.tell(attempt)
        if attempt.isolation == "async" or reason != "cancel":  # a cancelled thread or process may first end by itself
            self._loop.call_soon(self._nudge, attempt)  # a coroutine cancelled before its first step could not tell of its end

    def _nudge(self, attempt: LocalAttempt) -> None:
        told = monotonic() - attempt.stopped_at
        handed_on = attempt.place is not None or (attempt.waiter is not None and not attempt.waiter.done())
        if attempt.coroutine is not None and not handed_on:  # in the task itself, in a middleware, or while a child starts
            attempt.coroutine.cancel()
            return
        match attempt.isolation:
            case "async":
                return
            case "thread" if told >= STUCK_AFTER:
                self._give_up_on(attempt)
            case "thread":
                self._threads.stop(attempt)
            case "process":
                self._children.stop(attempt, hard=told >= STUCK_AFTER)
            case _:
                assert_never(attempt.isolation)

    def _give_up_on(self, attempt: LocalAttempt) -> None:
        where = f" in {stack[-1]}" if isinstance(attempt.place, int) and (stack := stack_of(attempt.place)) else ""
        log.error(
            "%s: its thread does not end%s; its slot is given back, its lease kept, and the worker will be recycled. "
            "Code that blocks in C cannot be stopped in a thread: use isolation='process'.",
            title(attempt), where, extra=fields(attempt),
        )  # fmt: skip
        self._threads.give_up_on(attempt)
        self.lanes["thread"].running -= 1
        self.running.discard(attempt)
        self.stuck.add(attempt)
        self.freed.set()
        self._pump()

    # -- time limits -------------------------------------------------------------------------------------------------------

    def _begun(self, attempt: LocalAttempt) -> None:
        """The child process is there: from now on the time limit counts, which the start of a child must not use up."""
        if attempt.stop_reason is None and (limit := _limit(attempt)) is not None:
            attempt.deadline = monotonic() + limit
            self._wake_at(attempt.deadline)

    def _wake_at(self, deadline: float) -> None:
        """One timer for all attempts, at the earliest deadline; a timer each would cost more than a short job."""
        if deadline >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._loop.call_later(max(deadline - monotonic(), 0), self._ring)

    def _ring(self) -> None:
        now = monotonic()
        self._alarm, self._alarm_at = None, math.inf
        for attempt in tuple(self.running):
            if attempt.deadline is None:
                continue
            if attempt.deadline <= now:
                if attempt.stop_reason is None:
                    self.stop(attempt, "timeout")
                else:
                    attempt.deadline = now + NUDGE_EVERY[attempt.isolation]
                    self._nudge(attempt)
            self._wake_at(attempt.deadline)

    def blocking(self) -> str | None:
        """The attempt whose coroutine is running this very moment; asked by the watchdog from its thread."""
        task = asyncio.current_task(self._loop)
        return next((title(attempt) for attempt in tuple(self.running) if attempt.coroutine is task is not None), None)

    async def close(self) -> None:
        """Let threads and children go."""
        for timer in (self._alarm, self._stalled):
            if timer is not None:
                timer.cancel()
        self._threads.close()
        await self._children.close()


def _limit(attempt: LocalAttempt) -> float | None:
    """The attempt's time limit in seconds; None for none."""
    return attempt.task.timeout if attempt.job.timeout is None else attempt.job.timeout
