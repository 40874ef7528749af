"""What a person does to jobs, but for cancelling: retry, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from offload.brokers.sqlite.cancelling import in_turn
from offload.brokers.sqlite.counting import known
from offload.brokers.sqlite.endings import drop_expiring, forget
from offload.brokers.sqlite.families import Child, children, drop_kin, keep_fates, to_take_again, wait, waiting_in_vain
from offload.brokers.sqlite.keys import ALL_KEYS, any_held, give_up, take
from offload.brokers.sqlite.moves import Moves, past_of, take_out
from offload.brokers.sqlite.rows import JobColumns, extra_text, jobs_by_id, text
from offload.brokers.sqlite.tallies import anything_begun, finish_stops, resume
from offload.brokers.sqlite.transaction import Transaction
from offload.gates import gated, holds_on
from offload.job import Job, State

_REVIVABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


def retry(tx: Transaction, now: int, ids: Sequence[str], payload: bytes | None) -> set[str]:
    """Revive jobs; see `Store.retry`."""
    if anything_begun(tx):
        finish_stops(tx, now, [row.job() for row in jobs_by_id(tx, ids).values()])
    return {row.id for row in in_turn(tx, ids, lambda rows: _revive(tx, now, rows, payload))}


def _revive(tx: Transaction, now: int, rows: Sequence[JobColumns], payload: bytes | None) -> Sequence[JobColumns]:
    rows = [row for row in rows if row.state in _REVIVABLE and not any_held(tx, now, to_take_again(row.job()))]
    tied = [row.n for row in rows if row.extra is not None and row.job().parents]
    ties = children(tx, tied) if tied else {}
    vain = waiting_in_vain(tx, [row for row in rows if row.n in ties and ties[row.n].open])
    rows = [row for row in rows if row.n not in ties or (ties[row.n].why is None and row.n not in vain)]
    if not rows:
        return rows
    take_out(tx, rows)
    tx.do("drop_progress", ns=text([row.n for row in rows]))
    moves = Moves(tx, now)
    extras: list[tuple[int, str | None]] = []
    for row in rows:
        old = row.job()
        take(tx, row.n, old, to_take_again(old))
        tx.books.revived(old, row.state)
        resume(tx, old)
        new = replace(old, run_at=None, expires_at=None)
        extras.append((row.n, None if row.extra is None else extra_text(new)))
        kept = row.state is State.DEAD and holds_on(old)
        seat = row.seat if kept else tx.numbers(1)  # who kept its turn keeps its place as well
        moves.seated({row.n: seat})
        if gated(old):
            tx.do("note_seats", seats=text([(row.n, seat)]))
        past = past_of(row)._replace(attempt=0, crashes=0)
        what = _awaited(tx, row, new, ties)
        if what is not None:
            wait(tx, what, [(row.n, past)])
            if kept:  # the parent for whom it waits may itself wait for that turn
                moves.leave(row.n, new, ("turn",))
        else:
            moves.place(row.n, new, past, None)
    tx.do("revive_jobs", extras=text(extras), payload=None if payload is None else payload.decode())
    moves.write()
    return rows


def _awaited(tx: Transaction, row: JobColumns, job: Job, ties: Mapping[int, Child]) -> str | None:
    """What a revived job waits for, if anything: its parents, or, a callback that has never run, its batch again."""
    if job.callback is not None and row.claim == 0:
        batch = known(tx, [("batch", job.batch or "")])["batch", job.batch or ""]
        if batch is not None:
            tx.books.touch(batch)
            return "batch"
    return "parents" if row.n in ties and ties[row.n].open else None


def delete(tx: Transaction, now: int, ids: Sequence[str]) -> set[str]:
    """Delete jobs; see `Store.delete`."""
    return {row.id for row in in_turn(tx, ids, lambda rows: _delete(tx, now, rows))}


def _delete(tx: Transaction, now: int, rows: Sequence[JobColumns]) -> Sequence[JobColumns]:
    rows = [row for row in rows if row.state is not State.RUNNING]
    if not rows:
        return rows
    moves = Moves(tx, now)
    moves.seated({row.n: row.seat for row in rows})
    for row in rows:
        if row.lane is not None:
            moves.withdraw(row.n, row.job())  # while its row is still there to be found in its lane
    keep_fates(tx, rows)
    take_out(tx, rows)
    drop_expiring(tx, [(row.n, row.job()) for row in rows if row.claim == 0])
    forget(tx, [row.n for row in rows])
    if tied := [row.n for row in rows if row.extra is not None and row.job().parents]:
        drop_kin(tx, tied)
    for row, job in [(row, row.job()) for row in rows]:
        if not row.state.terminal:
            tx.books.deleted(job)
        give_up(tx, now, row.n, job, ALL_KEYS, moves)
        moves.leave(row.n, job)
    moves.write()
    tx.ended = True
    return rows
