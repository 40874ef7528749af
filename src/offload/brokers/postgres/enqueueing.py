"""Stores jobs: at once where nothing stands in their way, one by one where ids or keys may be taken."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple, assert_never

import msgspec
from msgspec.structs import replace

from offload.broker import Work
from offload.brokers.postgres import locking, tallies
from offload.brokers.postgres.books import related
from offload.brokers.postgres.cancelling import cancel
from offload.brokers.postgres.database import Database
from offload.brokers.postgres.endings import COVERED
from offload.brokers.postgres.errors import AGAIN
from offload.brokers.postgres.gating import Past
from offload.brokers.postgres.keys import Hold, Keys, hold_of
from offload.brokers.postgres.moves import Moves, put_off, take_out
from offload.brokers.postgres.newcomers import Newcomers
from offload.brokers.postgres.rows import JobColumns, extra_text, job_row, jobs_by_number, optional_stored, stored
from offload.brokers.postgres.work import Doubt, Transaction, text
from offload.errors import BrokerError, BrokerUnusable, IdConflict, UniqueConflict
from offload.gates import gated
from offload.job import Job, State, UniqueKey, keys_of

MOST_TRIES = 10
_NOT_STARTED = frozenset({State.READY, State.SCHEDULED, State.WAITING})


class Meant(NamedTuple):
    """What a job of a known id must have in common with that one."""

    task: str
    payload: str
    workflow: str | None
    batch: str | None
    callback: str | None


_known = msgspec.json.Decoder(list[tuple[str, Meant]]).decode
_ids = msgspec.json.Decoder(list[tuple[int, str]]).decode
_numbers = msgspec.json.Decoder(list[int]).decode


def store_new(tx: Transaction, jobs: Sequence[Job], *, strict: bool) -> Work[bool]:
    """Store jobs by one statement, if all are as most are. False, and nothing stored, if not.

    Most belong to no workflow or batch, pass no gates and take no turns, and their ids and keys are taken to be free. Where another
    transaction takes one just then, the statement fails if `strict`; else some are stored, and Doubt is raised.
    """
    if any(related(job) or _comes_in_turn(job, tx.now) for job in jobs):
        return False
    holds: list[tuple[str, int, str, str, int | None]] = []
    for index, job in enumerate(jobs, start=1):
        if job.unique is not None or job.schedule is not None:
            for unique in keys_of(job):
                hold = hold_of(0, job, unique)
                holds.append((unique.key, index, hold.holder, hold.until, hold.frees_at))
    holds.sort()
    rows = text([job_row(job) for job in jobs])
    count = len(jobs) + len(holds)
    if strict and not holds and all(job.run_at is None and job.expires_at is None for job in jobs):
        number = yield from tx.value("add_ready", jobs=rows, now=tx.now, channel=tx.channel)
    else:
        name = "add_new_strict" if strict else "add_new"
        number = yield from tx.value(name, jobs=rows, holds=text(holds), now=tx.now, channel=tx.channel, joint=tx.joint)
    if 0 < number < count:
        raise Doubt
    return number == count


def _comes_in_turn(job: Job, now: int) -> bool:
    """Whether a job has to come to its gates, or to a line where keys take turns."""
    return (gated(job) or job.fair_by is not None) and (job.run_at is None or stored(job.run_at) <= now)


async def enqueue(database: Database, jobs: Sequence[Job]) -> list[str]:
    """Store jobs in a transaction of their own; tried again while the server is away, for as long as its address says."""
    deadline = monotonic() + database.address.timeout
    wait = 0.05
    keyed = any(job.unique is not None or job.schedule is not None or related(job) for job in jobs)
    while True:
        try:
            async with asyncio.timeout(max(deadline - monotonic(), 0.1)):
                if not keyed:
                    return await _enqueue(database, jobs)
                async with database.keyed:
                    return await _enqueue(database, jobs)
        except BrokerUnusable:
            raise
        except BrokerError:
            if monotonic() >= deadline:
                raise
        except TimeoutError as error:
            who = ": a transaction open for long may hold the unique key, workflow or batch" if keyed else ""
            words = (
                f"no answer for {database.address.timeout:g} s{who}; the jobs may be stored all the same, and to enqueue them again does "
                "no harm"
            )
            raise BrokerError(f"{database.address.place}: {words}") from error
        await asyncio.sleep(max(min(wait * random.uniform(0.5, 1.0), deadline - monotonic()), 0.0))
        wait = min(2 * wait, 1.0)


async def _enqueue(database: Database, jobs: Sequence[Job]) -> list[str]:
    if await _enqueue_new(database, jobs):
        return [job.id for job in jobs]
    return await database.run(lambda tx: store(tx, jobs))


async def _enqueue_new(database: Database, jobs: Sequence[Job]) -> bool:
    try:
        return await database.step(lambda tx: store_new(tx, jobs, strict=True))
    except BrokerError as error:
        if isinstance(error.__cause__, AGAIN):
            return False
        raise


def enqueue_on(tx: Transaction, jobs: Sequence[Job]) -> Work[list[str]]:
    """Store jobs in a transaction of the caller's, which goes on whatever others do meanwhile."""
    if not jobs:
        return []
    tx.joint = True
    for attempt in range(MOST_TRIES):
        yield from tx.post("savepoint")
        try:
            if attempt == 0 and (yield from store_new(tx, jobs, strict=False)):
                ids = [job.id for job in jobs]
            else:
                ids = yield from store(tx, jobs, joint=True)
            yield from tx.tell()
        except Doubt:
            yield from tx.post("rollback_to_savepoint")
            tx.undone()
        else:
            yield from tx.post("release_savepoint")
            return ids
    raise BrokerError(f"other transactions took ids or keys of these jobs {MOST_TRIES} times; try again")


def open_batch(tx: Transaction, id: str, name: str, callbacks: Sequence[Job]) -> Work[None]:
    """Begin a batch, unless there is one of this id."""
    if not (yield from tallies.begin(tx, [("batch", id, name)])):
        return
    count = tx.books.counts["batch", id]
    assert count is not None
    count.callbacks = {job.callback: job.id for job in callbacks if job.callback is not None}
    tx.books.touched.add(count.key)
    yield from store(tx, callbacks)


def store(tx: Transaction, jobs: Sequence[Job], *, joint: bool = False, adder: Job | None = None) -> Work[list[str]]:
    """Store jobs in order; returns the ids that stand for them. Raises IdConflict, UniqueConflict, BatchClosed, ParentNotFound.

    `adder` is the job that adds them by its success.

    Where the transaction is a caller's, `joint`, it may be open for long, and others must not wait for the gates of its jobs, or for
    their lines where keys take turns. So these come there only once it was committed.
    """
    if not jobs:
        return []
    storing = Storing(tx, joint=joint, adder=adder)
    yield from storing.begin(jobs)
    ids: list[str] = []
    for job in jobs:
        id = yield from storing.store(job)
        ids.append(id)
    yield from storing.end()
    return ids


def meant(job: Job) -> Meant:
    """What that is of a job."""
    return Meant(job.task, job.payload.decode(), None if job.workflow is None else job.workflow.id, job.batch, job.callback)


class Storing:
    """Stores jobs one by one, as far as they may touch each other; what they become is written set by set."""

    def __init__(self, tx: Transaction, *, joint: bool, adder: Job | None) -> None:
        self._tx = tx
        self._joint = joint
        self._adder = adder
        self._newcomers = Newcomers(tx)
        self._keys = Keys(tx)
        self._jobs: Sequence[Job] = ()
        self._moves = Moves(tx.now)
        self._known: dict[str, Meant] = {}
        self._left = 0
        self._numbers: list[int] = []
        """Taken for what is still to be stored; void once another job took a later place."""
        self._added: dict[int, Job] = {}
        self._waiting: list[tuple[int, str]] = []

    def begin(self, jobs: Sequence[Job]) -> Work[None]:
        """Learn what is there already."""
        known = yield from self._tx.value("known", ids=text([job.id for job in jobs]))
        self._known = dict(_known(known))
        yield from self._keys.lock_for_new(jobs)
        yield from self._newcomers.begin(jobs, self._known, joint=self._joint)
        self._jobs = jobs
        self._left = len(jobs)

    def store(self, job: Job) -> Work[str]:
        """Store one; returns the id that stands for it."""
        self._left -= 1
        about = meant(job)
        known = self._known.get(job.id)
        if known is not None:
            if known != about:
                raise IdConflict(job.id)
            return job.id
        behind: str | None = None
        for unique in keys_of(job):
            hold = self._keys.held(unique.key)
            if hold is not None and job.overlap == "replace" and unique.key == f"schedule:{job.schedule}":
                yield from self._cancel(hold.holder)
                hold = self._keys.held(unique.key)
            if hold is None:
                continue
            stand_in = yield from self._conflict(hold, unique, job)
            if stand_in is not None:
                return stand_in
            behind = hold.holder
        yield from self._add(job, behind)
        self._known[job.id] = about
        return job.id

    def _cancel(self, holder: str) -> Work[None]:
        """Cancel the holder of a key, and look anew at who holds what."""
        yield from self._flush()
        yield from cancel(self._tx, [holder])
        self._numbers = []
        self._keys = Keys(self._tx)
        yield from self._keys.lock_for_new(self._jobs)

    def _add(self, job: Job, behind: str | None) -> Work[None]:
        if not self._numbers:
            self._numbers = _numbers((yield from self._tx.value("take_numbers", count=self._left + 1)))[::-1]
        n = self._numbers.pop()
        self._added[n] = job
        for unique in keys_of(job):
            if self._keys.held(unique.key) is None:
                self._keys.take(n, job, [unique])
            else:
                self._keys.succeed(unique.key, n)
        if (related(job) or job.callback is not None) and self._newcomers.add(n, job, behind, self._adder):
            yield from self._keys.give_up(n, job, COVERED, self._moves)
        elif behind is not None:
            self._waiting.append((n, behind))

    def _conflict(self, hold: Hold, unique: UniqueKey, job: Job) -> Work[str | None]:
        """The id that stands for `job`, or None when it may wait behind the holder."""
        match unique.on_conflict:
            case "skip":
                return hold.holder
            case "raise":
                raise UniqueConflict(unique.key, hold.holder)
            case "replace" | "debounce":
                yield from self._replace(hold.n, job, move=unique.on_conflict == "debounce")
                return hold.holder
            case "keep_last" if hold.until != "finished":
                return hold.holder  # nothing would tell a successor that the key is free
            case "keep_last":
                if hold.successor is None:
                    return None
                yield from self._replace(hold.successor, job, move=False)
                ((_, id),) = _ids((yield from self._tx.value("ids", ns=text([hold.successor]))))
                return id
            case _:
                assert_never(unique.on_conflict)

    def _replace(self, n: int, job: Job, *, move: bool) -> Work[None]:
        """Give the job `n`, if it has not started, the payload of `job`, and its time where it is to `move`."""
        yield from self._flush()
        row = (yield from jobs_by_number(self._tx, [n])).get(n)
        if row is None or row.state not in _NOT_STARTED:
            return
        old = row.job()
        new = replace(old, payload=job.payload, run_at=job.run_at if move else old.run_at)
        due = optional_stored(new.run_at) if move else row.due
        standing = row.state is not State.WAITING or row.lane is not None or row.arrives
        later = self._joint and gated(old) and not row.arrives and row.state is not State.SCHEDULED
        moving = move and standing and not later
        past = (yield from self._taken(row, old)) if moving else Past()
        self._known[row.id] = meant(new)
        extra = row.extra if new.run_at == old.run_at else extra_text(new)
        yield from self._tx.post("replace_job", n=n, payload=new.payload.decode(), due=due, extra=extra)
        if moving and self._joint and _comes_in_turn(new, self._tx.now):
            yield from put_off(self._tx, [(n, None)])
        elif moving:
            self._moves.seated({n: row.seat})
            if row.lane is not None:
                self._moves.withdraw(n, old)
            self._moves.place(n, new, past, due, joins=row.state is State.SCHEDULED)
            yield from self._write_moves()
            self._numbers = []
        elif move and standing:
            yield from put_off(self._tx, [(n, due or self._tx.now)])

    def _taken(self, row: JobColumns, job: Job) -> Work[Past]:
        """Take a job out of where it stands."""
        if not self._joint:
            yield from locking.lock(self._tx, locking.gates_of([job]))
        taken = yield from take_out(self._tx, [row])
        if row.n not in taken:
            raise Doubt
        return taken[row.n]

    def _write_moves(self) -> Work[None]:
        yield from self._moves.write(self._tx)
        self._moves = Moves(self._tx.now)

    def _flush(self) -> Work[None]:
        """Write what was decided so far, so that it can be read."""
        added, self._added = self._added, {}
        if added:
            rows = [(n, job_row(job), None if job.workflow is None else job.workflow.id, job.batch) for n, job in added.items()]
            if len(rows) != (yield from self._tx.value("add_jobs", jobs=text(rows))):
                raise Doubt
        waiting, self._waiting = self._waiting, []
        if waiting:
            yield from self._tx.post("add_waiting", jobs=text(waiting))
        ended, elsewhere = self._newcomers.ended, self._newcomers.pending.union(n for n, _ in waiting)
        yield from self._newcomers.write()
        yield from self._keys.write()  # before anybody comes to gates: where another has just taken a key, this waits for its commit
        if added:
            yield from self._place({n: job for n, job in added.items() if n not in ended}, elsewhere)

    def _place(self, added: dict[int, Job], elsewhere: set[int]) -> Work[None]:
        """Put those into their lines that do not stand elsewhere."""
        comers = {n: job for n, job in added.items() if n not in elsewhere and _comes_in_turn(job, self._tx.now)}
        others = [n for n in added if n not in elsewhere and n not in comers]
        if others:
            yield from self._tx.post("place_new", ns=text(others), now=self._tx.now)
        if self._joint and comers:
            yield from put_off(self._tx, [(n, None) for n in comers])
        elif comers:
            yield from locking.lock(self._tx, [*locking.gates_of(comers.values()), *locking.lines_of(comers.values())])
            for n, job in comers.items():
                self._moves.arrive(n, job)
            yield from self._write_moves()
        expiring = [(stored(job.expires_at), n) for n, job in added.items() if job.expires_at is not None]
        if expiring:
            yield from self._tx.post("add_expiring", pairs=text(expiring))
        self._tx.work = True

    def end(self) -> Work[None]:
        """Write the rest."""
        yield from self._flush()
        yield from self._newcomers.end()
