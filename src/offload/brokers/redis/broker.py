"""A store in a Redis or Valkey server, shared by any number of processes and machines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import Any, ClassVar, Self
from uuid import uuid4

from offload.broker import Feature, Store
from offload.brokers.redis import planning, reading, tallies
from offload.brokers.redis.awaited import Awaited
from offload.brokers.redis.connections import Address, Link
from offload.brokers.redis.rows import change_of, optional_stored, tail
from offload.brokers.redis.script import Script, refuse
from offload.brokers.redis.session import RedisSession
from offload.clock import Clock
from offload.errors import BrokerUnusable, SchemaTooNew
from offload.job import Job, LimitChange, Schedule, State, TallyKind, WorkerInfo
from offload.records import Facts, Filter, LimitRecord, Record, ScheduleRecord, SessionRecord, Standing, Tally

PAGE = 200
"""Jobs that one call cancels, revives or deletes; the server does nothing else meanwhile."""


class RedisBroker(Store):
    """`redis://host:6379/0`, `rediss://`, `valkey://`, `redis+sentinel://` or `redis+cluster://`; see `Address` for the options.

    A client belongs to the event loop that opened it; `client` gives one for another.
    """

    features: ClassVar[frozenset[Feature]] = frozenset(Feature)

    def __init__(self, address: Address, clock: Clock) -> None:
        self.address = address
        self._clock = clock
        self._script = Script(Link(address), clock)
        self.clock = self._script.clock
        self.timeout = address.timeout
        self._awaited = Awaited(self._script)

    @classmethod
    def connect(cls, url: str, clock: Clock) -> Self:
        """The store that `url` names. Does no I/O; raises BadDeclaration when the URL cannot be understood."""
        return cls(Address.parse(url), clock)

    def client(self) -> Self:
        """The same store for another event loop."""
        return type(self)(self.address, self._clock)

    async def open(self) -> None:
        """Connect, and look what lies there. Raises BrokerError, BrokerUnusable, SchemaTooNew."""
        await self._script.link.open()
        now, schema, *foreign = await self._script.ask("open")
        self._script.read_clock(now)
        if foreign:
            key, kind = (word.decode() for word in foreign)
            raise BrokerUnusable(
                f"{self.address}: the key {key} holds a {kind} that is not Offload's; remove it, or keep jobs under another ?prefix="
            )
        if int(schema) > reading.SCHEMA:
            raise SchemaTooNew(
                f"{self.address}: a newer Offload keeps jobs there, in schema {int(schema)}; this one knows {reading.SCHEMA}: "
                "upgrade it, or use another ?prefix="
            )

    async def close(self) -> None:
        """Let go of the connections."""
        self._awaited.close()
        await self._script.link.close()

    def abandon(self) -> None:
        """The same where the event loop of this client is closed."""
        self._awaited.close()
        self._script.link.abandon()

    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        """Store jobs; see `Broker.enqueue`."""
        if not jobs:
            return []
        words = _words(jobs)
        refusal, others = await self._script.tell("enqueue", *words, patient=True)
        if refusal:
            refuse(refusal)
        ids = [job.id for job in jobs]
        for place, id in _pairs(others):
            ids[place - 1] = id.decode()
        return ids

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncGenerator[RedisSession]:
        """Open a session; see `Broker.session`."""
        session = RedisSession(self._script.second(), uuid4().hex, worker)
        try:
            await session.enter()
            try:
                yield session
            finally:
                await session.leave()
        finally:
            await session.close()

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        """Records by id."""
        return await reading.get(self._script, ids)

    async def find(self, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
        """Records that match; see `Store.find`."""
        return await reading.find(self._script, filter, limit, after)

    async def counts(self) -> dict[str, dict[State, int]]:
        """Numbers by queue and state."""
        return await reading.counts(self._script)

    async def _each(self, operation: str, ids: Sequence[str], *words: bytes) -> set[str]:
        wanted = list(dict.fromkeys(ids))
        done: set[str] = set()
        for start in range(0, len(wanted), PAGE):
            done.update(id.decode() for id in await self._caught_up(operation, *words, *wanted[start : start + PAGE]))
        return done

    async def _caught_up(self, operation: str, *words: bytes | str) -> Any:
        """Ask again as long as the script goes on with what it had to leave before, a piece a call."""
        while (answer := await self._script.tell(operation, *words, once=True)) is None:
            pass
        return answer

    async def cancel(self, ids: Sequence[str]) -> set[str]:
        """Cancel jobs; see `Store.cancel`."""
        return await self._each("cancel", ids)

    async def retry(self, ids: Sequence[str], payload: bytes | None = None) -> set[str]:
        """Revive jobs; see `Store.retry`."""
        return await self._each("retry", ids, payload or b"")

    async def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete jobs; see `Store.delete`."""
        return await self._each("delete", ids)

    async def pause(self, queue: str) -> None:
        """Pause a queue."""
        await self._script.tell("pause", queue, "1")

    async def resume(self, queue: str) -> None:
        """Resume a queue."""
        await self._script.tell("pause", queue, "0")

    async def paused(self) -> set[str]:
        """The paused queues."""
        return {queue.decode() for queue in await self._script.ask("paused")}

    async def finished(self, ids: Sequence[str], timeout: float) -> dict[str, Record]:
        """Wait for jobs to end; see `Store.finished`. A server that is away is waited for as long as `enqueue` would."""
        deadline = monotonic() + timeout  # real time also under a test's clock: it is the caller who waits
        while True:
            if ids and (left := deadline - monotonic()) > 0:
                await self._awaited.ended(ids, left)
            records = await reading.get(self._script, ids, patient=True)
            if deadline <= monotonic() or all(record.state.terminal for record in records.values()):
                return {id: record for id, record in records.items() if record.state.terminal}

    async def standing(self, id: str) -> Standing | None:
        """The facts about one job."""
        return await reading.standing(self._script, id)

    async def schedules(self) -> list[ScheduleRecord]:
        """All schedules, by name."""
        return [planning.record_of(row) for row in await self._script.ask("schedules")]

    async def schedule(self, schedule: Schedule, next_at: datetime | None) -> None:
        """Store a dynamic schedule."""
        await self._script.tell("schedule", schedule.name, planning.text_of(schedule), optional_stored(next_at))

    async def unschedule(self, name: str) -> bool:
        """Remove a schedule."""
        return bool(await self._script.tell("unschedule", name, once=True))

    async def pause_schedule(self, name: str, paused: bool, next_at: datetime | None = None) -> bool:
        """Pause or resume a schedule."""
        return bool(await self._script.tell("pause_schedule", name, int(paused), optional_stored(next_at)))

    async def fire(self, name: str, job: Job) -> str | None:
        """Enqueue an extra job of a schedule."""
        refusal, id = await self._script.tell("fire", name, job.id, tail(job), once=True)
        if refusal:
            refuse(refusal)
        return None if id is None else id.decode()

    async def limits(self, limit: int = 1_000, after: str | None = None, key: str | None = None) -> list[LimitRecord]:
        """What keys allow, and who holds them."""
        return await reading.limits(self._script, limit, after, key)

    async def set_limit(self, key: str, change: LimitChange) -> None:
        """Change what a key allows."""
        await self._script.tell("set_limit", key, change_of(change))

    async def open_batch(self, id: str, name: str, callbacks: Sequence[Job]) -> None:
        """Begin a batch."""
        refusal = await self._script.tell("open_batch", id, name, *_words(callbacks), patient=True)
        if refusal:
            refuse(refusal)

    async def seal_batch(self, id: str) -> bool:
        """Let no more jobs come from outside."""
        return bool(await self._script.tell("seal_batch", id, once=True))

    async def stop(self, kind: TallyKind, id: str) -> bool:
        """Cancel all jobs of a workflow or batch, of many a piece after the other; see `Store.stop`."""
        if not await self._caught_up("stop", tallies.name_of(kind, id)):
            return False
        await self._finish_stop(kind, id)
        return True

    async def _finish_stop(self, kind: TallyKind, id: str) -> None:
        await self._caught_up("finish_stop", tallies.name_of(kind, id))

    async def tallies(self, kind: TallyKind, ids: Sequence[str] | None = None, limit: int = 100, after: str | None = None) -> list[Tally]:
        """Workflows or batches; see `Store.tallies`."""
        if ids is not None:
            return await tallies.some(self._script, kind, ids)
        return await tallies.newest(self._script, kind, limit, after)

    async def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first."""
        return await reading.sessions(self._script)

    async def inspect(self) -> Facts:
        """What `doctor` judges by."""
        return await reading.facts(self._script)

    async def migrate(self) -> tuple[int, int]:
        """Put the schema's version where there is none. Returns the versions (from, to)."""
        link, other = Link(self.address), self.client()  # this client may not be open
        try:
            before = await link.command("GET", self._script.key("version"))
            await other.open()
        finally:
            await link.close()
            await other.close()
        return (int(before or 0), reading.SCHEMA)


def _words(jobs: Sequence[Job]) -> list[str | bytes]:
    return [word for job in jobs for word in (job.id, tail(job))]


def _pairs(flat: Sequence[Any]) -> zip[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)
