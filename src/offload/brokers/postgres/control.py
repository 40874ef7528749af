"""What a person does to jobs, but for cancelling: retry, delete."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from offload.broker import Work
from offload.brokers.postgres.cancelling import Turn, in_turn
from offload.brokers.postgres.endings import drop_expiring, forget
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.moves import Moves, take_out
from offload.brokers.postgres.rows import JobColumns, extra_text
from offload.brokers.postgres.work import Transaction, text
from offload.gates import gated, holds_on
from offload.job import Job, State, UniqueKey, keys_of

ALL_KEYS = ("started", "finished", "time")
_numbers = msgspec.json.Decoder(list[int]).decode
_REVIVABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


def retry(tx: Transaction, ids: Sequence[str], payload: bytes | None) -> Work[set[str]]:
    """Revive jobs; see `Store.retry`."""
    return {row.id for row in (yield from in_turn(tx, ids, lambda rows: _revive(tx, rows, payload)))}


def _revive(tx: Transaction, rows: Sequence[JobColumns], payload: bytes | None) -> Work[Turn]:
    rows = [row for row in rows if row.state in _REVIVABLE]
    keys = Keys(tx)
    yield from keys.lock(row.job() for row in rows)
    rows = [row for row in rows if not keys.any_held(_wanted(row.job()))]
    taken = yield from take_out(tx, rows)
    revived = [row for row in rows if row.n in taken]
    if revived:
        yield from tx.post("drop_progress", ns=text([row.n for row in revived]))
        moves = Moves(tx.now)
        extras: list[tuple[int, str | None]] = []
        for row in revived:
            old = row.job()
            keys.take(row.n, old, _wanted(old))
            new = replace(old, run_at=None, expires_at=None)
            extras.append((row.n, None if row.extra is None else extra_text(new)))
            if gated(old):
                moves.seated({row.n: (yield from _seat(tx, row, old))})
            moves.place(row.n, new, taken[row.n]._replace(attempt=0, crashes=0), None)
        yield from tx.post("revive_jobs", extras=text(extras), payload=None if payload is None else payload.decode())
        yield from keys.write()
        yield from moves.write(tx)
    return Turn(revived, [row for row in rows if row.n not in taken])


def _seat(tx: Transaction, row: JobColumns, job: Job) -> Work[int]:
    """The place in lanes of a job that begins anew; who kept its turn keeps its place as well."""
    if row.state is State.DEAD and holds_on(job):
        return row.seat
    (seat,) = _numbers((yield from tx.value("take_numbers", count=1)))
    yield from tx.post("note_seats", seats=text({row.n: seat}))
    return seat


def _wanted(job: Job) -> list[UniqueKey]:
    """The keys that a job takes again."""
    return [unique for unique in keys_of(job) if unique.until in ("started", "finished")]


def delete(tx: Transaction, ids: Sequence[str]) -> Work[set[str]]:
    """Delete jobs; see `Store.delete`."""
    return {row.id for row in (yield from in_turn(tx, ids, lambda rows: _delete(tx, rows)))}


def _delete(tx: Transaction, rows: Sequence[JobColumns]) -> Work[Turn]:
    rows = [row for row in rows if row.state is not State.RUNNING]
    keys = Keys(tx)
    yield from keys.lock(row.job() for row in rows)
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
        tx.ended = True
    return Turn(deleted, [row for row in rows if row.n not in taken])
