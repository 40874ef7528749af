"""Claims: chooses ready jobs and leases them to a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from offload.brokers.sqlite.endings import Ending, drop_expiring, finish
from offload.brokers.sqlite.gating import Past
from offload.brokers.sqlite.keys import give_up
from offload.brokers.sqlite.moves import Moves
from offload.brokers.sqlite.rows import ReadyRow, only_held, stored, text
from offload.brokers.sqlite.tallies import settle_up
from offload.brokers.sqlite.transaction import Transaction
from offload.brokers.sqlite.upkeep import wake
from offload.errors import SessionLost
from offload.gates import gated, kind_of, wants_of
from offload.job import Isolation, Job, Lease, State, WorkerInfo, keys_of

CRASHES_BEFORE_ISOLATION = 2
WINDOW = 1_000
"""The most candidates of a queue that one fetch looks at."""

_rows = msgspec.json.Decoder(list[ReadyRow]).decode
_steps = msgspec.json.Decoder(list[tuple[int, str, str]]).decode
_results = msgspec.json.Decoder(list[tuple[int, str | None]]).decode
_names = msgspec.json.Decoder(list[str]).decode
_lines = msgspec.json.Decoder(list[tuple[str, str]]).decode

Candidate = tuple[ReadyRow, bool]
"""A ready job, and whether it was set aside."""


@dataclass(slots=True)
class Verdicts:
    """What is to become of the candidates looked at."""

    taken: list[tuple[Candidate, Job]] = field(default_factory=list[tuple[Candidate, Job]])
    expired: list[tuple[Candidate, Job]] = field(default_factory=list[tuple[Candidate, Job]])
    unknown: list[Candidate] = field(default_factory=list[Candidate])
    passed: set[int] = field(default_factory=set[int])
    stopped_at_gate: list[Candidate] = field(default_factory=list[Candidate])
    """Those that wait again, as their key was shut or their token did not keep."""
    looked: int = 0
    stopped: bool = False
    """True when what an expired or stopped job gave up may let others into the line."""


def judge(
    candidates: Sequence[Candidate],
    queue: str,
    now: int,
    tasks: Mapping[str, Isolation],
    room: dict[Isolation, int],
    limit: int,
    starts: Callable[[Candidate, Job], bool],
    entering: Callable[[], bool],
) -> Verdicts:
    """Decide about candidates in their order, until `limit` are taken; `room` is counted down.

    `starts` asks at the gates of a job, and `entering` whether that let anybody into the line.
    """
    verdicts = Verdicts()
    for candidate in candidates:
        if len(verdicts.taken) >= limit or verdicts.stopped:
            break
        row = candidate[0]
        verdicts.looked += 1
        job = row.job(queue)
        if job.expires_at is not None and row.claim == 0 and stored(job.expires_at) <= now:
            verdicts.expired.append((candidate, job))
            verdicts.stopped = bool(keys_of(job)) or gated(job)
            continue
        isolation = tasks.get(row.task)
        if isolation is None:
            verdicts.unknown.append(candidate)
            continue
        if row.crashes >= CRASHES_BEFORE_ISOLATION:
            isolation = "process"
        if room[isolation] <= 0:
            verdicts.passed.add(row.n)
        elif gated(job) and not starts(candidate, job):
            verdicts.stopped_at_gate.append(candidate)
            verdicts.stopped = entering()
        else:
            room[isolation] -= 1
            verdicts.taken.append((candidate, job))
    return verdicts


def all_fit(rows: Sequence[ReadyRow], tasks: Mapping[str, Isolation], room: dict[Isolation, int], *, shut: bool) -> bool:
    """Whether all candidates can be taken, as nearly always: known tasks, room for all, no rare fields. `room` is counted down then.

    A turn or slots are no hindrance unless some key is `shut`.
    """
    wanted: dict[Isolation, int] = {}
    for row in rows:
        isolation = tasks.get(row.task)
        if isolation is None or row.crashes or (row.extra is not None and (shut or not only_held(row.extra))):
            return False
        wanted[isolation] = wanted.get(isolation, 0) + 1
    if any(room[isolation] < number for isolation, number in wanted.items()):
        return False
    for isolation, number in wanted.items():
        room[isolation] -= number
    return True


class Claim:
    """One fetch of one session."""

    def __init__(self, tx: Transaction, now: int, session: str, info: WorkerInfo, room: Mapping[Isolation, int]) -> None:
        self._tx = tx
        self._now = now
        self._session = session
        self._info = info
        self._room = dict(room)
        self._taken: list[tuple[ReadyRow, Job]] = []
        self._shut = False
        """Whether any key lets nobody start."""
        self.wake_at: int | None = None
        """When time alone will let somebody pass, in microseconds since 1970."""
        self.unknown: set[tuple[str, str]] = set()
        """Queue and task of those that were set aside."""

    def run(self, queues: Sequence[str] | None, limit: int, turn: int) -> list[Lease]:
        """Claim up to `limit` jobs. `turn` says with which queue to start when all are served. Raises SessionLost."""
        wake(self._tx, self._now)
        self._shut = bool(self._tx.value("any_shut", now=self._now))
        alive, paused, lines, ready = self._tx.row("lines", session=self._session, all=queues is None)
        if not alive:
            raise SessionLost(f"session {self._session} of worker {self._info.name} is gone; open a new one")
        aside = _lines(lines)
        if queues is None:
            names = sorted({*_names(ready), *(queue for queue, _ in aside)})
            start = turn % len(names) if names else 0
            queues = names[start:] + names[:start]
        held_back = set(_names(paused))
        for queue in queues:
            if queue not in held_back and len(self._taken) < limit:
                self._claim(queue, [task for at, task in aside if at == queue and task in self._info.tasks], limit)
        settle_up(self._tx, self._now)
        self.wake_at = self._tx.value("next_wake")
        return self._leases()

    def _claim(self, queue: str, aside: Sequence[str], limit: int) -> None:
        """Claim from one queue. What is looked at beyond the limit is only for finding anything at all."""
        limit -= len(self._taken)
        before = len(self._taken)
        passed: set[int] = set()
        looked = 0
        fresh: list[Candidate] = []
        all_read = False
        while (fresh or not all_read) and looked < (limit if len(self._taken) > before else max(WINDOW, limit)):
            if not fresh:
                want = len(passed) + (limit if looked < limit else max(WINDOW, limit)) - looked
                rows = _rows(self._tx.value("candidates", queue=queue, limit=want))
                if not aside and looked < limit and all_fit(rows, self._info.tasks, self._room, shut=self._shut):
                    if rows:
                        self._take_front(queue, rows[-1])
                        self._taken += [(row, row.job(queue)) for row in rows]
                    return
                found = self._with_aside(rows, queue, aside, want)
                fresh, all_read = [each for each in found if each[0].n not in passed], len(found) < want
            moves = Moves(self._tx, self._now)
            most = 1 if looked >= limit else limit
            starts = partial(self._starts, queue, moves)
            verdicts = judge(fresh, queue, self._now, self._info.tasks, self._room, most, starts, moves.entering)
            looked += verdicts.looked
            passed |= verdicts.passed
            self._carry_out(queue, verdicts, moves)
            fresh = fresh[verdicts.looked :]
            if moves.entering():  # perhaps ahead of those that were read
                fresh, all_read = [], False

    def _starts(self, queue: str, moves: Moves, candidate: Candidate, job: Job) -> bool:
        if not self._shut and not any(kind_of(want.gate) == "token" for want in wants_of(job)):
            return True
        row, aside = candidate
        where: dict[str, Any] = {"queue": queue, "rank": row.rank, "pos": row.pos}
        past = self._tx.row("aside_past", task=row.task, **where) if aside else self._tx.row("ready_past", **where)
        return moves.starts(row.n, job, Past(*past))

    def _with_aside(self, rows: Sequence[ReadyRow], queue: str, aside: Sequence[str], limit: int) -> list[Candidate]:
        found = [(row, False) for row in rows]
        for task in aside:
            found += [(row, True) for row in _rows(self._tx.value("candidates_aside", queue=queue, task=task, limit=limit))]
        return sorted(found, key=lambda each: (each[0].rank, each[0].pos))[:limit] if aside else found

    def _take_front(self, queue: str, last: ReadyRow) -> None:
        who: dict[str, Any] = {"session": self._session, "worker": self._info.name, "now": self._now}
        self._tx.do("run_front", queue=queue, rank=last.rank, pos=last.pos, **who)
        self._tx.do("drop_front", queue=queue, rank=last.rank, pos=last.pos)

    def _carry_out(self, queue: str, verdicts: Verdicts, moves: Moves) -> None:
        """Write down what was decided."""
        tx, taken, expired = self._tx, verdicts.taken, verdicts.expired
        self._take([candidate for candidate, _ in taken], queue)
        if verdicts.unknown:
            tx.do("set_aside", queue=queue, places=_places(verdicts.unknown, aside=False))
            self.unknown |= {(queue, row.task) for row, _ in verdicts.unknown}
            tx.work = True
        leaving = [*verdicts.unknown, *verdicts.stopped_at_gate, *(candidate for candidate, _ in [*taken, *expired])]
        for aside, drop in ((False, "drop_places"), (True, "drop_places_aside")):
            if any(each[1] is aside for each in leaving):
                tx.do(drop, queue=queue, places=_places(leaving, aside=aside))
        if expired:
            finish(tx, self._now, [Ending(row.n, job, Past(), State.EXPIRED, "not started in time") for (row, _), job in expired], moves)
        drop_expiring(tx, [(row.n, job) for (row, _), job in taken if row.claim == 0])
        for (row, _), job in taken:
            give_up(tx, self._now, row.n, job, ("started",), moves)
            self._taken.append((row, job))
        moves.write()

    def _take(self, candidates: Sequence[Candidate], queue: str) -> None:
        who: dict[str, Any] = {"session": self._session, "worker": self._info.name, "now": self._now}
        for aside, run in ((False, "run_places"), (True, "run_places_aside")):
            if any(each[1] is aside for each in candidates):
                self._tx.do(run, queue=queue, places=_places(candidates, aside=aside), **who)

    def _leases(self) -> list[Lease]:
        again = [row.n for row, _ in self._taken if row.claim > 0]
        steps: dict[int, dict[str, bytes]] = {}
        if again:
            numbers = text(again)
            self._tx.do("drop_progress", ns=numbers)
            for n, name, value in _steps(self._tx.value("steps_of", ns=numbers)):
                steps.setdefault(n, {})[name] = value.encode()
        inputs = self._inputs([row.n for row, job in self._taken if job.parents and any(parent.at for parent in job.parents)])
        return [
            Lease(job, row.claim + 1, row.attempt + 1, row.crashes, steps.get(row.n, {}), row.n, tuple(inputs.get(row.n, ())))
            for row, job in self._taken
        ]

    def _inputs(self, ns: Sequence[int]) -> dict[int, list[bytes | None]]:
        """The results of parents, for those jobs that want any."""
        inputs: dict[int, list[bytes | None]] = {}
        for n, result in _results(self._tx.value("inputs", ns=text(ns))) if ns else ():
            inputs.setdefault(n, []).append(None if result is None else result.encode())
        return inputs


def _places(candidates: Sequence[Candidate], *, aside: bool) -> str:
    """The places of those that stand in the ready line, or of those set `aside`."""
    if aside:
        return text([(row.task, row.rank, row.pos) for row, aside in candidates if aside])
    return text([(row.rank, row.pos) for row, aside in candidates if not aside])
