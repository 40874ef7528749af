"""Claims: chooses ready jobs and leases them to a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking, tallies
from offload.brokers.postgres.books import related, tallies_of
from offload.brokers.postgres.endings import Ending, drop_expiring, finish
from offload.brokers.postgres.families import with_inputs
from offload.brokers.postgres.gating import Gates, Past
from offload.brokers.postgres.keys import Keys
from offload.brokers.postgres.marks import Marks, Place
from offload.brokers.postgres.moves import Moves
from offload.brokers.postgres.rows import ReadyRow, stored
from offload.brokers.postgres.upkeep import wake
from offload.brokers.postgres.work import Transaction, text
from offload.errors import SessionLost
from offload.gates import gated, kind_of, wants_of
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
    stopped_at_gate: list[Candidate] = field(default_factory=list[Candidate])
    """Those that wait again, as their key was shut or their token did not keep."""
    looked: int = 0
    stopped: bool = False
    """True when what an expired or stopped job gave up may let others into the line ahead of what follows."""


def judge(
    candidates: Sequence[Candidate],
    now: int,
    tasks: Mapping[str, Isolation],
    room: dict[Isolation, int],
    limit: int,
    busy: Callable[[Candidate, Job], bool],
    starts: Callable[[Candidate, Job], Work[bool]],
    entering: Callable[[], bool],
) -> Work[Verdicts]:
    """Decide about candidates in their order, until `limit` are taken; `room` is counted down.

    Those that are `busy`, because another transaction has a key that they need, are passed over. `starts` asks at the gates of a job,
    and `entering` whether that let anybody into the line.
    """
    verdicts = Verdicts()
    for candidate in candidates:
        if len(verdicts.taken) >= limit or verdicts.stopped:
            break
        row = candidate[0]
        verdicts.looked += 1
        job = row.job()
        if busy(candidate, job):
            verdicts.passed.add(row.n)
            verdicts.held_up += 1
            continue
        if late(row, job, now):
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
        elif gated(job) and not (yield from starts(candidate, job)):
            verdicts.stopped_at_gate.append(candidate)
            verdicts.stopped = entering()
        else:
            room[isolation] -= 1
            verdicts.taken.append((candidate, job))
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
        self._shut = False
        """Whether any key lets nobody start."""
        self.gates = Gates(tx)
        self._entered: dict[int, str] = {}
        """Those that this claim let go; others are told only of what it does not take itself."""
        self.wake_at: int | None = None
        """When somebody may pass any gate by time alone, as it was at first."""
        self.woke = False
        """Whether that moment had come."""
        self.passed = 0
        """How many were passed over for lack of room."""
        self.unknown: set[tuple[str, str]] = set()
        """Queue and task of those that were set aside."""
        self.held_up = 0
        """How many were passed over because another transaction had locked a key of theirs: they may be claimed any moment."""

    def run(self, queues: Sequence[str] | None, limit: int, turn: int) -> Work[list[Lease]]:
        """Claim up to `limit` jobs. `turn` says with which queue to start when all are served. Raises SessionLost."""
        yield from locking.lock(self._tx, ())
        known = yield from self._tx.row("lines", session=self._session, era=self._era, all=queues is None, now=self._tx.now)
        alive, paused, lines, ready, returned, self.wake_at, self._shut = known
        self.woke = self.wake_at is not None and self.wake_at <= self._tx.now
        if self.woke:
            moves = yield from wake(self._tx, self.gates)
            self._entered |= moves.entered
        if not alive:
            raise SessionLost(f"session {self._session} of worker {self._info.name} is gone; open a new one")
        if returned != self._marks.returned:
            self._marks.void(returned)
        aside = _lines(lines)
        if queues is None:
            queues = self.names = in_turn([*_names(ready), *self._entered.values()], aside, turn)
        held_back = set(_names(paused))
        for queue in queues:
            if queue not in held_back and len(self._taken) < limit:
                yield from self._claim(queue, [task for at, task in aside if at == queue and task in self._info.tasks], limit)
        self._tx.work |= not self._entered.keys() <= {row.n for row, _ in self._taken}
        return (yield from self._leases())

    def _claim(self, queue: str, aside: Sequence[str], limit: int) -> Work[None]:
        """Claim from one queue. What is looked at beyond the limit is only for finding anything at all."""
        limit -= len(self._taken)
        before = len(self._taken)
        marked = not self._marks.due([queue])
        passed: set[int] = set()
        looked = 0
        keys = Keys(self._tx)
        fresh: list[Candidate] = []
        busy = yield from self._busy(fresh, keys)
        all_read = False
        while (fresh or not all_read) and looked < (limit if len(self._taken) > before else max(WINDOW, limit)):
            if not fresh:
                want = len(passed) + (limit if looked < limit else max(WINDOW, limit)) - looked
                found = yield from self._candidates(queue, aside, want, marked=marked)
                fresh, all_read = [each for each in found if each[0].n not in passed], len(found) < want
                busy = yield from self._busy(fresh, keys)
            moves = Moves(self._tx.now, self.gates)
            most = 1 if looked >= limit else limit
            starts = partial(self._starts, moves)
            verdicts = yield from judge(fresh, self._tx.now, self._info.tasks, self._room, most, busy, starts, moves.entering)
            looked += verdicts.looked
            passed |= verdicts.passed
            yield from self._carry_out(queue, verdicts, keys, moves)
            self._note(verdicts, fresh)
            fresh = fresh[verdicts.looked :]
            if moves.entered:  # perhaps ahead of those that were read
                fresh, all_read = [], False

    def _busy(self, candidates: Sequence[Candidate], keys: Keys) -> Work[Callable[[Candidate, Job], bool]]:
        """Lock what these would give up or ask, as far as nobody else has it. Returns which are held up by others."""
        jobs = [(row, row.job()) for row, _ in candidates if row.extra is not None]
        uniques = yield from keys.try_lock(job for _, job in jobs if keys_of(job))
        uniques |= yield from keys.try_lock_behind(job for row, job in jobs if keys_of(job) and late(row, job, self._tx.now))
        gates = yield from locking.try_lock(self._tx, locking.gates_of(job for row, job in jobs if self._at_gates(row, job)))
        counted = yield from tallies.try_lock(self._tx, [job for row, job in jobs if related(job) and late(row, job, self._tx.now)])

        def busy(candidate: Candidate, job: Job) -> bool:
            expired = late(candidate[0], job, self._tx.now)
            if expired and counted and not counted.isdisjoint(tallies_of(job)):
                return True
            if uniques and any(unique.key in uniques for unique in keys_of(job) if expired or unique.until == "started"):
                return True
            return bool(gates) and self._at_gates(candidate[0], job) and not gates.isdisjoint(locking.gates_of([job]))

        return busy

    def _at_gates(self, row: ReadyRow, job: Job) -> bool:
        """Whether a candidate has to come to its gates again: most of those with an order or slots are claimed as they stand."""
        if not gated(job):
            return False
        return self._shut or late(row, job, self._tx.now) or any(kind_of(want.gate) == "token" for want in wants_of(job))

    def _starts(self, moves: Moves, candidate: Candidate, job: Job) -> Work[bool]:
        row, aside = candidate
        if not self._at_gates(row, job):
            return True
        past = Past()
        if row.claim > 0:
            where = {"queue": row.queue, "rank": row.rank, "pos": row.pos}
            found = yield from (self._tx.row("aside_past", task=row.task, **where) if aside else self._tx.row("ready_past", **where))
            past = Past(*found)
        return (yield from moves.starts(self._tx, row.n, job, past))

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

    def _carry_out(self, queue: str, verdicts: Verdicts, keys: Keys, moves: Moves) -> Work[None]:
        """Write down what was decided."""
        tx, taken, expired = self._tx, verdicts.taken, verdicts.expired
        for (row, _), job in taken:
            yield from keys.give_up(row.n, job, ("started",), moves)
        yield from self._take([candidate for candidate, _ in taken], queue)
        if verdicts.unknown:
            tasks = text({row.pos: row.task for row, _ in verdicts.unknown})
            yield from tx.post("set_aside", queue=queue, places=_places(verdicts.unknown, aside=False), tasks=tasks)
            self.unknown |= {(queue, row.task) for row, _ in verdicts.unknown}
            tx.work = True
        if expired or verdicts.stopped_at_gate:
            yield from self._drop([*(candidate for candidate, _ in expired), *verdicts.stopped_at_gate], queue)
        if expired:
            endings = [Ending(row.n, job, Past(), State.EXPIRED, "not started in time") for (row, _), job in expired]
            yield from finish(tx, keys, endings, moves)
        yield from drop_expiring(tx, [(row.n, job) for (row, _), job in taken if row.claim == 0])
        self._taken += [(row, job) for (row, _), job in taken]
        yield from keys.write()
        yield from moves.write(tx, quietly=True)
        self._entered |= moves.entered

    def _take(self, candidates: Sequence[Candidate], queue: str) -> Work[None]:
        for aside, run in ((False, "run_places"), (True, "run_places_aside")):
            if any(each[1] is aside for each in candidates):
                places = _places(candidates, aside=aside)
                yield from self._tx.post(run, queue=queue, places=places, session=self._session, now=self._tx.now, worker=self._info.name)

    def _drop(self, candidates: Sequence[Candidate], queue: str) -> Work[None]:
        for aside, drop in ((False, "drop_places"), (True, "drop_places_aside")):
            if any(each[1] is aside for each in candidates):
                yield from self._tx.post(drop, queue=queue, places=_places(candidates, aside=aside))

    def _leases(self) -> Work[list[Lease]]:
        again = [row.n for row, _ in self._taken if row.claim > 0]
        steps: dict[int, dict[str, bytes]] = {}
        if again:
            numbers = text(again)
            yield from self._tx.post("drop_progress", ns=numbers)
            for n, name, value in _steps((yield from self._tx.value("steps_of", ns=numbers))):
                steps.setdefault(n, {})[name] = value.encode()
        replaced = yield from self._replaced()
        leases = [
            Lease(replaced.get(row.n, job), row.claim + 1, row.attempt + 1, row.crashes, steps.get(row.n, {}), row.n)
            for row, job in self._taken
        ]
        return (yield from with_inputs(self._tx, leases))

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
