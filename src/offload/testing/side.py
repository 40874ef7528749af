"""One of the two stores of a lockstep program, with the sessions and leases that the program has of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TypeAlias, cast

from msgspec.structs import replace

from offload.broker import Feature, Session, Store
from offload.errors import OffloadError, SessionLost
from offload.job import Beat, Lease, Upkeep, WorkerInfo
from offload.records import Facts, Filter, SessionRecord, Standing
from offload.testing.moves import (
    Fetch,
)

Claim: TypeAlias = tuple[str, int]
"""A lease as both sides know it: the job's id and the number of the claim."""
EVERYTHING = 100_000
"""More records, workflows or batches than any program makes."""


class Side:
    """One of the two stores, with the sessions and leases that the program has of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.leases: dict[Claim, Lease] = {}
        self._sessions: dict[int, tuple[Session, AsyncExitStack]] = {}
        self._numbers: dict[str, int] = {}

    async def open(self, number: int, info: WorkerInfo) -> None:
        """Open the session that the program calls `number`."""
        stack = AsyncExitStack()
        session = await stack.enter_async_context(self.store.session(info))
        self._numbers[session.id] = number
        self._sessions[number] = (session, stack)

    async def leave(self, number: int) -> None:
        """Leave a session's block."""
        await self._sessions.pop(number)[1].aclose()

    async def close(self) -> None:
        """Leave all sessions."""
        for number in list(self._sessions):
            await self.leave(number)

    def session(self, number: int) -> Session:
        """The session that the program calls `number`."""
        return self._sessions[number][0]

    async def fetch(self, number: int, move: Fetch) -> list[Lease]:
        """Fetch, and keep the leases for later moves."""
        leases = await self.session(number).fetch(move.queues, move.limit, move.room)
        self.leases |= {(lease.job.id, lease.claim): lease for lease in leases}
        return leases

    async def state(self) -> dict[str, object]:
        """All that the store holds, by what it is."""
        return {
            "records": await self.store.find(Filter(), EVERYTHING),
            "counts": await self.store.counts(),
            "schedules": await self.store.schedules(),
            "sessions": self.comparable(await self.store.sessions()),
            "paused": await self.store.paused(),
            "limits": await self.store.limits() if Feature.LIMITS in self.store.features else [],
            "workflows": await self.store.tallies("workflow", None, EVERYTHING) if Feature.PARENTS in self.store.features else [],
            "batches": await self.store.tallies("batch", None, EVERYTHING) if Feature.BATCH in self.store.features else [],
        }

    async def look(self, id: str) -> object:
        """Everything else that can be asked, about one job and about the store."""
        return (await self.store.standing(id), await self.store.inspect(), await self.store.get([id]), await self.store.finished([id], 0))

    def comparable(self, answer: object) -> object:
        """The answer without what may differ from store to store: ids of sessions, and orders that nobody promised."""
        match answer:
            case Lease():
                return (answer.job, answer.claim, answer.attempt, answer.crashes, dict(answer.steps), answer.inputs)
            case SessionRecord():
                return replace(answer, id=str(self._numbers[answer.id]))
            case Standing():
                return (replace(answer, sessions=()), self.comparable(answer.sessions))
            case Facts():
                kept = ("paused", "schedules", "aside", "oldest_ready", "large", "finished", "limits", "declared", "now")
                return {"sessions": self.comparable(answer.sessions)} | {name: getattr(answer, name) for name in kept}
            case Beat():
                return (answer.alive, sorted(answer.stop), answer.rescue)
            case Upkeep():
                return (round(answer.wait, 6), sorted(answer.touched, key=lambda touched: (touched.event, touched.id)))
            case SessionLost():
                return SessionLost
            case OffloadError():
                return (type(answer), str(answer))
            case list() | tuple():
                return self._comparable_each(cast("Sequence[object]", answer))
            case _:
                return answer

    def _comparable_each(self, answers: Sequence[object]) -> list[object]:
        comparable = [self.comparable(each) for each in answers]
        return sorted(comparable, key=str) if answers and isinstance(answers[0], SessionRecord) else comparable
