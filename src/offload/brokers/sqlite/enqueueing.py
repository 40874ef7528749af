"""Stores jobs: at once where nothing stands in their way, one by one where ids or keys may be taken."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import assert_never

from msgspec.structs import replace

from offload.brokers.sqlite.cancelling import cancel
from offload.brokers.sqlite.endings import Ending, finish
from offload.brokers.sqlite.families import arrive, connect, wait
from offload.brokers.sqlite.keys import Hold, held, hold_row, take
from offload.brokers.sqlite.moves import NO_PAST, Moves, past_of, take_out
from offload.brokers.sqlite.rows import extra_text, job_row, jobs_by_number, member_row, optional_stored, stored, text
from offload.brokers.sqlite.tallies import check_parents, incomplete, join, open_batch, settle_up
from offload.brokers.sqlite.transaction import Doubt, Transaction
from offload.errors import IdConflict, OffloadError, UniqueConflict
from offload.gates import gated
from offload.job import Job, State, UniqueKey, keys_of

_NOT_STARTED = frozenset({State.READY, State.SCHEDULED, State.WAITING})


def store(tx: Transaction, now: int, jobs: Sequence[Job]) -> list[str]:
    """Store jobs in order; returns the ids that stand for them. Raises what `Broker.enqueue` does when careful."""
    if not jobs:
        return []
    if tx.careful:
        ids = _store_with_care(tx, now, jobs)
        settle_up(tx, now)
        return ids
    if any(job.workflow is not None or job.batch is not None for job in jobs):
        _store_new_members(tx, now, jobs)
        settle_up(tx, now)
    else:
        _store_new(tx, now, jobs)
    return [job.id for job in jobs]


def add(tx: Transaction, now: int, jobs: Sequence[Job], adder: Job) -> None:
    """Store the jobs that one adds by its success; what they change for others is settled with its end. Raises what refuses them."""
    if _all_new(tx, jobs):
        with suppress(Doubt, OffloadError):  # the careful run meets it again
            tx.attempt(lambda: _store_new_members(tx, now, jobs, adder))
            return
    tx.attempt(lambda: _store_with_care(tx, now, jobs, adder))


def _all_new(tx: Transaction, jobs: Sequence[Job]) -> bool:
    """Whether no id and no key of these jobs can be taken."""
    ids = list({job.id for job in jobs})
    return len(ids) == len(jobs) and not any(keys_of(job) for job in jobs) and tx.value("numbers", ids=text(ids)) == "[]"


def begin_batch(tx: Transaction, now: int, id: str, name: str, callbacks: Sequence[Job]) -> None:
    """Begin a batch, unless there is one of this id."""
    if open_batch(tx, now, id, name, callbacks):
        for job in callbacks:
            _store(tx, now, job)
    settle_up(tx, now)


def _store_with_care(tx: Transaction, now: int, jobs: Sequence[Job], adder: Job | None = None) -> list[str]:
    growing = incomplete(tx, jobs)
    ids = [_store(tx, now, job, adder) for job in jobs]
    check_parents(tx, jobs, growing)
    return ids


def _store_new_members(tx: Transaction, now: int, jobs: Sequence[Job], adder: Job | None = None) -> None:
    """As `_store_new`, where some belong to workflows or batches. Raises Doubt where one is to end at once."""
    growing = incomplete(tx, jobs)
    if any(stopped is not None for stopped in [join(tx, now, job, adder) for job in jobs]):
        raise Doubt
    first = tx.numbers(len(jobs))
    last = first + len(jobs) - 1
    numbered = list(enumerate(jobs, start=first))
    tx.add("add_members", [member_row(n, job) for n, job in numbered])
    ties = connect(tx, numbered)
    if any(tie.why is not None for tie in ties.values()):
        raise Doubt
    pending = {n for n, tie in ties.items() if tie.open}
    called = {n for n, job in numbered if job.callback is not None}
    wait(tx, "parents", [(n, NO_PAST) for n in sorted(pending - called)])
    wait(tx, "batch", [(n, NO_PAST) for n in sorted(called)])
    if any(gated(job) or job.fair_by is not None for job in jobs):
        _arrive(tx, now, [(n, job) for n, job in numbered if n not in pending and n not in called])
    else:
        tx.do("ready_members", first=first, last=last, now=now)
    if any(job.run_at is not None for job in jobs):
        tx.do("schedule_members", first=first, last=last, now=now)
    _note_expiry(tx, first, jobs)
    _hold(tx, first, jobs)
    check_parents(tx, jobs, growing)
    tx.work = True


def _store_new(tx: Transaction, now: int, jobs: Sequence[Job]) -> None:
    """Jobs whose ids and keys are taken to be free: the constraints of the tables say so if not."""
    first = tx.numbers(len(jobs))
    last = first + len(jobs) - 1
    tx.add("add_jobs", [job_row(n, job) for n, job in enumerate(jobs, start=first)])
    if any(gated(job) or job.fair_by is not None for job in jobs):
        _arrive(tx, now, list(enumerate(jobs, start=first)))
    else:
        tx.do("ready_new", first=first, last=last, now=now)
    if any(job.run_at is not None for job in jobs):
        tx.do("schedule_new", first=first, last=last, now=now)
    _note_expiry(tx, first, jobs)
    _hold(tx, first, jobs)
    tx.work = True


def _hold(tx: Transaction, first: int, jobs: Sequence[Job]) -> None:
    """Give their keys to new jobs."""
    holds = [hold_row(n, job, unique) for n, job in enumerate(jobs, start=first) for unique in keys_of(job)]
    if holds:
        tx.add("add_holds", holds)


def _arrive(tx: Transaction, now: int, jobs: Sequence[tuple[int, Job]]) -> None:
    """To their ready lines, or to their lanes, go those of the jobs just added whose time has come."""
    moves = Moves(tx, now)
    moves.arrive([(n, job) for n, job in jobs if job.run_at is None or stored(job.run_at) <= now])
    moves.write()


def _note_expiry(tx: Transaction, first: int, jobs: Sequence[Job]) -> None:
    expiring = [(stored(job.expires_at), n) for n, job in enumerate(jobs, start=first) if job.expires_at is not None]
    if expiring:
        tx.add("add_expiring", expiring)


def _store(tx: Transaction, now: int, job: Job, adder: Job | None = None) -> str:
    known = tx.row("known", id=job.id)
    if known is not None:
        if known != (job.task, job.payload.decode(), job.batch, job.callback, None if job.workflow is None else job.workflow.id):
            raise IdConflict(job.id)
        return job.id
    behind: str | None = None
    for unique in keys_of(job):
        hold = held(tx, unique.key, now)
        if hold is not None and job.overlap == "replace" and unique.key == f"schedule:{job.schedule}":
            cancel(tx, now, [hold.holder])
            hold = held(tx, unique.key, now)
        if hold is None:
            continue
        stand_in = _conflict(tx, now, hold, unique, job)
        if stand_in is not None:
            return stand_in
        behind = hold.holder
    _add(tx, now, job, behind, join(tx, now, job, adder))
    return job.id


def _add(tx: Transaction, now: int, job: Job, behind: str | None, stopped: str | None) -> None:
    """Store a job, which waits `behind` another where that is given, or ends at once where its workflow or batch was `stopped`."""
    n = tx.numbers(1)
    tx.add("add_members", [member_row(n, job)])
    for unique in keys_of(job):
        if held(tx, unique.key, now) is None:
            take(tx, n, job, [unique])
        else:
            tx.do("set_successor", key=unique.key, successor=n)
    _note_expiry(tx, n, [job])
    ties = connect(tx, [(n, job)])
    if stopped is not None:
        moves = Moves(tx, now)
        finish(tx, now, [Ending(n, job, NO_PAST, State.CANCELLED, stopped)], moves)
        moves.write()
    elif behind is not None:
        tx.add("add_waiting", [(n, behind)])
    elif job.callback is not None:
        wait(tx, "batch", [(n, NO_PAST)])
    elif n not in ties or not arrive(tx, now, n, job, ties[n]):
        _take_place(tx, now, n, job)


def _take_place(tx: Transaction, now: int, n: int, job: Job) -> None:
    """A new job that waits for nobody goes where its time and its gates let it."""
    if gated(job) or job.fair_by is not None:
        _arrive(tx, now, [(n, job)])
    else:
        tx.do("ready_new", first=n, last=n, now=now)
    tx.do("schedule_new", first=n, last=n, now=now)
    tx.work = True


def _conflict(tx: Transaction, now: int, hold: Hold, unique: UniqueKey, job: Job) -> str | None:
    """The id that stands for `job`, or None when it may wait behind the holder."""
    match unique.on_conflict:
        case "skip":
            return hold.holder
        case "raise":
            raise UniqueConflict(unique.key, hold.holder)
        case "replace" | "debounce":
            _replace(tx, now, hold.n, job, move=unique.on_conflict == "debounce")
            return hold.holder
        case "keep_last" if hold.until != "finished":
            return hold.holder  # nothing would tell a successor that the key is free
        case "keep_last":
            if hold.successor is None:
                return None
            _replace(tx, now, hold.successor, job, move=False)
            return tx.value("id", n=hold.successor)
        case _:
            assert_never(unique.on_conflict)


def _replace(tx: Transaction, now: int, n: int, job: Job, *, move: bool) -> None:
    """Give the job `n`, if it has not started, the payload of `job`, and its time where it is to `move`."""
    row = jobs_by_number(tx, [n]).get(n)
    if row is None or row.state not in _NOT_STARTED:
        return
    old = row.job()
    new = replace(old, payload=job.payload, run_at=job.run_at if move else old.run_at)
    due = optional_stored(new.run_at) if move else row.due
    tx.do("replace_job", n=n, payload=new.payload.decode(), due=due, extra=row.extra if new.run_at == old.run_at else extra_text(new))
    if move and (row.state is not State.WAITING or row.lane is not None):
        take_out(tx, [row])
        moves = Moves(tx, now)
        moves.seated({n: row.seat})
        if row.lane is not None:
            moves.withdraw(n, old)
        if row.state is State.SCHEDULED:
            moves.join(n, new, past_of(row))
        moves.place(n, new, past_of(row), optional_stored(new.run_at))
        moves.write()
