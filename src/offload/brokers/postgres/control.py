"""What a person does to jobs, but for cancelling: retry, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from offload.broker import Work
from offload.brokers.postgres import tallies
from offload.brokers.postgres.books import Key, Kin
from offload.brokers.postgres.cancelling import Turn, in_turn
from offload.brokers.postgres.endings import drop_expiring, forget
from offload.brokers.postgres.families import forget_kin, keep_fates, kin_of, note_fallen, seat_of_revived, wait, waiting_in_vain
from offload.brokers.postgres.keys import ALL_KEYS, Keys, taken_back
from offload.brokers.postgres.moves import Moves, take_out
from offload.brokers.postgres.rows import JobColumns, extra_text
from offload.brokers.postgres.work import Transaction, text
from offload.gates import gated, holds_on
from offload.job import State

_REVIVABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


def retry(tx: Transaction, ids: Sequence[str], payload: bytes | None) -> Work[set[str] | None]:
    """Revive jobs; see `Store.retry`. None, and nothing done, while `tallies.catch_up` has something to do for them first."""
    if (yield from tallies.is_behind(tx, ids)):
        return None
    return {row.id for row in (yield from in_turn(tx, ids, lambda rows: _revive(tx, rows, payload)))}


def _revive(tx: Transaction, rows: Sequence[JobColumns], payload: bytes | None) -> Work[Turn]:
    rows = [row for row in rows if row.state in _REVIVABLE]
    keys = Keys(tx)
    yield from keys.lock(row.job() for row in rows)
    kin = yield from kin_of(tx, rows)
    refused = {n for n, each in kin.items() if each.falls}
    refused |= yield from waiting_in_vain(tx, [n for n, each in kin.items() if each.open and not each.falls])
    rows = [row for row in rows if row.n not in refused and not keys.any_held(taken_back(row.job()))]
    taken = yield from take_out(tx, rows)
    revived = [row for row in rows if row.n in taken]
    if revived:
        yield from tx.post("drop_progress", ns=text([row.n for row in revived]))
        moves = Moves(tx.now)
        waits = yield from _waits(tx, revived, kin)
        extras: list[tuple[int, str | None]] = []
        for row in revived:
            old = row.job()
            keys.take(row.n, old, taken_back(old))
            new = replace(old, run_at=None, expires_at=None)
            extras.append((row.n, None if row.extra is None else extra_text(new)))
            if gated(old):
                moves.seated({row.n: (yield from seat_of_revived(tx, row, old))})
            if row.n not in waits:
                moves.place(row.n, new, taken[row.n]._replace(attempt=0, crashes=0), None)
            elif row.state is State.DEAD and holds_on(old):  # the parent for whom it waits may itself wait for that turn
                moves.leave(row.n, old, ("turn",))
            tx.books.revived(old, row.state, by_hand=True)
        yield from tx.post("revive_jobs", extras=text(extras), payload=None if payload is None else payload.decode())
        for what in ("parents", "batch"):
            yield from wait(tx, [(n, taken[n]._replace(attempt=0, crashes=0)) for n in sorted(waits) if waits[n] == what], what)
        yield from note_fallen(tx, [row.n for row in revived if row.n in kin], felled=False)
        yield from keys.write()
        yield from moves.write(tx)
    return Turn(revived, [row for row in rows if row.n not in taken])


def _waits(tx: Transaction, revived: Sequence[JobColumns], kin: Mapping[int, Kin]) -> Work[dict[int, str]]:
    """What revived jobs wait for, if for anything: a callback that has never run waits for its batch again."""
    waits = {row.n: "parents" for row in revived if row.n in kin and kin[row.n].open}
    unclaimed = [(row.n, row.job()) for row in revived if row.claim == 0]
    batches: dict[int, Key] = {n: ("batch", job.batch) for n, job in unclaimed if job.callback is not None and job.batch is not None}
    yield from tallies.lock(tx, batches.values())
    for n, key in batches.items():
        if tx.books.counts[key] is not None:
            waits[n] = "batch"
            tx.books.touched.add(key)
    return waits


def delete(tx: Transaction, ids: Sequence[str]) -> Work[set[str]]:
    """Delete jobs; see `Store.delete`."""
    return {row.id for row in (yield from in_turn(tx, ids, lambda rows: _delete(tx, rows)))}


def _delete(tx: Transaction, rows: Sequence[JobColumns]) -> Work[Turn]:
    rows = [row for row in rows if row.state is not State.RUNNING]
    keys = Keys(tx)
    yield from keys.lock(row.job() for row in rows)
    yield from keep_fates(tx, rows)
    yield from kin_of(tx, [row for row in rows if row.what == "parents"])  # before their places, as do those who tell them of parents
    taken = yield from take_out(tx, rows)
    deleted = [row for row in rows if row.n in taken]
    if deleted:
        yield from drop_expiring(tx, [(row.n, row.job()) for row in deleted if taken[row.n].claim == 0])
        moves = Moves(tx.now)
        moves.seated({row.n: row.seat for row in deleted})
        for row, job in [(row, row.job()) for row in deleted]:
            if row.lane is not None:
                moves.withdraw(row.n, job)
            yield from keys.give_up(row.n, job, ALL_KEYS, moves)
            moves.leave(row.n, job)
        yield from keys.write()
        yield from moves.write(tx)
        yield from forget(tx, [row.n for row in deleted])  # not before: who waits in a lane is found there with its row
        yield from forget_kin(tx, [row.n for row in deleted if row.workflow is not None])
        for row in deleted:
            if not row.state.terminal:
                tx.books.deleted(row.job())
        tx.ended = True
    return Turn(deleted, [row for row in rows if row.n not in taken])
