"""Who holds a unique key, who comes after, and what becomes of them when it is given up.

Locks are taken in one order everywhere: first the keys, sorted, then the jobs' rows in their lines. A claim, which has locked ready
jobs already, takes only those keys that nobody else has locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from offload.broker import Work
from offload.brokers.postgres.moves import Moves, Past
from offload.brokers.postgres.rows import jobs_by_number, optional_stored, seconds, stored
from offload.brokers.postgres.work import Doubt, Transaction, text
from offload.job import Job, UniqueKey, keys_of


class Hold(NamedTuple):
    """A taken key."""

    n: int
    holder: str
    until: str
    frees_at: int | None
    successor: int | None


_names = msgspec.json.Decoder(list[str]).decode
_holds = msgspec.json.Decoder(list[tuple[str, Hold]]).decode


def hold_of(n: int, job: Job, unique: UniqueKey) -> Hold:
    """How `job` holds a key."""
    if isinstance(unique.until, str):
        return Hold(n, job.id, unique.until, None, None)
    return Hold(n, job.id, "time", stored(job.enqueued_at) + seconds(unique.until), None)


class Keys:
    """Keys that this transaction has locked. Changes are gathered and written set by set."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._locked: set[str] = set()
        self._stored: dict[str, Hold] = {}
        self._holds: dict[str, Hold] = {}

    def lock(self, jobs: Iterable[Job]) -> Work[None]:
        """Lock all the keys that these jobs want. Keys that nobody holds cannot be locked: `write` finds out."""
        wanted = sorted({unique.key for job in jobs for unique in keys_of(job)} - self._locked)
        if not wanted:
            return
        self._locked.update(wanted)
        self._note(_holds((yield from self._tx.value("lock_keys", keys=text(wanted)))))

    def try_lock(self, jobs: Iterable[Job]) -> Work[set[str]]:
        """As `lock`, but without waiting. Returns the keys that another transaction has locked."""
        wanted = {unique.key for job in jobs for unique in keys_of(job)} - self._locked
        if not wanted:
            return set()
        taken = _names((yield from self._tx.value("keys_taken", keys=text(sorted(wanted)))))
        self._note(_holds((yield from self._tx.value("lock_keys_if_free", keys=text(sorted(taken))))) if taken else [])
        busy = {key for key in taken if key not in self._stored}
        self._locked |= wanted - busy
        return busy

    def _note(self, holds: Sequence[tuple[str, Hold]]) -> None:
        for key, hold in holds:
            self._stored[key] = hold
            if hold.frees_at is None or self._tx.now < hold.frees_at:
                self._holds[key] = hold

    def held(self, key: str) -> Hold | None:
        """Who holds a locked key, None when it is free."""
        return self._holds.get(key)

    def any_held(self, uniques: Sequence[UniqueKey]) -> bool:
        """Whether any of these locked keys is taken."""
        return any(unique.key in self._holds for unique in uniques)

    def take(self, n: int, job: Job, uniques: Sequence[UniqueKey]) -> None:
        """Give free keys to a job."""
        for unique in uniques:
            self._holds[unique.key] = hold_of(n, job, unique)

    def succeed(self, key: str, n: int | None) -> None:
        """Have a job wait for a key; None: nobody."""
        self._holds[key] = self._holds[key]._replace(successor=n)

    def give_up(self, n: int, job: Job, until: Sequence[str], moves: Moves) -> Work[None]:
        """Free the keys of `job` that cover the state which just ended; a successor takes over, its move is added to `moves`."""
        for unique in keys_of(job):
            hold = self._holds.get(unique.key)
            if hold is None:
                continue
            if hold.successor == n:
                self.succeed(unique.key, None)
            elif hold.n == n and hold.until in until:
                del self._holds[unique.key]
                if hold.successor is not None:
                    yield from self._pass_on(unique.key, hold.successor, moves)

    def _pass_on(self, key: str, n: int, moves: Moves) -> Work[None]:
        job = (yield from jobs_by_number(self._tx, [n]))[n].job()
        yield from self.lock([job])
        blocked: str | None = None
        for unique in keys_of(job):
            hold = self._holds.get(unique.key)
            if hold is None and unique.key == key:
                self.take(n, job, [unique])
            elif hold is not None and hold.n != n:
                blocked = hold.holder
        if blocked is None:
            yield from self._tx.do("drop_waiting", ns=text([n]))
            moves.place(n, job, Past(), optional_stored(job.run_at))
        else:
            yield from self._tx.do("set_behind", n=n, behind=blocked)

    def write(self) -> Work[None]:
        """Write what changed. Raises Doubt when another transaction has taken a key meanwhile that was free."""
        gone = sorted(self._stored.keys() - self._holds.keys())
        changed = sorted((key, hold) for key, hold in self._holds.items() if key in self._stored and self._stored[key] != hold)
        fresh = sorted((key, hold) for key, hold in self._holds.items() if key not in self._stored)
        if gone:
            yield from self._tx.do("drop_keys", keys=text(gone))
        if changed:
            yield from self._tx.do("change_keys", holds=text(dict(changed)))
        if fresh:
            taken = yield from self._tx.value("take_keys", holds=text([(key, *hold) for key, hold in fresh]))
            if taken != len(fresh):
                raise Doubt
        self._stored = dict(self._holds)
