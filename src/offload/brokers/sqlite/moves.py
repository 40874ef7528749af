"""Puts jobs into the lines where they stand, and takes them out again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from offload.brokers.sqlite.gating import Gates, Own, Past, member, seats
from offload.brokers.sqlite.rows import Extra, JobColumns, placed, text
from offload.brokers.sqlite.transaction import Transaction
from offload.gates import KINDS, Member, changed_by, gated, held_back_by, left_when_put_off, member_of, round_of
from offload.job import Job, Kind, LimitChange, State

NO_PAST = Past()

_rounds = msgspec.json.Decoder(list[tuple[int | None, dict[str, int]]]).decode


def past_of(row: JobColumns) -> Past:
    """What a stored job has behind it."""
    return Past(row.claim, row.attempt, row.crashes, row.started_at, row.worker)


class End(NamedTuple):
    """A job that goes to the end of its ready line."""

    n: int
    queue: str
    rank: int
    past: Past
    fair_by: str | None = None
    due: int | None = None
    keeps_due: bool = False
    """Whether `due` stays what it was."""
    number: int | None = None
    """The number under which it was stored, where that is its place, too."""


class Moves:
    """Gathers where jobs go, in order, and writes it set by set. Those with an order or limits go by way of their gates."""

    def __init__(self, tx: Transaction, now: int) -> None:
        self._tx = tx
        self._now = now
        self._ends: list[End] = []
        self._places: list[tuple[Any, ...]] = []
        self._times: list[tuple[int, int, Past]] = []
        self._gates: Gates | None = None
        self._seats: dict[int, int] = {}

    @property
    def gates(self) -> Gates:
        """The gates, once a job comes to one."""
        if self._gates is None:
            self._gates = Gates(self._tx, self._now, self._passed)
        return self._gates

    def _passed(self, member: Member) -> None:
        own: Own = member.own
        self._ends.append(End(member.n, own.queue, own.rank, own.past, own.fair_by, keeps_due=True))

    def seated(self, seats: Mapping[int, int]) -> None:
        """Be told the places of jobs in lanes; of others they are looked up."""
        self._seats |= seats

    def _member(self, n: int, job: Job, past: Past = NO_PAST) -> Member:
        if n not in self._seats:
            self._seats |= seats(self._tx, [n])
        return member(job, n, self._seats[n], past)

    def join(self, n: int, job: Job, past: Past) -> None:
        """One that has never started joins its lane only when it becomes due: behind all who have joined before."""
        if gated(job) and past.claim == 0:
            self.seated({n: self._tx.numbers(1)})
            self._tx.do("note_seats", seats=text([(n, self._seats[n])]))

    def place(self, n: int, job: Job, past: Past, due: int | None) -> None:
        """To the time `due` where that is to come, else to the end of the ready line, as far as its gates let it pass."""
        if due is not None and due > self._now:
            self._times.append((due, n, past))
            if gated(job):
                self.leave(n, job, left_when_put_off(past.claim))
        elif gated(job) and not self._enter(self._member(n, job, past)):
            self.gates.waits(n, due)
        else:
            self._ends.append(End(n, job.queue, -job.priority, past, job.fair_by, due))

    def _enter(self, member: Member) -> bool:
        return self.gates.run(lambda ledger: ledger.enter(member))

    def arrive(self, jobs: Sequence[tuple[int, Job]]) -> None:
        """Jobs just stored whose time has come: each to the place of its number, as far as its gates let it pass."""
        self.seated({n: n for n, _ in jobs})
        members = {n: member(job, n, n, NO_PAST) for n, job in jobs if gated(job)}
        if members:
            self.gates.expect(list(members.values()))
        for n, job in jobs:
            if n in members and not self._enter(members[n]):
                continue
            if job.fair_by is None:
                self._places.append((job.queue, placed(-job.priority), n, n, *NO_PAST[:3], self._now, None, None))
            else:
                self._ends.append(End(n, job.queue, -job.priority, NO_PAST, job.fair_by, keeps_due=True, number=n))

    def back(self, n: int, job: Job, past: Past, pos: int, ready_at: int) -> None:
        """To the place in the ready line that it had, if its gates still let it."""
        if not gated(job) or self._enter(self._member(n, job, past)):
            rank = placed(-job.priority) if job.fair_by is None else self._tx.value("place", n=n)
            self._places.append((job.queue, rank, pos, n, *past[:3], ready_at, past.started_at, past.worker))

    def come_due(self, n: int, keyed: Extra, queue: str, rank: int, due: int, past: Past) -> None:
        """A scheduled job whose time has come."""
        if not gated(keyed) or self._enter(member_of(keyed, n, self._seats[n], Own(queue, rank, past, keyed.fair_by))):
            self._ends.append(End(n, queue, rank, past, keyed.fair_by, due))

    def entering(self) -> bool:
        """Whether anybody comes into a ready line."""
        return bool(self._ends or self._places)

    def starts(self, n: int, job: Job, past: Past) -> bool:
        """Whether a ready job may be claimed; if not, it waits again. The caller takes it out of its line."""
        return self.gates.run(lambda ledger: ledger.start(self._member(n, job, past)))

    def leave(self, n: int, job: Job, kinds: Sequence[Kind] = KINDS) -> None:
        """Let go of what a job holds; who waited for that passes."""
        if gated(job):
            self.gates.run(lambda ledger: ledger.leave(self._member(n, job), kinds))

    def withdraw(self, n: int, job: Job) -> None:
        """Take a job out of the lane in which it waits."""
        self.gates.run(lambda ledger: ledger.withdraw(self._member(n, job)))

    def shut(self, job: Job, until: int) -> None:
        """Hold back all of a job's key."""
        for gate in held_back_by(job):
            self.gates.run(lambda ledger, gate=gate: ledger.shut(gate, until))

    def pump(self, gates: Iterable[str]) -> None:
        """Let pass who may."""
        for gate in gates:
            self.gates.run(lambda ledger, gate=gate: ledger.pump(gate))

    def change(self, key: str, change: LimitChange) -> None:
        """A person changes what a key allows."""
        for gate in changed_by(key, change):
            self.gates.run(lambda ledger, gate=gate: ledger.change(gate, change))

    def write(self) -> None:
        """Do it all."""
        tx = self._tx
        if self._gates is not None:
            self._gates.write()
        if self._ends:
            line = list(zip(self._ends, self._numbered(), rounds(tx, self._ends), strict=True))
            tx.do("note_places", moves=text([(end.n, pos, end.due, end.keeps_due) for end, pos, _ in line]))
            self._places.extend(
                (
                    end.queue,
                    placed(end.rank, turn),
                    pos,
                    end.n,
                    *end.past[:3],
                    self._now,
                    end.past.started_at,
                    end.past.worker,
                )
                for end, pos, turn in line
            )
        if self._places:
            tx.add("add_ready", self._places)
            tx.work = True
        if self._times:
            tx.do("note_dues", moves=text([(n, due) for due, n, _ in self._times]))
            tx.add("add_scheduled", [(due, n, *past) for due, n, past in self._times])
            tx.work = True

    def _numbered(self) -> list[int]:
        """The places of those that go to the ends of ready lines."""
        wanting = sum(end.number is None for end in self._ends)
        numbers = itertools.count(self._tx.numbers(wanting) if wanting else 0)
        return [next(numbers) if end.number is None else end.number for end in self._ends]


def rounds(tx: Transaction, ends: Sequence[End]) -> list[int]:
    """The rounds of those that take turns by key; 0 for others."""
    keys: dict[tuple[str, int], set[str]] = {}
    for end in ends:
        if end.fair_by is not None:
            keys.setdefault((end.queue, end.rank), set()).add(end.fair_by)
    if not keys:
        return [0] * len(ends)
    asked = [(queue, rank, sorted(wanted)) for (queue, rank), wanted in keys.items()]
    serving: dict[tuple[str, int], int | None] = {}
    lasts: dict[tuple[str, int], dict[str, int]] = {}
    for line, (first, known) in zip(keys, _rounds(tx.value("rounds", lines=text(asked))), strict=True):
        serving[line], lasts[line] = (None, {}) if first is None else (first, known)
        if first is None:
            tx.do("drop_rounds", queue=line[0], rank=line[1])
    given: list[int] = []
    for end in ends:
        if end.fair_by is None:
            given.append(0)
            continue
        line = (end.queue, end.rank)
        lasts[line][end.fair_by] = turn = round_of(serving[line], lasts[line].get(end.fair_by))
        serving[line] = turn if serving[line] is None else serving[line]
        given.append(turn)
    tx.add("put_rounds", [(queue, rank, key, last) for (queue, rank), known in lasts.items() for key, last in known.items()])
    tx.do("note_rounds", rounds=text([(end.n, turn) for end, turn in zip(ends, given, strict=True) if end.fair_by is not None]))
    return given


def take_out(tx: Transaction, rows: Sequence[JobColumns]) -> None:
    """Take jobs that do not run out of where they stand; their rows in `jobs` stay."""
    ready: dict[str, list[tuple[int, int]]] = {}
    aside: dict[str, list[tuple[str, int, int]]] = {}
    scheduled: list[tuple[int | None, int]] = []
    others: list[int] = []
    for row in rows:
        match row.state:
            case State.READY if row.aside:
                aside.setdefault(row.queue, []).append((row.task, row.place, row.pos))
            case State.READY:
                ready.setdefault(row.queue, []).append((row.place, row.pos))
            case State.SCHEDULED:
                scheduled.append((row.due, row.n))
            case State.WAITING if row.lane is not None:
                pass  # it is withdrawn from its lane, where those behind it may pass then
            case _:
                others.append(row.n)
    for queue, places in ready.items():
        tx.do("drop_places", queue=queue, places=text(places))
    for queue, lines in aside.items():
        tx.do("drop_places_aside", queue=queue, places=text(lines))
    if scheduled:
        tx.do("drop_scheduled", pairs=text(scheduled))
    if others:
        tx.do("drop_waiting", ns=text(others))
        tx.do("drop_done", ns=text(others))
