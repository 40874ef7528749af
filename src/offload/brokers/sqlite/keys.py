"""Who holds a unique key, who comes after, and what becomes of them when it is given up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from offload.brokers.sqlite.gating import Past
from offload.brokers.sqlite.moves import Moves
from offload.brokers.sqlite.rows import jobs_by_number, optional_stored, seconds, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.job import Job, UniqueKey, keys_of

ALL_KEYS = ("started", "finished", "time")
"""What a key may cover: given up by who is deleted."""


class Hold(NamedTuple):
    """A taken key."""

    n: int
    holder: str
    until: str
    frees_at: int | None
    successor: int | None


def hold_row(n: int, job: Job, unique: UniqueKey) -> tuple[str, int, str, str, int | None]:
    """The row of `uniques` by which `job` holds a key."""
    if isinstance(unique.until, str):
        return (unique.key, n, job.id, unique.until, None)
    return (unique.key, n, job.id, "time", stored(job.enqueued_at) + seconds(unique.until))


def held(tx: Transaction, key: str, now: int) -> Hold | None:
    """Who holds `key`, None when it is free; one whose time is over is free."""
    row = tx.row("hold", key=key)
    hold = None if row is None else Hold(*row)
    if hold is not None and hold.frees_at is not None and now >= hold.frees_at:
        tx.do("drop_hold", key=key)
        return None
    return hold


def take(tx: Transaction, n: int, job: Job, uniques: Sequence[UniqueKey]) -> None:
    """Give free keys to a job."""
    if uniques:
        tx.add("add_holds", [hold_row(n, job, unique) for unique in uniques])


def give_up(tx: Transaction, now: int, n: int, job: Job, until: Sequence[str], moves: Moves) -> None:
    """Free the keys of `job` that cover the state which just ended; a successor takes over, its move is added to `moves`."""
    for unique in keys_of(job):
        hold = held(tx, unique.key, now)
        if hold is None:
            continue
        if hold.successor == n:
            tx.do("set_successor", key=unique.key, successor=None)
        elif hold.n == n and hold.until in until:
            tx.do("drop_hold", key=unique.key)
            if hold.successor is not None:
                _succeed(tx, now, hold.successor, unique.key, moves)


def _succeed(tx: Transaction, now: int, n: int, key: str, moves: Moves) -> None:
    job = jobs_by_number(tx, [n])[n].job()
    blocked: str | None = None
    for unique in keys_of(job):
        hold = held(tx, unique.key, now)
        if hold is None and unique.key == key:
            take(tx, n, job, [unique])
        elif hold is not None and hold.n != n:
            blocked = hold.holder
    if blocked is None:
        tx.do("drop_waiting", ns=text([n]))
        moves.join(n, job, Past())
        moves.place(n, job, Past(), optional_stored(job.run_at))
    else:
        tx.do("set_behind", n=n, behind=blocked)


def any_held(tx: Transaction, now: int, uniques: Sequence[UniqueKey]) -> bool:
    """Whether any of these keys is taken."""
    return any(held(tx, unique.key, now) is not None for unique in uniques)
