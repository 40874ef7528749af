"""Claims: chooses ready jobs and leases them to a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

import msgspec

from offload.broker import Work
from offload.brokers.postgres.endings import Ending, drop_expiring, finish
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.marks import Marks, Place
from offload.brokers.postgres.moves import Moves, Past
from offload.brokers.postgres.rows import ReadyRow, stored
from offload.brokers.postgres.work import Transaction, text
from offload.errors import SessionLost
from offload.job import Isolation, Job, Lease, State, WorkerInfo, keys_of

CRASHES_BEFORE_ISOLATION = 2
WINDOW = 1_000
"""The most candidates of a queue that one fetch looks at."""

_rows = msgspec.json.Decoder(list[ReadyRow]).decode
_steps = msgspec.json.Decoder(list[tuple[int, str, str]]).decode
_payloads = msgspec.json.Decoder(list[tuple[int, str, str | None]]).decode
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
    held_up: int = 0
    """How many of those passed over another transaction holds up, by a key that it has locked."""
    looked: int = 0
    stopped: bool = False
    """True when an expired job's key may have let a successor in ahead of what follows."""


def judge(
    candidates: Sequence[Candidate],
    now: int,
    tasks: Mapping[str, Isolation],
    room: dict[Isolation, int],
    limit: int,
    busy: set[str],
) -> Verdicts:
    """Decide about candidates in their order, until `limit` are taken; `room` is counted down.

    Jobs that would have to give up a key that is `busy`, locked by another, are passed over.
    """
    verdicts = Verdicts()
    for candidate in candidates:
        if len(verdicts.taken) >= limit or verdicts.stopped:
            break
        row = candidate[0]
        verdicts.looked += 1
        job = row.job()
        expired = late(row, job, now)
        if busy and any(unique.key in busy for unique in keys_of(job) if expired or unique.until == "started"):
            verdicts.passed.add(row.n)
            verdicts.held_up += 1
            continue
        if expired:
            verdicts.expired.append((candidate, job))
            verdicts.stopped = bool(keys_of(job))
            continue
        isolation = tasks.get(row.task)
        if isolation is None:
            verdicts.unknown.append(candidate)
            continue
        if row.crashes >= CRASHES_BEFORE_ISOLATION:
            isolation = "process"
        if room[isolation] > 0:
            room[isolation] -= 1
            verdicts.taken.append((candidate, job))
        else:
            verdicts.passed.add(row.n)
    return verdicts


def late(row: ReadyRow, job: Job, now: int) -> bool:
    """Whether a job has expired."""
    return job.expires_at is not None and row.claim == 0 and stored(job.expires_at) <= now


def in_turn(ready: Sequence[str], aside: Sequence[tuple[str, str]], turn: int) -> list[str]:
    """The queues that have something ready, or set aside, starting with another one at each turn."""
    names = sorted({*ready, *(queue for queue, _ in aside)})
    start = turn % len(names) if names else 0
    return names[start:] + names[:start]


class Claim:
    """One fetch of one session, with care: several statements in a transaction."""

    def __init__(self, tx: Transaction, session: str, info: WorkerInfo, room: Mapping[Isolation, int], marks: Marks, era: int) -> None:
        self._tx = tx
        self._session = session
        self._info = info
        self._room = dict(room)
        self._marks = marks
        self._era = era
        self._taken: list[tuple[ReadyRow, Job]] = []
        self.names: list[str] = []
        """The queues that had something ready, where all are served."""
        self._gone: list[Place] = []
        self._left: list[Place] = []
        self.passed = 0
        """How many were passed over for lack of room."""
        self.held_up = 0
        """How many were passed over because another transaction had locked a key of theirs: they may be claimed any moment."""

    def run(self, queues: Sequence[str] | None, limit: int, turn: int) -> Work[list[Lease]]:
        """Claim up to `limit` jobs. `turn` says with which queue to start when all are served. Raises SessionLost."""
        alive, paused, lines, ready, returned = yield from self._tx.row("lines", session=self._session, era=self._era, all=queues is None)
        if not alive:
            raise SessionLost(f"session {self._session} of worker {self._info.name} is gone; open a new one")
        if returned != self._marks.returned:
            self._marks.void(returned)
        aside = _lines(lines)
        if queues is None:
            queues = self.names = in_turn(_names(ready), aside, turn)
        held_back = set(_names(paused))
        for queue in queues:
            if queue not in held_back and len(self._taken) < limit:
                yield from self._claim(queue, [task for at, task in aside if at == queue and task in self._info.tasks], limit)
        return (yield from self._leases())

    def _claim(self, queue: str, aside: Sequence[str], limit: int) -> Work[None]:
        """Claim from one queue. What is looked at beyond the limit is only for finding anything at all."""
        limit -= len(self._taken)
        before = len(self._taken)
        marked = not self._marks.due([queue])
        passed: set[int] = set()
        looked = 0
        while looked < (limit if len(self._taken) > before else max(WINDOW, limit)):
            want = len(passed) + (limit if looked < limit else max(WINDOW, limit)) - looked
            found = yield from self._candidates(queue, aside, want, marked=marked)
            fresh = [each for each in found if each[0].n not in passed]
            keys = Keys(self._tx)
            keyed = [(row, job) for row, _ in fresh if row.extra is not None for job in [row.job()] if keys_of(job)]
            busy = yield from keys.try_lock(job for _, job in keyed)
            busy |= yield from keys.try_lock_behind(job for row, job in keyed if late(row, job, self._tx.now))
            verdicts = judge(fresh, self._tx.now, self._info.tasks, self._room, 1 if looked >= limit else limit, busy)
            looked += verdicts.looked
            passed |= verdicts.passed
            yield from self._carry_out(queue, verdicts, keys)
            self._note(verdicts, fresh)
            if len(found) < want and not verdicts.stopped:
                return

    def _candidates(self, queue: str, aside: Sequence[str], limit: int, *, marked: bool) -> Work[list[Candidate]]:
        begun = monotonic()
        segments = text(self._marks.segments(queue, marked=marked))
        rows = _rows((yield from self._tx.value("candidates", segments=segments, limit=limit)))
        if not marked:
            self._marks.swept([queue], monotonic() - begun)
        found = [(row, False) for row in rows]
        for task in aside:
            rows = _rows((yield from self._tx.value("candidates_aside", queue=queue, task=task, limit=limit)))
            found += [(row, True) for row in rows]
        return sorted(found, key=lambda each: (each[0].rank, each[0].pos))[:limit] if aside else found

    def _note(self, verdicts: Verdicts, looked: Sequence[Candidate]) -> None:
        """Remember what left the line and what did not; `looked` began with what was decided about."""
        self.passed += len(verdicts.passed) - verdicts.held_up
        self.held_up += verdicts.held_up
        gone = [row for row, aside in looked[: verdicts.looked] if not aside and row.n not in verdicts.passed]
        left = [row for row, aside in looked if not aside and row.n in verdicts.passed]
        self._gone += [(row.queue, row.rank, row.pos) for row in gone]
        self._left += [(row.queue, row.rank, row.pos) for row in left]

    def committed(self) -> None:
        """The claim holds: its marks do too."""
        self._marks.note(self._gone, self._left)

    def _carry_out(self, queue: str, verdicts: Verdicts, keys: Keys) -> Work[None]:
        """Write down what was decided."""
        tx, taken, expired = self._tx, verdicts.taken, verdicts.expired
        moves = Moves(tx.now)
        for (row, _), job in taken:
            yield from keys.give_up(row.n, job, ("started",), moves)
        yield from self._take([candidate for candidate, _ in taken], queue)
        if verdicts.unknown:
            tasks = text({row.pos: row.task for row, _ in verdicts.unknown})
            yield from tx.do("set_aside", queue=queue, places=_places(verdicts.unknown, aside=False), tasks=tasks)
            tx.work = True
        if expired:
            yield from self._drop([candidate for candidate, _ in expired], queue)
            endings = [Ending(row.n, job, Past(), State.EXPIRED, "not started in time") for (row, _), job in expired]
            yield from finish(tx, keys, endings, moves)
        yield from drop_expiring(tx, [(row.n, job) for (row, _), job in taken if row.claim == 0])
        self._taken += [(row, job) for (row, _), job in taken]
        yield from keys.write()
        yield from moves.write(tx)

    def _take(self, candidates: Sequence[Candidate], queue: str) -> Work[None]:
        for aside, run in ((False, "run_places"), (True, "run_places_aside")):
            if any(each[1] is aside for each in candidates):
                places = _places(candidates, aside=aside)
                yield from self._tx.do(run, queue=queue, places=places, session=self._session, now=self._tx.now, worker=self._info.name)

    def _drop(self, candidates: Sequence[Candidate], queue: str) -> Work[None]:
        for aside, drop in ((False, "drop_places"), (True, "drop_places_aside")):
            if any(each[1] is aside for each in candidates):
                yield from self._tx.do(drop, queue=queue, places=_places(candidates, aside=aside))

    def _leases(self) -> Work[list[Lease]]:
        again = [row.n for row, _ in self._taken if row.claim > 0]
        steps: dict[int, dict[str, bytes]] = {}
        if again:
            numbers = text(again)
            yield from self._tx.do("drop_progress", ns=numbers)
            for n, name, value in _steps((yield from self._tx.value("steps_of", ns=numbers))):
                steps.setdefault(n, {})[name] = value.encode()
        replaced = yield from self._replaced()
        return [
            Lease(replaced.get(row.n, job), row.claim + 1, row.attempt + 1, row.crashes, steps.get(row.n, {}), row.n)
            for row, job in self._taken
        ]

    def _replaced(self) -> Work[dict[int, Job]]:
        """Those with a key whose payload a replacing enqueue changed after it was read and before the key was locked."""
        keyed = {row.n: row for row, job in self._taken if job.unique is not None and job.unique.until == "started"}
        if not keyed:
            return {}
        found = _payloads((yield from self._tx.value("payloads", ns=text(list(keyed)))))
        return {
            n: msgspec.structs.replace(row, payload=payload, extra=extra).job()
            for n, payload, extra in found
            for row in [keyed[n]]
            if (payload, extra) != (row.payload, row.extra)
        }


def _places(candidates: Sequence[Candidate], *, aside: bool) -> str:
    """The places of those that stand in the ready line, or of those set `aside`."""
    if aside:
        return text([(row.task, row.rank, row.pos) for row, aside in candidates if aside])
    return text([(row.rank, row.pos) for row, aside in candidates if not aside])
