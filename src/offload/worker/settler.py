"""Gathers outcomes and settles them in batches, trying again while the broker is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Self

from offload.broker import Broker, Session, Store
from offload.errors import BrokerError
from offload.job import MOST_ATOMIC, Dead, Done, Lease, Outcome, Progress, State
from offload.worker.attempt import LocalAttempt
from offload.worker.news import News
from offload.worker.patience import Outage, Patience

log = logging.getLogger("offload.worker")

LAST_TRY = 2.0
"""Seconds that a worker told to leave at once still tries to settle."""


class Settler:
    """No timer: what gathers while one call is under way is the next batch."""

    def __init__(
        self,
        broker: Broker,
        session: Session,
        news: News,
        report: Callable[[Lease, Progress], None],
        lives: Callable[[], Awaitable[None]],
        hurry: asyncio.Event,
        outage: Outage,
    ) -> None:
        self._broker = broker
        self.session = session
        self._report = report
        self._lives = lives
        self._hurry = hurry
        self._news = news
        self._gathered: list[tuple[LocalAttempt, Outcome]] = []
        self._any = asyncio.Event()
        self._under_way: list[tuple[LocalAttempt, Outcome]] = []
        self._closing = False
        self._void = asyncio.Event()
        self._patience = Patience("settling", outage)
        self._outage = outage
        self.task: asyncio.Task[None] | None = None
        """What settles, while the block is open."""
        self.flushed = asyncio.Event()
        """Set while nothing is left to settle."""
        self.flushed.set()

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._settle_on(), name="offload-settler")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Settle what is left, then leave; in a hurry only what a broker that answers takes. Raises what ended the settling."""
        assert self.task is not None
        self._closing = True
        self._any.set()
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({self.task, hurried}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({self.task}, timeout=LAST_TRY)
        finally:
            hurried.cancel()
        if self.task.done():
            self.task.result()
        else:
            log.error(
                "leaving with %d outcome(s) that the broker did not take; others run those jobs again",
                self.backlog,
            )
            self.task.cancel()

    @property
    def backlog(self) -> int:
        """How many outcomes are not yet settled, or not yet told to the observers."""
        return len(self._under_way) + len(self._gathered)

    @property
    def held(self) -> list[Lease]:
        """The leases whose outcomes are not yet settled, as far as is known."""
        return [attempt.lease for attempt, _ in (*self._under_way, *self._gathered)]

    def put(self, attempt: LocalAttempt, outcome: Outcome) -> None:
        """Take an outcome to be settled."""
        self._gathered.append((attempt, outcome))
        if not self._any.is_set():
            self.flushed.clear()
            self._any.set()

    def report(self, lease: Lease, progress: Progress, /) -> None:
        """Take progress to be carried up by the next beat; from any thread."""
        self._report(lease, progress)

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        """Store a step's result. False when the lease is lost.

        While the broker is away it tries again, for as long as the attempt may run: to give up would be to do twice what the step did.
        Raises BrokerUnusable where no try will ever do better.
        """
        patience = Patience("remembering a step", self._outage)
        while not self._void.is_set():
            try:
                remembered = await self.session.remember(lease, step, value)
            except BrokerError as error:
                await asyncio.sleep(patience.failed(error))
            else:
                patience.succeeded()
                return remembered
        return False

    def void(self) -> None:
        """The session is gone: whatever is still to be settled would be refused."""
        self._void.set()
        self._any.set()

    async def _settle_on(self) -> None:
        while not (self._closing and not self._gathered):
            await self._any.wait()
            self._any.clear()
            self._under_way, self._gathered = self._gathered, []
            for batch in _batches(self._under_way):
                await self._settle(batch)
            self._under_way = []
            if not self._gathered:
                self.flushed.set()

    async def _settle(self, batch: list[tuple[LocalAttempt, Outcome]]) -> None:
        settlements = [(attempt.lease, outcome) for attempt, outcome in batch if not attempt.settled]
        repeated = False
        while not self._void.is_set():
            try:
                lost = await self.session.settle(settlements) if settlements else []
                told = await self._recorded(batch)
            except BrokerError as error:
                repeated = True
                await asyncio.sleep(self._patience.failed(error))
                continue
            self._patience.succeeded()
            if lost:
                told = self._without(lost, told, only_in_doubt=repeated and await self._lives_on())
            await self._news.settled(told)
            return
        for attempt, outcome in batch:
            if not attempt.settled:
                self._news.lost(attempt, outcome)
        await self._news.settled([each for each in batch if each[0].settled])

    async def _recorded(self, batch: list[tuple[LocalAttempt, Outcome]]) -> list[tuple[LocalAttempt, Outcome]]:
        """What they came to: of a job that adds others, which comes alone, only the store can say, for it may have refused them."""
        attempt, outcome = batch[0]
        if attempt.settled or not _adds(outcome) or not isinstance(self._broker, Store):
            return batch
        record = (await self._broker.get([attempt.job.id])).get(attempt.job.id)
        return batch if record is None or record.state is not State.DEAD else [(attempt, Dead(record.reason or ""))]

    async def _lives_on(self) -> bool:
        """Whether the session lives: then what a repeated call found lost is what the first one settled, before its answer was lost."""
        lives, void = asyncio.ensure_future(self._lives()), asyncio.create_task(self._void.wait())
        try:
            await asyncio.wait({lives, void}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lives.cancel()
            void.cancel()
        return not self._void.is_set()

    def _without(
        self, lost: list[Lease], batch: list[tuple[LocalAttempt, Outcome]], *, only_in_doubt: bool
    ) -> list[tuple[LocalAttempt, Outcome]]:
        """What was recorded. With a transaction in doubt a refused outcome is not: the success was, or another worker has the job."""
        refused = {(lease.job.id, lease.claim) for lease in lost}
        kept: list[tuple[LocalAttempt, Outcome]] = []
        for attempt, outcome in batch:
            if (attempt.job.id, attempt.lease.claim) in refused and (attempt.in_doubt or not only_in_doubt):
                self._news.lost(attempt, outcome)
            else:
                kept.append((attempt, outcome))
        return kept


def _batches(ended: list[tuple[LocalAttempt, Outcome]]) -> Iterator[list[tuple[LocalAttempt, Outcome]]]:
    """What is settled together: an outcome that adds jobs comes alone."""
    together = ended
    if any(_adds(outcome) for _, outcome in ended):
        yield from ([each] for each in ended if _adds(each[1]))
        together = [each for each in ended if not _adds(each[1])]
    for start in range(0, len(together), MOST_ATOMIC):
        yield together[start : start + MOST_ATOMIC]


def _adds(outcome: Outcome) -> bool:
    return isinstance(outcome, Done) and bool(outcome.added)
