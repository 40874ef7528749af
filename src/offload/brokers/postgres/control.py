"""What a person does to jobs, but for cancelling: retry, delete."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from offload.broker import Work
from offload.brokers.postgres.cancelling import Turn, in_turn
from offload.brokers.postgres.endings import drop_expiring, forget
from offload.brokers.postgres.families import forget_kin, keep_fates, kin_of, seat_of_revived, wait, waiting_in_vain
from offload.brokers.postgres.keys import Keys, taken_back
from offload.brokers.postgres.moves import Moves, take_out
from offload.brokers.postgres.rows import JobColumns, extra_text
from offload.brokers.postgres.work import Transaction, text
from offload.gates import gated
from offload.job import State

ALL_KEYS = ("started", "finished", "time")
_REVIVABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


def retry(tx: Transaction, ids: Sequence[str], payload: bytes | None) -> Work[set[str]]:
    """Revive jobs; see `Store.retry`."""
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
        waits = {row.n for row in revived if row.n in kin and kin[row.n].open}
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
            tx.books.revived(old, row.state)
        yield from tx.post("revive_jobs", extras=text(extras), payload=None if payload is None else payload.decode())
        yield from wait(tx, [(n, taken[n]._replace(attempt=0, crashes=0)) for n in sorted(waits)])
        if kin:
            yield from tx.post("set_felled", ns=text([row.n for row in revived if row.n in kin]), felled=False)
        yield from keys.write()
        yield from moves.write(tx)
    return Turn(revived, [row for row in rows if row.n not in taken])


def delete(tx: Transaction, ids: Sequence[str]) -> Work[set[str]]:
    """Delete jobs; see `Store.delete`."""
    return {row.id for row in (yield from in_turn(tx, ids, lambda rows: _delete(tx, rows)))}


def _delete(tx: Transaction, rows: Sequence[JobColumns]) -> Work[Turn]:
    rows = [row for row in rows if row.state is not State.RUNNING]
    keys = Keys(tx)
    yield from keys.lock(row.job() for row in rows)
    yield from keep_fates(tx, rows)
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
