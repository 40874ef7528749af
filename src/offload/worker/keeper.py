"""Keeps the session alive by beats from a thread of its own, and tells when the event loop is blocked.

The thread has its own event loop, so that neither a busy nor a blocked worker misses a beat. It stops beating when the worker
can no longer be trusted to work: when its loop has not turned for five minutes, or when it turns but nothing was fetched.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from time import monotonic
from typing import Self

from offload.broker import Session
from offload.errors import BrokerError, BrokerUnusable, SessionLost
from offload.job import Beat, Lease, Progress, Pulse
from offload.worker.patience import Outage, Patience
from offload.worker.stacks import stack_of

log = logging.getLogger("offload.worker")

BLOCKED = 300.0
"""Seconds without a turn of the event loop after which the worker stops beating."""
ASLEEP = 60.0
"""Seconds without a round of the fetcher, on a loop that turns, after which it stops beating."""
WARN = 1.0
"""Seconds without a turn after which the watchdog names the line that blocks."""
LOOK_EVERY = 0.5
PROGRESS_EVERY = 0.5
"""Least seconds between two beats that carry progress."""


class Keeper:
    """One session's heartbeat."""

    def __init__(
        self, session: Session, heartbeat: float, told: Callable[[Beat], None], blocking: Callable[[], str | None], outage: Outage
    ) -> None:
        self._session = session
        self._heartbeat = heartbeat
        self._told = told
        self._blocking = blocking
        self._loop = asyncio.get_running_loop()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._keep, name="offload-keeper", daemon=True)
        self._stop = threading.Event()
        self._kick = threading.Event()
        self._lock = threading.Lock()
        self._progress: dict[tuple[str, int], tuple[Lease, Progress]] = {}
        self._patience = Patience("heartbeat", outage)
        self._asked = -math.inf
        self._lived = -math.inf
        self._heard = asyncio.Event()
        self._turned = monotonic()
        self._came_round = math.inf
        self._ended = asyncio.Event()
        self._warned = False
        self._mute = False
        self._turn: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._mark_turn()
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop beating; the session is about to be closed."""
        self._stop.set()
        self._kick.set()
        if self._turn is not None:
            self._turn.cancel()
        await self._ended.wait()  # not `to_thread`: tasks may have filled the loop's threads with calls that never end
        self._thread.join()

    def report(self, lease: Lease, progress: Progress) -> None:
        """Let the next beat carry progress; from any thread."""
        with self._lock:
            self._progress[lease.job.id, lease.claim] = (lease, progress)
        self._kick.set()

    async def lives(self) -> None:
        """Return once a beat begun after this call shows that the session lives: soon, where the broker answers; never, once it is gone."""
        asked = self._asked = monotonic()
        while self._lived < asked:
            self._heard.clear()
            self._kick.set()
            await self._heard.wait()

    def came_round(self) -> None:
        """The fetcher asked for work, or found all slots full. From now on it must come round again in time."""
        self._came_round = monotonic()

    def fetcher_rests(self) -> None:
        """The fetcher is done: what still runs may take as long as it likes."""
        self._came_round = math.inf

    def _mark_turn(self) -> None:
        self._turned = monotonic()
        self._turn = self._loop.call_later(LOOK_EVERY, self._mark_turn)

    def _keep(self) -> None:
        try:
            asyncio.run(self._beat_on())
        except Exception:
            log.exception("the heartbeat failed; the worker gives up its session and opens a new one")
            self._loop.call_soon_threadsafe(self._told, Beat(alive=False))
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    async def _beat_on(self) -> None:
        due = monotonic()  # at once: until its first beat a session watches nobody
        while not self._stop.is_set():
            if self._kick.wait(max(min(due - monotonic(), LOOK_EVERY), 0)):
                self._kick.clear()
                if self._stop.wait(PROGRESS_EVERY if self._progress else 0):
                    return
            self._watch_loop()
            hasty = (self._progress or self._asked > self._lived) and not self._patience.away
            if (monotonic() >= due or hasty) and self._trusted():
                due = monotonic() + await self._beat()

    async def _beat(self) -> float:
        """Beat once. Returns the seconds to the next."""
        with self._lock:
            progress, self._progress = self._progress, {}
        begun = monotonic()
        try:
            beat = await self._session.beat(Pulse(tuple(progress.values())))
        except BrokerUnusable:  # the other parts meet it too, and end the worker
            return self._heartbeat
        except BrokerError as error:
            with self._lock:
                self._progress = progress | self._progress
            return min(self._patience.failed(error), self._heartbeat)
        except SessionLost:
            beat = Beat(alive=False)
        except Exception as error:  # a fault, perhaps of the progress carried up; a session given up would not be the better for it
            log.exception("a heartbeat failed; the next one goes without the progress of %d job(s)", len(progress))
            return min(self._patience.failed(error), self._heartbeat)
        self._patience.succeeded()
        if not beat.alive or beat.stop or beat.rescue:
            self._loop.call_soon_threadsafe(self._told, beat)
        if not beat.alive:
            self._stop.set()
            return self._heartbeat
        asked, self._lived = self._asked > self._lived, begun
        if asked:
            self._loop.call_soon_threadsafe(self._heard.set)
        return self._heartbeat

    def _trusted(self) -> bool:
        now = monotonic()
        blocked, asleep = now - self._turned >= BLOCKED, now - self._came_round >= ASLEEP
        if (blocked or asleep) and not self._mute:
            what = f"its event loop has not turned for {BLOCKED:g} s" if blocked else f"it has asked for no work for {ASLEEP:g} s"
            log.critical("this worker stops its heartbeat: %s; others will rescue its jobs", what)
        self._mute = blocked or asleep
        return not self._mute

    def _watch_loop(self) -> None:
        still = monotonic() - self._turned
        if still < WARN + LOOK_EVERY:
            self._warned = False
        elif not self._warned:
            self._warned = True
            log.warning(
                "the event loop is blocked for %.1f s by %s; blocking code belongs in a `def` task (a thread) or isolation='process'. "
                "It stands at:\n  %s",
                still, self._blocking() or "code outside a task", "\n  ".join(stack_of(self._main)[-3:]),
            )  # fmt: skip
