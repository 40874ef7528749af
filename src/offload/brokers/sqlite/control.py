"""What a person does to jobs: cancel, retry, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from offload.brokers.sqlite.cancelling import cancel_one
from offload.brokers.sqlite.endings import drop_expiring, forget
from offload.brokers.sqlite.keys import any_held, give_up, take
from offload.brokers.sqlite.moves import Moves, past_of, take_out
from offload.brokers.sqlite.rows import extra_text, job_by_id
from offload.brokers.sqlite.transaction import Transaction
from offload.job import State, keys_of

ALL_KEYS = ("started", "finished", "time")
_REVIVABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


def cancel(tx: Transaction, now: int, ids: Sequence[str]) -> set[str]:
    """Cancel jobs; see `Store.cancel`."""
    return _each(ids, lambda id: cancel_one(tx, now, id))


def retry(tx: Transaction, now: int, ids: Sequence[str], payload: bytes | None) -> set[str]:
    """Revive jobs; see `Store.retry`."""
    return _each(ids, lambda id: _revive(tx, now, id, payload))


def delete(tx: Transaction, now: int, ids: Sequence[str]) -> set[str]:
    """Delete jobs; see `Store.delete`."""
    return _each(ids, lambda id: _delete(tx, now, id))


def _each(ids: Sequence[str], act: Callable[[str], bool]) -> set[str]:
    return {id for id in dict.fromkeys(ids) if act(id)}


def _revive(tx: Transaction, now: int, id: str, payload: bytes | None) -> bool:
    row = job_by_id(tx, id)
    if row is None or row.state not in _REVIVABLE:
        return False
    old = row.job()
    wanted = [unique for unique in keys_of(old) if unique.until in ("started", "finished")]
    if any_held(tx, now, wanted):
        return False
    take(tx, row.n, old, wanted)
    take_out(tx, row)
    tx.do("drop_progress", ns=f"[{row.n}]")
    new = replace(old, payload=old.payload if payload is None else payload, run_at=None, expires_at=None)
    tx.do("replace_job", n=row.n, payload=new.payload.decode(), due=None, extra=extra_text(new))
    moves = Moves(now)
    moves.place(row.n, new, past_of(row)._replace(attempt=0, crashes=0), None)
    moves.write(tx)
    return True


def _delete(tx: Transaction, now: int, id: str) -> bool:
    row = job_by_id(tx, id)
    if row is None or row.state is State.RUNNING:
        return False
    job = row.job()
    take_out(tx, row)
    if row.claim == 0:
        drop_expiring(tx, [(row.n, job)])
    forget(tx, [row.n])
    moves = Moves(now)
    give_up(tx, now, row.n, job, ALL_KEYS, moves)
    moves.write(tx)
    tx.ended = True
    return True
