"""A store in a PostgreSQL database, shared by any number of machines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, ClassVar, Self
from uuid import uuid4

from msgspec.structs import replace

from offload.broker import Dialect, Feature, SqlStore, Work
from offload.brokers.postgres import cancelling, control, enqueueing, gating, health, locking, planning, reading, settling, tallies
from offload.brokers.postgres.address import USUAL_SCHEMA, Address, address
from offload.brokers.postgres.awaited import Awaited
from offload.brokers.postgres.database import Database
from offload.brokers.postgres.families import pay_owed
from offload.brokers.postgres.lending import Lender
from offload.brokers.postgres.migrating import SCHEMA
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.session import PostgresSession
from offload.brokers.postgres.work import T, Transaction
from offload.clock import Clock, ServerClock
from offload.errors import BrokerError
from offload.gates import changed_by
from offload.job import Job, Lease, LimitChange, Outcome, Schedule, State, TallyKind, WorkerInfo
from offload.records import Facts, Filter, LimitRecord, Record, ScheduleRecord, SessionRecord, Standing, Tally


class PostgresBroker(SqlStore):
    """`postgresql://user:password@host:port/database`, in libpq's forms, with options of Offload's own.

    `?schema=offload` names the schema, `?migrate=false` forbids to make it on first use, `?timeout=10` says for how many seconds an
    enqueue is tried again while the server is away, `?pgbouncer=true` keeps to what pgbouncer in transaction mode can do, with
    `&listen=` the address of the server itself for notifications. A client belongs to the event loop that opened it; `client` gives
    one for another.
    """

    features: ClassVar[frozenset[Feature]] = frozenset(Feature)
    dialect: ClassVar[Dialect] = "postgresql"

    def __init__(self, address: Address, clock: Clock) -> None:
        self.address = address
        self.clock = self._server_clock = ServerClock(clock)
        self.timeout = address.timeout
        self._clock = clock
        self._database: Database | None = None
        self._awaited: Awaited | None = None
        self._lender = Lender(address)

    @classmethod
    def connect(cls, url: str, clock: Clock) -> Self:
        """The store that `url` names. Does no I/O; raises BadDeclaration when the URL cannot be understood."""
        return cls(address(url), clock)

    def client(self) -> Self:
        """The same store for another event loop."""
        return type(self)(self.address, self._clock)

    async def open(self) -> None:
        """Connect, check the schema, and make it if need be. Raises BrokerError, BrokerUnusable, SchemaTooNew."""
        database = Database(self.address, self._server_clock)
        try:
            await database.open()
        except BaseException:
            await database.close()
            raise
        self._database = database
        self._lender = Lender(self.address)

    async def close(self) -> None:
        """Close all connections."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            await awaited.close()
        database, self._database = self._database, None
        self._lender.close()
        if database is not None:
            await database.close()

    def abandon(self) -> None:
        """The same where the event loop of this client is closed."""
        database, self._database = self._database, None
        self._lender.close()
        if database is not None:
            database.abandon()

    @property
    def opened(self) -> Database:
        """The database as this client uses it. Raises BrokerError when it is not open."""
        if self._database is None:
            raise BrokerError(f"the client of {self.address.place} is not open; call open() first")
        self._database.check()
        return self._database

    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        """Store jobs; see `Broker.enqueue`."""
        return await enqueueing.enqueue(self.opened, jobs) if jobs else []

    def enqueue_on(self, jobs: Sequence[Job]) -> Work[list[str]]:
        """Store jobs on a caller's connection; see `SqlStore.enqueue_on`."""
        return enqueueing.enqueue_on(self.opened.transaction(), jobs)

    def settle_on(self, session: str, lease: Lease, outcome: Outcome) -> Work[bool]:
        """Record an outcome on a caller's connection; see `SqlStore.settle_on`."""
        return settling.settle_on(self.opened.transaction(), session, lease, outcome)

    @contextmanager
    def transaction(self) -> Generator[Any]:
        """A connection with a transaction begun; see `SqlStore.transaction`."""
        with self._lender.lent() as connection:
            yield connection

    @asynccontextmanager
    async def atransaction(self) -> AsyncGenerator[Any]:
        """`transaction` for coroutines."""
        async with self._lender.alent() as connection:
            yield connection

    async def read(self, work: Callable[[], Work[T]]) -> T:
        """Carry out statements that only read; see `SqlStore.read`."""
        return await self.opened.step(lambda _: work())

    def read_blocking(self, work: Callable[[], Work[T]]) -> T:
        """The same from any thread."""
        return self._lender.read(work())

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncGenerator[PostgresSession]:
        """Open a session; see `Broker.session`."""
        session = PostgresSession(self.opened, uuid4().hex, worker)
        await session.enter()
        try:
            yield session
        finally:
            await session.leave()

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        """Records by id."""
        return await self.opened.ask(lambda tx: reading.get(tx, ids))

    async def find(self, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
        """Records that match; see `Store.find`."""
        return await self.opened.ask_together(lambda tx: reading.find(tx, filter, limit, after))

    async def counts(self) -> dict[str, dict[State, int]]:
        """Numbers by queue and state."""
        return await self.opened.ask_together(reading.counts)

    async def cancel(self, ids: Sequence[str]) -> set[str]:
        """Cancel jobs; see `Store.cancel`."""
        return await self.opened.change(lambda tx: cancelling.cancel(tx, ids))

    async def retry(self, ids: Sequence[str], payload: bytes | None = None) -> set[str]:
        """Revive jobs; see `Store.retry`."""
        while (revived := await self.opened.change(lambda tx: control.retry(tx, ids, payload))) is None:
            await self.opened.change(lambda tx: tallies.catch_up(tx, ids))
        return revived

    async def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete jobs; see `Store.delete`."""
        return await self.opened.change(lambda tx: control.delete(tx, ids))

    async def pause(self, queue: str) -> None:
        """Pause a queue."""
        await self.opened.step(lambda tx: tx.do("pause_queue", queue=queue))

    async def resume(self, queue: str) -> None:
        """Resume a queue."""
        await self.opened.run(lambda tx: _resume(tx, queue))

    async def paused(self) -> set[str]:
        """The paused queues."""
        return await self.opened.ask(reading.paused)

    async def finished(self, ids: Sequence[str], timeout: float) -> dict[str, Record]:
        """Wait for jobs to end; see `Store.finished`."""
        if self._awaited is None:
            self._awaited = Awaited(self.opened)
        return await self._awaited.finished(ids, timeout)

    async def standing(self, id: str) -> Standing | None:
        """The facts about one job."""
        now = self.opened.clock.now()
        return await self.opened.ask(lambda tx: reading.standing(tx, id, now))

    async def schedules(self) -> list[ScheduleRecord]:
        """All schedules, by name."""
        return await self.opened.ask(planning.records)

    async def schedule(self, schedule: Schedule, next_at: datetime | None) -> None:
        """Store a dynamic schedule."""
        await self.opened.change(lambda tx: planning.put(tx, schedule, next_at, declared=False))

    async def unschedule(self, name: str) -> bool:
        """Remove a schedule."""
        return await self.opened.change(lambda tx: planning.remove(tx, name))

    async def pause_schedule(self, name: str, paused: bool, next_at: datetime | None = None) -> bool:
        """Pause or resume a schedule."""
        return await self.opened.change(lambda tx: planning.pause(tx, name, next_at, paused=paused))

    async def fire(self, name: str, job: Job) -> str | None:
        """Enqueue an extra job of a schedule."""
        return await self.opened.change(lambda tx: planning.fire(tx, name, job))

    async def limits(self, limit: int = 1_000, after: str | None = None, key: str | None = None) -> list[LimitRecord]:
        """What keys allow, and who holds them."""
        return await self.opened.ask_together(lambda tx: gating.page(tx, limit, after, key))

    async def set_limit(self, key: str, change: LimitChange) -> None:
        """Change what a key allows."""
        await self.opened.run(lambda tx: _set_limit(tx, key, change))

    async def open_batch(self, id: str, name: str, callbacks: Sequence[Job]) -> None:
        """Begin a batch."""
        await self.opened.change(lambda tx: enqueueing.open_batch(tx, id, name, callbacks))

    async def seal_batch(self, id: str) -> bool:
        """Let no more jobs come from outside."""
        return await self.opened.change(lambda tx: tallies.seal(tx, id))

    async def stop(self, kind: TallyKind, id: str) -> bool:
        """Cancel all jobs of a workflow or batch, of many a piece after the other; see `Store.stop`."""
        while await self.opened.change(lambda tx: pay_owed(tx, waits=True)):
            pass  # what children are yet to be told comes first
        if not await self.opened.change(lambda tx: tallies.begin_to_stop(tx, kind, id)):
            return False
        if await self.opened.change(lambda tx: tallies.go_on_stopping(tx, (kind, id))):
            await self._finish_stop(kind, id)
        return True

    async def _finish_stop(self, kind: TallyKind, id: str) -> None:
        while await self.opened.change(lambda tx: tallies.go_on_stopping(tx, (kind, id))):
            pass

    async def tallies(self, kind: TallyKind, ids: Sequence[str] | None = None, limit: int = 100, after: str | None = None) -> list[Tally]:
        """Workflows or batches; see `Store.tallies`."""
        return await self.opened.ask_together(lambda tx: tallies.tallies(tx, kind, ids, limit, after))

    async def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first."""
        return await self.opened.ask(reading.sessions)

    async def inspect(self) -> Facts:
        """What `doctor` judges by."""
        database = self.opened
        facts = await database.ask_together(lambda tx: reading.facts(tx, database.clock.now(), SCHEMA))
        notes = await database.ask(lambda tx: health.health(tx, database.skew))
        schema = "" if self.address.schema == USUAL_SCHEMA else f" in the schema {self.address.schema!r}"
        return replace(facts, place=f"{self.address.place}{schema}", notes=notes)

    async def migrate(self) -> tuple[int, int]:
        """Bring the schema up to date. Returns the versions (from, to)."""
        database = self._database or Database(self.address, self._server_clock)
        return await database.migrate()


def _set_limit(tx: Transaction, key: str, change: LimitChange) -> Work[None]:
    yield from locking.lock(tx, changed_by(key, change))
    moves = Moves(tx.now)
    moves.change(key, change)
    yield from moves.write(tx)
    tx.work = True


def _resume(tx: Transaction, queue: str) -> Work[None]:
    yield from tx.post("resume_queue", queue=queue)
    tx.work = True
