"""A store in one SQLite file, shared by any number of processes of one machine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

from msgspec.structs import replace

from offload.broker import Dialect, Feature, Routine, SqlStore
from offload.brokers.sqlite import callers, cancelling, control, enqueueing, file, gating, planning, reading, tallies
from offload.brokers.sqlite.awaited import Awaited
from offload.brokers.sqlite.database import looked_at
from offload.brokers.sqlite.moves import Moves
from offload.brokers.sqlite.rows import stored
from offload.brokers.sqlite.session import SqliteSession
from offload.brokers.sqlite.sharing import Shared, acquire, prepare, release
from offload.brokers.sqlite.transaction import Joint, Operation, T, Transaction
from offload.brokers.sqlite.wake import Ear
from offload.clock import Clock
from offload.errors import BadDeclaration, BrokerError
from offload.job import Job, Lease, LimitChange, Outcome, Schedule, State, TallyKind, WorkerInfo
from offload.records import Facts, Filter, LimitRecord, Record, ScheduleRecord, SessionRecord, Standing, Tally

FIXED = (3, 51, 3)
"""The first SQLite in which two checkpoints that race cannot corrupt the database."""
LARGE_LOG_BYTES = 64 * 1_048_576
"""From which size `doctor` speaks of the write-ahead log."""


class SqliteBroker(SqlStore):
    """`sqlite:///relative.db` or `sqlite:////absolute.db`, with `?synchronous=normal` to wait for no disk at commits.

    `?driver=apsw` opens the file with that library instead of the standard one. A client belongs to the event loop that opened it;
    `client` gives one for another. All clients of a process on one file share one writer, which commits together what they ask for at
    the same time.
    """

    features: ClassVar[frozenset[Feature]] = frozenset(Feature)
    dialect: ClassVar[Dialect] = "sqlite"
    needs_opening: ClassVar[bool] = False

    def __init__(self, path: Path, synchronous: str, clock: Clock, driver: file.Driver = "sqlite3") -> None:
        self.path = path
        self.library = driver
        self._driver: file.Driver = driver
        self._synchronous = synchronous
        self.clock = clock
        self._shared: Shared | None = None
        self._awaited: Awaited | None = None

    @classmethod
    def connect(cls, url: str, clock: Clock) -> Self:
        """The store in the file that `url` names. Does no I/O; raises BadDeclaration when the URL cannot be understood."""
        parts = urlsplit(url)
        name = unquote(parts.path.removeprefix("/"))
        if parts.netloc == ":memory:" or name in ("", ":memory:"):
            raise BadDeclaration(f"{url!r} names no file; use sqlite:///offload.db, or memory:// to keep jobs in memory")
        if parts.netloc:
            raise BadDeclaration(f"{url!r} names a host, which SQLite has not; a relative path has three slashes, an absolute one four")
        options: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
        synchronous = options.pop("synchronous", "full")
        driver = options.pop("driver", "sqlite3")
        if options:
            known = "synchronous=full or normal, and driver=sqlite3 or apsw"
            raise BadDeclaration(f"{url!r}: unknown option {', '.join(sorted(options))}; sqlite:// knows {known}")
        if driver not in ("sqlite3", "apsw"):
            raise BadDeclaration(f"{url!r}: driver is sqlite3 or apsw, not {driver!r}")
        file.sqlite_version(driver)
        if synchronous not in ("full", "normal"):
            raise BadDeclaration(f"{url!r}: synchronous is full or normal, not {synchronous!r}")
        return cls(Path(name), synchronous, clock, driver)

    def missing(self) -> str | None:
        """The file, where there is none, or what an older schema lacks: to bring it up to date would lock out programs of that version."""
        path = self.path.resolve()
        if not path.exists():
            return f"no such database: {path} (nothing was enqueued there yet, or this is another folder)"
        version = looked_at(path, self._driver)
        if version is None or version >= file.SCHEMA:
            return None
        needed = f"{path} has schema {version} where {file.SCHEMA} is needed"
        return f"{needed}, and may not be changed here; `offload migrate` brings it up to date"

    def client(self) -> Self:
        """The same store for another event loop."""
        return type(self)(self.path, self._synchronous, self.clock, self._driver)

    async def open(self) -> None:
        """Open the file, made with its schema if need be. Raises BrokerError, SchemaTooNew."""
        path = await asyncio.to_thread(self.path.resolve)
        self._shared = await asyncio.to_thread(acquire, path, self._synchronous, self._driver)

    async def close(self) -> None:
        """Let go of the file; the last client of the process finishes what was asked for and empties the log."""
        shared = self._left()
        if shared is not None:
            try:
                await asyncio.to_thread(release, shared)
            except RuntimeError:  # the interpreter is ending and starts no more threads
                release(shared)

    def abandon(self) -> None:
        """The same where the event loop of this client is closed."""
        shared = self._left()
        if shared is not None:
            release(shared)

    def _left(self) -> Shared | None:
        """What this client had open, which is its own no more."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.close()
        shared, self._shared = self._shared, None
        return shared

    @property
    def opened(self) -> Shared:
        """What this client shares with others of the process. Raises BrokerError when it is not open."""
        if self._shared is None:
            raise BrokerError(f"the client of {self.path} is not open; call open() first")
        return self._shared

    async def _write(self, operation: Operation[T]) -> T:
        return await self.opened.write(operation)

    async def _read(self, operation: Operation[T]) -> T:
        return await self.opened.read(operation)

    async def _change(self, act: Callable[[Transaction, int], T]) -> T:
        """Do something that may end jobs, or revive them; what follows for others is done by the same operation."""

        def operation(tx: Transaction) -> T:
            now = self._now()
            result = act(tx, now)
            tallies.settle_up(tx, now)
            return result

        return await self._write(operation)

    def _now(self) -> int:
        return stored(self.clock.now())

    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        """Store jobs; see `Broker.enqueue`."""
        return list(await self._write(Joint(self._store, jobs))) if jobs else []

    def _store(self, tx: Transaction, jobs: Sequence[Job]) -> list[str]:
        return enqueueing.store(tx, self._now(), jobs)

    def enqueue_on(self, jobs: Sequence[Job]) -> Routine[list[str]]:
        """Store jobs on a caller's connection; see `SqlStore.enqueue_on`."""
        return lambda execute: callers.enqueue(execute, self.path, self._now(), jobs)

    def settle_on(self, session: str, lease: Lease, outcome: Outcome) -> Routine[bool]:
        """Record an outcome on a caller's connection; see `SqlStore.settle_on`."""
        return lambda execute: callers.settle(execute, self.path, self._now(), session, lease, outcome)

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """A connection with a transaction begun; see `SqlStore.transaction`. It holds the right to write until its end."""
        shared = self.opened.here()
        with shared.lender.lent() as connection:
            yield connection
        shared.ringer.ring(work=True, ended=True)

    @asynccontextmanager
    async def atransaction(self) -> AsyncGenerator[sqlite3.Connection]:
        """The same for coroutines; its statements run on the event loop."""
        shared = self.opened.here()
        async with shared.lender.alent() as connection:
            yield connection
        shared.ringer.ring(work=True, ended=True)

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncGenerator[SqliteSession]:
        """Open a session; see `Broker.session`."""
        shared = self.opened
        ear = Ear(shared.database, "w")
        session = SqliteSession(shared, self.clock, uuid4().hex, worker, ear)
        try:
            await session.enter()
            try:
                yield session
            finally:
                await session.leave()
        finally:
            ear.close()

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        """Records by id."""
        return await self._read(lambda tx: reading.get(tx, ids))

    async def find(self, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
        """Records that match; see `Store.find`."""
        if filter.text is None:
            return await self._read(lambda tx: reading.records(tx, reading.matches(tx, filter, limit, after)))
        candidates = await self._read(lambda tx: reading.matches(tx, filter, -1, after))
        found: list[Record] = []
        for start in range(0, len(candidates), reading.PAGE):
            page = await self._read(partial(reading.mentioning, ns=candidates[start : start + reading.PAGE], sought=filter.text))
            found += [each for each in page if filter.state in (None, each.state)]  # some have gone on since
            if len(found) >= limit:
                break
        return found[:limit]

    async def counts(self) -> dict[str, dict[State, int]]:
        """Numbers by queue and state."""
        return await self._read(reading.counts)

    async def cancel(self, ids: Sequence[str]) -> set[str]:
        """Cancel jobs; see `Store.cancel`."""
        return await self._change(lambda tx, now: cancelling.cancel(tx, now, ids))

    async def retry(self, ids: Sequence[str], payload: bytes | None = None) -> set[str]:
        """Revive jobs; see `Store.retry`."""
        return await self._change(lambda tx, now: control.retry(tx, now, ids, payload))

    async def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete jobs; see `Store.delete`."""
        return await self._change(lambda tx, now: control.delete(tx, now, ids))

    async def pause(self, queue: str) -> None:
        """Pause a queue."""
        await self._write(lambda tx: tx.do("pause_queue", queue=queue))

    async def resume(self, queue: str) -> None:
        """Resume a queue."""
        await self._write(lambda tx: _resume(tx, queue))

    async def paused(self) -> set[str]:
        """The paused queues."""
        return await self._read(reading.paused)

    async def finished(self, ids: Sequence[str], timeout: float) -> dict[str, Record]:
        """Wait for jobs to end; see `Store.finished`."""
        if self._awaited is None:
            self._awaited = Awaited(self.opened)
        deadline = monotonic() + timeout  # real time also under a test's clock: it is the caller who waits
        while True:
            with self._awaited.watching(ids) as ends:
                records = await self.get(ids)
                unfinished = [ends[id] for id, record in records.items() if not record.state.terminal]
                left = deadline - monotonic()
                if left <= 0 or not unfinished:
                    return {id: record for id, record in records.items() if record.state.terminal}
                done, _ = await asyncio.wait(unfinished, timeout=left)
                for end in done:
                    end.result()

    async def standing(self, id: str) -> Standing | None:
        """The facts about one job."""
        return await self._read(lambda tx: reading.standing(tx, id, self.clock.now()))

    async def schedules(self) -> list[ScheduleRecord]:
        """All schedules, by name."""
        return await self._read(planning.records)

    async def schedule(self, schedule: Schedule, next_at: datetime | None) -> None:
        """Store a dynamic schedule."""
        await self._write(lambda tx: planning.put(tx, schedule, next_at, declared=False))

    async def unschedule(self, name: str) -> bool:
        """Remove a schedule."""
        return await self._write(lambda tx: planning.remove(tx, name))

    async def pause_schedule(self, name: str, paused: bool, next_at: datetime | None = None) -> bool:
        """Pause or resume a schedule."""
        return await self._write(lambda tx: planning.pause(tx, name, next_at, paused=paused))

    async def fire(self, name: str, job: Job) -> str | None:
        """Enqueue an extra job of a schedule."""
        return await self._write(lambda tx: planning.fire(tx, self._now(), name, job))

    async def limits(self, limit: int = 1_000, after: str | None = None, key: str | None = None) -> list[LimitRecord]:
        """What keys allow, and who holds them."""
        now = self._now()
        return await self._read(lambda tx: gating.page(tx, now, limit, after, key))

    async def set_limit(self, key: str, change: LimitChange) -> None:
        """Change what a key allows."""
        await self._write(lambda tx: _set_limit(tx, self._now(), key, change))

    async def open_batch(self, id: str, name: str, callbacks: Sequence[Job]) -> None:
        """Begin a batch."""
        await self._write(lambda tx: enqueueing.begin_batch(tx, self._now(), id, name, callbacks))

    async def seal_batch(self, id: str) -> bool:
        """Let no more jobs come from outside."""
        return await self._change(lambda tx, _: tallies.seal(tx, id))

    async def stop(self, kind: TallyKind, id: str) -> bool:
        """Cancel all jobs of a workflow or batch, of many a piece after the other; see `Store.stop`."""
        if not await self._change(lambda tx, now: tallies.stop(tx, now, kind, id)):
            return False
        await self._finish_stop(kind, id)
        return True

    async def _finish_stop(self, kind: TallyKind, id: str) -> None:
        while await self._change(lambda tx, now: tallies.go_on_stopping(tx, now, kind, id)):
            pass

    async def tallies(self, kind: TallyKind, ids: Sequence[str] | None = None, limit: int = 100, after: str | None = None) -> list[Tally]:
        """Workflows or batches; see `Store.tallies`."""
        return await self._read(lambda tx: tallies.tallies(tx, kind, ids, limit, after))

    async def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first."""
        return await self._read(reading.sessions)

    async def inspect(self) -> Facts:
        """What `doctor` judges by."""
        facts = await self._read(lambda tx: reading.facts(tx, self.clock.now(), file.sqlite_version(self._driver)))
        return replace(facts, place=str(self.opened.database.path), notes=self._notes())

    def _notes(self) -> tuple[tuple[Literal["error", "warning", "info"], str, str], ...]:
        notes: list[tuple[Literal["error", "warning", "info"], str, str]] = [_durability(self._synchronous)]
        log = self.opened.database.checkpointer.log_bytes()
        if log >= LARGE_LOG_BYTES:
            advice = "It is emptied while nobody reads; a transaction that is open for long, here or in another program, keeps it growing."
            notes.append(("info", f"the write-ahead log holds {log / 1_048_576:,.0f} MiB", advice))
        version = file.sqlite_version(self._driver)
        if tuple(map(int, version.split("."))) < FIXED:  # Offload lets one process at a time checkpoint; others do not know of that
            notes.append(("info", f"SQLite {version} is safe here as long as only Offload writes to this file", ""))
        return tuple(notes)

    async def migrate(self) -> tuple[int, int]:
        """Bring the schema up to date, as opening does already; so both versions of an open one are the newest."""
        if self._shared is not None:
            return await asyncio.to_thread(self.opened.database.prepare)
        path = await asyncio.to_thread(self.path.resolve)
        return await asyncio.to_thread(prepare, path, self._driver)


def _set_limit(tx: Transaction, now: int, key: str, change: LimitChange) -> None:
    moves = Moves(tx, now)
    moves.change(key, change)
    moves.write()
    tx.work = True


def _durability(synchronous: str) -> tuple[Literal["info"], str, str]:
    if synchronous == "full":
        return ("info", "every commit is on disk before enqueue returns (synchronous=full)", "")
    advice = "Leave ?synchronous=normal out of the URL to lose nothing."
    return ("info", "a power cut can lose the last commits (synchronous=normal)", advice)


def _resume(tx: Transaction, queue: str) -> None:
    tx.do("resume_queue", queue=queue)
    tx.work = True
