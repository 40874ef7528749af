"""Who holds a unique key, who comes after, and what becomes of them when it is given up.

Locks are taken in one order everywhere: first the keys, sorted, then the jobs' rows in their lines. Claims, which have locked ready
jobs already, and upkeep take only those keys that nobody else has locked.

A caller's transaction keeps its locks for as long as the caller likes, and workers must not wait so long. So an enqueue that gives way
to the holder of a key does not lock it, and who settles locks only what a job that runs may still hold, and may now give up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from offload.broker import Work
from offload.brokers.postgres.gating import Past
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.rows import jobs_by_number, optional_stored, seconds, stored
from offload.brokers.postgres.work import Doubt, Transaction, text
from offload.job import Job, UniqueKey, keys_of

_GIVES_WAY = ("skip", "raise")
"""The conflicts that leave a key to its holder."""
ALL_KEYS = ("started", "finished", "time")
"""The keys that a job gives up which is dropped, by their `until`."""


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


def kept(job: Job) -> list[str]:
    """The keys that a job which was claimed may still hold: the claim gave up some, and others are freed by time alone."""
    return [unique.key for unique in keys_of(job) if unique.until == "finished"]


def taken_back(job: Job) -> list[UniqueKey]:
    """The keys that a job takes again when it is revived."""
    return [unique for unique in keys_of(job) if unique.until in ("started", "finished")]


class Keys:
    """Keys that this transaction has locked. Changes are gathered and written set by set."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._locked: set[str] = set()
        self._stored: dict[str, Hold] = {}
        self._holds: dict[str, Hold] = {}

    def lock(self, jobs: Iterable[Job]) -> Work[None]:
        """Lock all the keys that these jobs want. Keys that nobody holds cannot be locked: `write` finds out."""
        yield from self._lock(unique.key for job in jobs for unique in keys_of(job))

    def lock_of_claimed(self, jobs: Iterable[Job]) -> Work[None]:
        """Lock those that these jobs, which were claimed, may still hold."""
        yield from self._lock(key for job in jobs for key in kept(job))

    def check_claimed(self, jobs: Iterable[Job]) -> None:
        """Raise Doubt unless those are locked: once gates are, they must not be waited for."""
        if not self._locked.issuperset(key for job in jobs for key in kept(job)):
            raise Doubt

    def lock_for_new(self, jobs: Iterable[Job]) -> Work[None]:
        """Lock the keys that these new jobs may change; of those whose holder they give way to, learn who it is.

        That is true when it is read, and the holder may end before this transaction does. But it does not start before, where its
        start would free the key: what this transaction changes is there for it to see.
        """
        wanted = [unique for job in jobs for unique in keys_of(job)]
        yield from self._lock(unique.key for unique in wanted if unique.on_conflict not in _GIVES_WAY)
        asked = sorted({unique.key for unique in wanted} - self._locked)
        if asked:
            self._note(_holds((yield from self._tx.value("read_keys", keys=text(asked)))))
            yield from self._lock(key for key in asked if key in self._stored and key not in self._holds)  # its time has passed
            self._locked.update(asked)

    def _lock(self, keys: Iterable[str]) -> Work[None]:
        wanted = sorted(set(keys) - self._locked)
        if not wanted:
            return
        for key in wanted:
            self._stored.pop(key, None)
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

    def try_lock_behind(self, jobs: Iterable[Job]) -> Work[set[str]]:
        """Of the keys of jobs that are to end, those that cannot be passed on: another transaction has locked one of the successor's."""
        held = {unique.key: self._holds.get(unique.key) for job in jobs for unique in keys_of(job)}
        behind = {key: hold.successor for key, hold in held.items() if hold is not None and hold.successor is not None}
        if not behind:
            return set()
        busy: set[str] = set()
        rows = yield from jobs_by_number(self._tx, sorted(set(behind.values())))
        for key, n in behind.items():
            if (yield from self.try_lock([rows[n].job()])):
                busy.add(key)
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
            yield from self._tx.post("drop_waiting", ns=text([n]))
            moves.place(n, job, Past(), optional_stored(job.run_at), joins=True)
        else:
            yield from self._tx.post("set_behind", n=n, behind=blocked)

    def write(self) -> Work[None]:
        """Write what changed. Raises Doubt when another transaction has taken a key meanwhile that was free."""
        gone = sorted(self._stored.keys() - self._holds.keys())
        changed = sorted((key, hold) for key, hold in self._holds.items() if key in self._stored and self._stored[key] != hold)
        fresh = sorted((key, hold) for key, hold in self._holds.items() if key not in self._stored)
        if gone:
            yield from self._tx.post("drop_keys", keys=text(gone))
        if changed:
            yield from self._tx.post("change_keys", holds=text(dict(changed)))
        if fresh:
            taken = yield from self._tx.value("take_keys", holds=text([(key, *hold) for key, hold in fresh]))
            if taken != len(fresh):
                raise Doubt
        self._stored = dict(self._holds)
