"""The life of jobs in memory: every transition, one method each. Synchronous; the broker holds the lock around it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import TypeVar, assert_never

from msgspec.structs import replace

from offload.brokers.memory.gating import Gating
from offload.brokers.memory.keys import Hold, Keys
from offload.brokers.memory.line import Entry, ReadyLine, TimeLine, foremost
from offload.clock import Clock
from offload.errors import IdConflict, UniqueConflict
from offload.gates import (
    KINDS,
    MOST_HOLDERS,
    Gate,
    Ledger,
    Member,
    Steps,
    changed_by,
    gated,
    held_back_by,
    holds_on,
    kind_of,
    limit_record,
    member_of,
    round_of,
)
from offload.job import (
    KEEP_UNSUCCESSFUL,
    Cancelled,
    Dead,
    Done,
    Failure,
    Isolation,
    Job,
    Kind,
    Limit,
    LimitChange,
    LimitRecord,
    Outcome,
    Record,
    Release,
    Retried,
    State,
    Touched,
    UniqueKey,
    keys_of,
)

T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SOONEST = 0.005
"""Seconds within which tokens are not looked for again: those that come meanwhile are taken together, and none is late for it."""
CRASHES_BEFORE_ISOLATION = 2
WINDOW = 1_000
"""The most candidates of a queue that one fetch looks at, and the most jobs that one maintain moves."""


def stored(moment: datetime) -> int:
    """A moment as gates count: whole microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


class Shelf:
    """All jobs of a memory store."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.entries: dict[str, Entry] = {}
        self.paused: set[str] = set()
        self.gating = Gating()
        self._undo: list[Callable[[], None]] | None = None
        self._keys = Keys()
        self._sequence = 0
        self._ready: dict[str, ReadyLine] = {}
        self._aside: dict[tuple[str, str], ReadyLine] = {}
        self._rounds: dict[tuple[str, int], dict[str, int]] = {}
        """By queue and priority the last round of each key whose jobs take turns."""
        self._due = TimeLine()
        self._expiring = TimeLine()
        self._forgettable = TimeLine()

    # -- enqueue -----------------------------------------------------------------------------------------------------------

    def store(self, jobs: Sequence[Job]) -> list[str]:
        """Store jobs in order, all or none; returns the ids that stand for them."""
        with self._undone_on_error() as undo:
            return [self._store(job, undo) for job in jobs]

    def _store(self, job: Job, undo: list[Callable[[], None]]) -> str:
        known = self.entries.get(job.id)
        if known is not None:
            if (known.job.task, known.job.payload) != (job.task, job.payload):
                raise IdConflict(job.id)
            return job.id
        now = self._clock.now()
        behind: str | None = None
        for unique in keys_of(job):
            self._remember_key(unique.key, undo)
            hold = self._keys.held(unique.key, now)
            if hold is not None and job.overlap == "replace" and unique.key == f"schedule:{job.schedule}":
                self._remember_entry(hold.holder, undo)
                self.cancel(hold.holder)
                hold = self._keys.held(unique.key, now)
            if hold is None:
                continue
            stand_in = self._conflict(hold, unique, job, undo)
            if stand_in is not None:
                return stand_in
            behind = hold.holder
        self._add(job, behind, now)
        undo.append(lambda: self._remove(job.id))
        return job.id

    def _conflict(self, hold: Hold, unique: UniqueKey, job: Job, undo: list[Callable[[], None]]) -> str | None:
        """The id that stands for `job`, or None when it may wait behind the holder."""
        match unique.on_conflict:
            case "skip":
                return hold.holder
            case "raise":
                raise UniqueConflict(unique.key, hold.holder)
            case "replace" | "debounce":
                holder = self.entries.get(hold.holder)
                if holder is not None and holder.state in _NOT_STARTED:
                    self._remember_entry(hold.holder, undo)
                    self._replace(holder, job, move=unique.on_conflict == "debounce")
                return hold.holder
            case "keep_last" if hold.unique.until != "finished":
                return hold.holder  # nothing would tell a successor that the key is free
            case "keep_last":
                if hold.successor is None:
                    return None
                self._remember_entry(hold.successor, undo)
                successor = self.entries[hold.successor]
                successor.job = replace(successor.job, payload=job.payload)
                return hold.successor
            case _:
                assert_never(unique.on_conflict)

    def _replace(self, entry: Entry, job: Job, *, move: bool) -> None:
        entry.job = replace(entry.job, payload=job.payload)
        if move:
            entry.job = replace(entry.job, run_at=job.run_at)
            if entry.state is State.WAITING and entry.lane is None:
                entry.due = job.run_at
            else:
                if entry.state is State.SCHEDULED:
                    self._join(entry)
                self._withdraw(entry)
                self._place(entry, job.run_at)

    def _add(self, job: Job, behind: str | None, now: datetime) -> None:
        self._sequence += 1
        entry = self.entries[job.id] = Entry(self._sequence, job, due=job.run_at, seat=self._sequence)
        for unique in keys_of(job):
            hold = self._keys.held(unique.key, now)
            if hold is None:
                self._keys.take(unique, job)
            else:
                hold.successor = job.id
        if job.expires_at is not None:
            self._expiring.push(job.expires_at, entry)
        if behind is None:
            self._place(entry, job.run_at)
        else:
            entry.state, entry.reason = State.WAITING, f"behind {behind}"

    def _place(self, entry: Entry, run_at: datetime | None) -> None:
        """Put a job in the line its time asks for."""
        entry.due, entry.reason = run_at, None
        if run_at is not None and run_at > self._clock.now():
            entry.state = State.SCHEDULED
            self._due.push(run_at, entry)
            self._leave(entry, ("slot", "token"))
        else:
            self._make_ready(entry)

    def _make_ready(self, entry: Entry, *, keep_place: bool = False) -> None:
        """Put a job into the ready line, or, where a key of its stops it, into its lane."""
        if gated(entry.job) and not self._at_gates(lambda ledger: ledger.enter(self._member(entry))):
            entry.state, entry.aside, entry.session = State.WAITING, False, None
            entry.lane = self._member(entry).lane
        else:
            self._line_up(entry, keep_place=keep_place)

    def _line_up(self, entry: Entry, *, keep_place: bool = False) -> None:
        entry.state, entry.aside, entry.session, entry.lane = State.READY, False, None, None
        line = self._ready.setdefault(entry.job.queue, ReadyLine(aside=False))
        if not keep_place:
            entry.pos, entry.ready_at = self._next(), self._clock.now()
            entry.round = 0 if entry.job.fair_by is None else self._round(entry.job, entry.job.fair_by, line)
        line.push(entry)

    def _round(self, job: Job, key: str, line: ReadyLine) -> int:
        """The round in which a job takes its turn."""
        serving = line.round(-job.priority)
        if serving is None:
            self._rounds.pop((job.queue, -job.priority), None)
        lasts = self._rounds.setdefault((job.queue, -job.priority), {})
        lasts[key] = round = round_of(serving, lasts.get(key))
        return round

    @contextmanager
    def _undone_on_error(self) -> Generator[list[Callable[[], None]]]:
        undo = self._undo = []
        try:
            yield undo
        except Exception:
            for step in reversed(undo):
                step()
            raise
        finally:
            self._undo = None

    def _remember_key(self, key: str, undo: list[Callable[[], None]]) -> None:
        hold = self._keys.snapshot(key)
        undo.append(lambda: self._keys.restore(key, hold))

    def _remember_entry(self, id: str, undo: list[Callable[[], None]]) -> None:
        entry = self.entries[id]
        was = copy(entry)

        def restore() -> None:
            for name in Entry.__slots__:
                setattr(entry, name, getattr(was, name))
            if entry.state is State.READY:
                line = self._aside[entry.job.queue, entry.job.task] if entry.aside else self._ready[entry.job.queue]
                line.push(entry)
            elif entry.state is State.SCHEDULED and entry.due is not None:
                self._due.push(entry.due, entry)

        undo.append(restore)

    # -- gates -------------------------------------------------------------------------------------------------------------

    def _member(self, entry: Entry) -> Member:
        return member_of(entry.job, entry.n, entry.seat, entry)

    def _at_gates(self, act: Callable[[Ledger], Steps[T]]) -> T:
        """Do something at the gates. Jobs that pass thereby go to the end of their ready lines."""
        result, undo = self.gating.run(stored(self._clock.now()), self._passed, act)
        if self._undo is not None:
            self._undo.append(undo)
        return result

    def _passed(self, member: Member) -> None:
        if self._undo is not None:
            self._remember_entry(member.own.job.id, self._undo)
        self._line_up(member.own)

    def _leave(self, entry: Entry, kinds: Sequence[Kind] = KINDS) -> None:
        if gated(entry.job):
            self._at_gates(lambda ledger: ledger.leave(self._member(entry), kinds))

    def _withdraw(self, entry: Entry) -> None:
        """Take a job out of the lane in which it waits, if it does."""
        if entry.lane is not None:
            entry.lane = None
            self._at_gates(lambda ledger: ledger.withdraw(self._member(entry)))

    def wake_gates(self) -> None:
        """Let pass whom time alone lets pass."""
        for gate in self.gating.due(stored(self._clock.now())):
            self._at_gates(lambda ledger, gate=gate: ledger.pump(gate))

    def next_wake(self) -> float | None:
        """Seconds until time alone lets somebody pass."""
        moment = self.gating.next_moment()
        return None if moment is None else max((moment - stored(self._clock.now())) / 1_000_000, SOONEST)

    def set_limit(self, key: str, change: LimitChange) -> None:
        """Change what a key allows."""
        for gate in changed_by(key, change):
            self._at_gates(lambda ledger, gate=gate: ledger.change(gate, change))

    def declare(self, limits: Sequence[Limit]) -> None:
        """Take over what a worker declares."""
        concerned: list[str] = []
        for limit in limits:
            concerned += self.gating.declare(limit)
        for gate in concerned:
            self._at_gates(lambda ledger, gate=gate: ledger.pump(gate))

    def limits(self, gates: Iterable[str] | None = None) -> list[LimitRecord]:
        """What gates allow, all or those given, and who holds them."""
        now = stored(self._clock.now())
        jobs = {entry.n: entry for entry in self.entries.values()} if gates is None or gates else {}
        found = [self._limit(now, id, jobs) for id in (self.gating.known(now) if gates is None else gates)]
        return found if gates is not None else sorted(found, key=lambda limit: (limit.key, limit.kind))

    def _limit(self, now: int, id: str, jobs: Mapping[int, Entry]) -> LimitRecord:
        gate = self.gating.gates.get(id) or Gate(id, kind_of(id))
        holders = sorted(self.gating.holders.get(id, {}))
        waiting = self.gating.waiting(id)
        first = self._member(jobs[holders[0]]) if holders else waiting[0] if waiting else None
        want = next((want for want in first.wants if want.gate == id), None) if first else None
        dead = gate.kind == "turn" and any(jobs[n].state is State.DEAD for n in holders)
        named = [jobs[n].job.id for n in holders[:MOST_HOLDERS]]
        return limit_record(gate, want, self.gating.rules, now, named, len(holders), len(waiting), dead=dead)

    def record(self, entry: Entry) -> Record:
        """What a person sees of a job."""
        gate = None if entry.lane is None else self.gating.lane_at(entry.lane)
        return entry.record(entry.reason if gate is None else f"waits for a {gate}")

    # -- claim -------------------------------------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        """The queues that have something ready, by name."""
        ready = {queue for queue, line in self._ready.items() if line.first() is not None}
        return sorted(ready | {queue for (queue, _), line in self._aside.items() if line.first() is not None})

    def claim(
        self, queue: str, limit: int, room: dict[Isolation, int], tasks: Mapping[str, Isolation], session: str, worker: str
    ) -> list[Entry]:
        """Take up to `limit` ready jobs of one queue; `room` is counted down."""
        lines = [self._ready[queue]] if queue in self._ready else []
        lines += [line for task in tasks if (line := self._aside.get((queue, task))) is not None]
        taken: list[Entry] = []
        passed: list[tuple[ReadyLine, Entry]] = []
        now = self._clock.now()
        for looked, (line, entry) in enumerate(foremost(lines) if limit > 0 else (), start=1):
            isolation = tasks.get(entry.job.task)
            if entry.claim == 0 and entry.job.expires_at is not None and entry.job.expires_at <= now:
                self._finish(entry, State.EXPIRED, "not started in time")
            elif isolation is None:
                entry.aside = True
                self._aside.setdefault((queue, entry.job.task), ReadyLine(aside=True)).push(entry)
            else:
                isolation = "process" if entry.crashes >= CRASHES_BEFORE_ISOLATION else isolation
                if room[isolation] > 0 and gated(entry.job) and not self._starts(entry):
                    pass  # it waits again
                elif room[isolation] > 0:
                    room[isolation] -= 1
                    taken.append(self._lease(entry, session, worker, now))
                else:
                    passed.append((line, entry))
            if len(taken) >= limit or looked >= (limit if taken else max(WINDOW, limit)):
                break
        for line, entry in passed:
            line.push(entry)
        return taken

    def _starts(self, entry: Entry) -> bool:
        if self._at_gates(lambda ledger: ledger.start(self._member(entry))):
            return True
        entry.state, entry.aside, entry.lane = State.WAITING, False, self._member(entry).lane
        return False

    def _lease(self, entry: Entry, session: str, worker: str, now: datetime) -> Entry:
        entry.state, entry.session, entry.worker, entry.started_at = State.RUNNING, session, worker, now
        entry.aside, entry.cancel_asked, entry.progress = False, False, None
        entry.claim += 1
        entry.attempt += 1
        self._give_up(entry, until=("started",))
        return entry

    # -- settle ------------------------------------------------------------------------------------------------------------

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Record the outcome of the running attempt of `entry`."""
        if entry.cancel_asked and not isinstance(outcome, Done):
            outcome = Cancelled()
        match outcome:
            case Done(result):
                entry.result = result
                self._finish(entry, State.SUCCEEDED, None, keep=entry.job.keep)
            case Retried(delay, failure, whole_key):
                self._note(entry, failure)
                if whole_key:
                    self._shut(entry, delay)
                self._place(entry, self._clock.now() + timedelta(seconds=delay) if delay > 0 else None)
            case Dead(reason, failure):
                self._note(entry, failure)
                self._finish(entry, State.DEAD, reason)
            case Cancelled(reason):
                self._finish(entry, State.CANCELLED, reason)
            case Release(delay):
                entry.attempt -= 1
                if delay > 0:
                    self._place(entry, self._clock.now() + timedelta(seconds=delay))
                else:
                    self._make_ready(entry, keep_place=True)
            case _:
                assert_never(outcome)

    def _shut(self, entry: Entry, delay: float) -> None:
        until = stored(self._clock.now() + timedelta(seconds=delay))
        for gate in held_back_by(entry.job):
            self._at_gates(lambda ledger, gate=gate: ledger.shut(gate, until))

    def rescue(self, session: str) -> list[Touched]:
        """Take from a dead session what it ran."""
        touched: list[Touched] = []
        for entry in self.running(session):
            entry.crashes += 1
            entry.attempt -= 1
            if entry.cancel_asked:
                self._finish(entry, State.CANCELLED, "cancelled")
            else:
                self._make_ready(entry, keep_place=True)
            event = "cancelled" if entry.state is State.CANCELLED else "rescued"
            touched.append(Touched(event, entry.job.id, entry.job.task, entry.job.queue, f"worker {entry.worker} died"))
        return touched

    def release(self, session: str) -> None:
        """Hand back, unharmed, what a leaving session still runs."""
        for entry in self.running(session):
            self.settle(entry, Release())

    def running(self, session: str) -> list[Entry]:
        """What a session runs, in the order it was stored."""
        return [entry for entry in self.entries.values() if entry.session == session and entry.state is State.RUNNING]

    def _note(self, entry: Entry, failure: Failure | None) -> None:
        if failure is not None:
            entry.errors.append(failure)

    def _finish(self, entry: Entry, state: State, reason: str | None, keep: float = KEEP_UNSUCCESSFUL) -> None:
        entry.state, entry.reason, entry.session, entry.aside = state, reason, None, False
        entry.finished_at = self._clock.now()
        self._withdraw(entry)
        self._give_up(entry, until=("started", "finished"))
        holds = state is State.DEAD and holds_on(entry.job)
        self._leave(entry, ("slot", "token") if holds else KINDS)
        if holds:
            return  # until somebody retries or deletes it
        if keep > 0:
            self._forgettable.push(entry.finished_at + timedelta(seconds=keep), entry)
        else:
            del self.entries[entry.job.id]

    def _give_up(self, entry: Entry, until: tuple[str, ...]) -> None:
        """Free the keys that cover the state which just ended, and let the successor, if any, take over."""
        for unique in keys_of(entry.job):
            hold = self._keys.held(unique.key, self._clock.now())
            if hold is None or (hold.holder == entry.job.id and hold.unique.until not in until):
                continue
            if self._undo is not None:
                self._remember_key(unique.key, self._undo)
            successor = self._keys.give_up(unique.key, entry.job.id)
            if successor is not None:
                self._succeed(self.entries[successor], unique.key)

    def _succeed(self, entry: Entry, key: str) -> None:
        if self._undo is not None:
            self._remember_entry(entry.job.id, self._undo)
        blocked: str | None = None
        for unique in keys_of(entry.job):
            hold = self._keys.held(unique.key, self._clock.now())
            if hold is None and unique.key == key:
                self._keys.take(unique, entry.job)
            elif hold is not None and hold.holder != entry.job.id:
                blocked = hold.holder
        if blocked is None:
            self._join(entry)
            self._place(entry, entry.job.run_at)
        else:
            entry.reason = f"behind {blocked}"

    # -- time --------------------------------------------------------------------------------------------------------------

    def promote(self) -> int:
        """Make ready what is due, earliest first. Returns how many."""
        return len(list(self._come(self._due, lambda at, entry: entry.state is State.SCHEDULED and entry.due == at, self._come_due)))

    def _come_due(self, entry: Entry) -> None:
        self._join(entry)
        self._make_ready(entry)

    def _join(self, entry: Entry) -> None:
        """One that has never started joins its lane only when it becomes due: behind all who have joined before."""
        if entry.claim == 0:
            entry.seat = self._next()

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def expire(self) -> list[Touched]:
        """End what was not started in time."""
        expired = self._come(
            self._expiring,
            lambda at, entry: entry.state in _NOT_STARTED and entry.claim == 0 and entry.job.expires_at == at,
            lambda entry: self._finish(entry, State.EXPIRED, "not started in time"),
        )
        return [Touched("expired", entry.job.id, entry.job.task, entry.job.queue) for entry in expired]

    def forget(self) -> int:
        """Drop the records whose time is over. Returns how many."""
        return len(list(self._come(self._forgettable, self._still_forgettable, self._drop)))

    def _still_forgettable(self, at: datetime, entry: Entry) -> bool:
        if self.entries.get(entry.job.id) is not entry or not entry.state.terminal or entry.finished_at is None:
            return False
        keep = entry.job.keep if entry.state is State.SUCCEEDED else KEEP_UNSUCCESSFUL
        return at == entry.finished_at + timedelta(seconds=keep)

    def _drop(self, entry: Entry) -> None:
        del self.entries[entry.job.id]

    def _come(self, line: TimeLine, counts: Callable[[datetime, Entry], bool], act: Callable[[Entry], None]) -> Iterator[Entry]:
        """Do `act` to each entry whose moment has come and still counts, at most WINDOW of them."""
        now = self._clock.now()
        done = 0
        while done < WINDOW and (first := line.first()) is not None and first[0] <= now:
            line.pop()
            if self.entries.get(first[1].job.id) is first[1] and counts(*first):
                act(first[1])
                done += 1
                yield first[1]

    def next_moment(self) -> datetime | None:
        """When `promote` or `expire` next has something to do."""
        moments: list[datetime] = []
        while (first := self._due.first()) is not None:
            if first[1].state is State.SCHEDULED and first[1].due == first[0]:
                moments.append(first[0])
                break
            self._due.pop()
        while (first := self._expiring.first()) is not None:
            if first[1].state in _NOT_STARTED and first[1].claim == 0 and first[1].job.expires_at == first[0]:
                moments.append(first[0])
                break
            self._expiring.pop()
        return min(moments, default=None)

    # -- control -----------------------------------------------------------------------------------------------------------

    def cancel(self, id: str) -> bool:
        """Cancel a job, or ask its worker to. False when there is nothing to cancel."""
        entry = self.entries.get(id)
        if entry is None or entry.state.terminal:
            return False
        if entry.state is State.RUNNING:
            entry.cancel_asked = True
        else:
            self._finish(entry, State.CANCELLED, "cancelled")
        return True

    def revive(self, id: str, payload: bytes | None) -> bool:
        """Start a job's life anew. False when it is not dead, cancelled or expired, or its key is taken."""
        entry = self.entries.get(id)
        if entry is None or entry.state not in _REVIVABLE:
            return False
        now = self._clock.now()
        wanted = [unique for unique in keys_of(entry.job) if unique.until in ("started", "finished")]
        if any(self._keys.held(unique.key, now) is not None for unique in wanted):
            return False
        for unique in wanted:
            self._keys.take(unique, entry.job)
        entry.job = replace(entry.job, payload=entry.job.payload if payload is None else payload, run_at=None, expires_at=None)
        entry.attempt, entry.crashes, entry.cancel_asked = 0, 0, False
        entry.result = entry.finished_at = entry.progress = None
        if not (entry.state is State.DEAD and holds_on(entry.job)):  # who kept its turn keeps its place as well
            entry.seat = self._next()
        self._place(entry, None)
        return True

    def delete(self, id: str) -> bool:
        """Remove a job that does not run."""
        entry = self.entries.get(id)
        if entry is None or entry.state is State.RUNNING:
            return False
        self._withdraw(entry)
        self._remove(id)
        self._give_up_all(entry)
        self._leave(entry)
        return True

    def _remove(self, id: str) -> None:
        entry = self.entries.pop(id)
        entry.state, entry.session = State.CANCELLED, None  # so that no line takes it for waiting

    def _give_up_all(self, entry: Entry) -> None:
        for unique in keys_of(entry.job):
            successor = self._keys.give_up(unique.key, entry.job.id)
            if successor is not None:
                self._succeed(self.entries[successor], unique.key)

    def ahead(self, entry: Entry) -> int:
        """How many ready jobs of its queue go before it."""
        return sum(
            1
            for other in self.entries.values()
            if other.state is State.READY and other.job.queue == entry.job.queue and other.rank < entry.rank
        )

    def limits_of(self, entry: Entry) -> tuple[tuple[LimitRecord, ...], int]:
        """What the keys of a job in a lane allow, what stops it first, and how many go before it."""
        if entry.lane is None:
            return (), 0
        member = self._member(entry)
        stop = self.gating.lane_at(entry.lane)
        gates = sorted((want.gate for want in member.wants), key=lambda gate: gate != stop)
        if stop is not None and stop not in gates:
            gates = [stop, *gates]
        return tuple(self.limits(gates)), self.gating.before(member)

    def holder_before(self, entry: Entry) -> str | None:
        """The job that a waiting one waits for."""
        if entry.state is not State.WAITING or entry.reason is None:
            return None
        return entry.reason.removeprefix("behind ")


_NOT_STARTED = frozenset({State.READY, State.SCHEDULED, State.WAITING})
_REVIVABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})
