"""Puts jobs into the lines where they stand, and takes them out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, assert_never

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking, turns
from offload.brokers.postgres.gating import Gates, Own, Past, member
from offload.brokers.postgres.rows import JobColumns, jobs_by_number, placed
from offload.brokers.postgres.work import Transaction, text
from offload.gates import KINDS, Keyed, Member, changed_by, gated, held_back_by, left_when_put_off, wants_of
from offload.job import Job, Kind, LimitChange, State

MOST_ARRIVALS = 1_000
"""The most jobs of callers' transactions that one operation lets in."""

_NOT_STARTED = frozenset({State.READY, State.SCHEDULED, State.WAITING})
_taken = msgspec.json.Decoder(list[tuple[int, Past]]).decode
_numbers = msgspec.json.Decoder(list[int]).decode
_arrivals = msgspec.json.Decoder(list[tuple[int, int | None]]).decode
_seats = msgspec.json.Decoder(list[tuple[int, int]]).decode


class End(NamedTuple):
    """A job goes to the end of its ready line, or to its turn there."""

    n: int
    queue: str
    rank: int
    due: int | None
    past: Past
    keeps_due: bool = False
    """Whether `due` stays what it was."""
    fair_by: str | None = None
    pos: int | None = None
    """Its place among those of its round, where it has one."""
    ready_at: int | None = None
    """Since when it has stood there, where it goes back to the turn that it had."""


class Enter(NamedTuple):
    """A job comes to its gates. Where they let it pass it goes to `place`, else to the end of its line."""

    n: int
    keyed: Keyed
    own: Own
    due: int | None = None
    keeps_due: bool = False
    place: tuple[int, int] | None = None
    """Where it goes back to, and since when it has stood there."""
    new: bool = False
    """Whether its place is its number."""
    joins: bool = False
    """Whether it joins its lane only now: behind all who have joined it, whenever they were given their numbers."""


class Leave(NamedTuple):
    """A job lets go of what it holds."""

    n: int
    keyed: Keyed
    kinds: Sequence[Kind]


class Withdraw(NamedTuple):
    """A job leaves the lane in which it waits."""

    n: int
    keyed: Keyed


class Shut(NamedTuple):
    """Nobody passes for a time."""

    gate: str
    until: int


class Pump(NamedTuple):
    """Who may pass does."""

    gate: str


class Change(NamedTuple):
    """A person sets what a gate allows."""

    gate: str
    change: LimitChange


Step: TypeAlias = End | Enter | Leave | Withdraw | Shut | Pump | Change


class Moves:
    """Gathers where jobs go, in order, and writes it set by set. Those with an order or limits go by way of their gates.

    Nothing is asked of gates before `write`, when all other locks are had.
    """

    def __init__(self, now: int, gates: Gates | None = None) -> None:
        self._now = now
        self._steps: list[Step] = []
        self._new: list[int] = []
        self._places: list[tuple[Any, ...]] = []
        self._times: list[tuple[Any, ...]] = []
        self._gates = gates
        """Those of an earlier set of moves in the same transaction, where there was one."""
        self._asked = False
        self._seats: dict[int, int] = {} if gates is None else gates.seats
        self.entered: dict[int, str] = {}
        """Those that were put into ready lines, with their queues."""

    def seated(self, seats: Mapping[int, int]) -> None:
        """Be told the places of jobs in lanes; of others they are looked up."""
        self._seats |= seats

    def place(self, n: int, job: Job, past: Past, due: int | None, *, joins: bool = False) -> None:
        """To the time `due` where that is to come, else to the end of the ready line, as far as its gates let it pass.

        One that has never started `joins` its lane where something else than time had kept it from it.
        """
        if due is not None and due > self._now:
            self._times.append((due, n, *past))
            if not joins:  # who has yet to join holds nothing, and a caller's transaction must not wait at its gates
                self.leave(n, job, left_when_put_off(past.claim))
        elif gated(job):
            self._steps.append(Enter(n, job, Own.of(job, past), due, joins=joins and past.claim == 0))
        else:
            self._steps.append(End(n, job.queue, -job.priority, due, past, fair_by=job.fair_by))

    def come_due(self, n: int, keyed: Keyed, own: Own, due: int) -> None:
        """A scheduled job whose time has come."""
        end = End(n, own.queue, own.rank, due, own.past, fair_by=own.fair_by)
        self._steps.append(Enter(n, keyed, own, due) if gated(keyed) else end)

    def back(self, n: int, job: Job, past: Past, pos: int, ready_at: int) -> None:
        """To the place in the ready line that it had, if its gates still let it."""
        if gated(job):
            self._steps.append(Enter(n, job, Own.of(job, past), place=(pos, ready_at)))
        else:
            self._back(n, Own.of(job, past), pos, ready_at)

    def _back(self, n: int, own: Own, pos: int, ready_at: int) -> None:
        queue, rank, past, fair_by = own
        if fair_by is None:
            self._places.append((queue, placed(rank), pos, n, *past[:3], ready_at, past.started_at, past.worker))
        else:
            self._steps.append(End(n, queue, rank, None, past, True, fair_by, pos, ready_at))

    def arrive(self, n: int, job: Job) -> None:
        """A job just stored whose time has come: to the place of its number, if its gates let it pass, or to its turn."""
        if gated(job):
            self._seats[n] = n
            self._steps.append(Enter(n, job, Own.of(job, Past()), new=True, joins=True))
        else:
            self._steps.append(End(n, job.queue, -job.priority, None, Past(), True, job.fair_by, n))

    def leave(self, n: int, job: Keyed, kinds: Sequence[Kind] = KINDS) -> None:
        """Let go of what a job holds; who waited for that passes."""
        if gated(job):
            self._steps.append(Leave(n, job, kinds))

    def withdraw(self, n: int, job: Keyed) -> None:
        """Take a job out of the lane in which it waits."""
        self._steps.append(Withdraw(n, job))

    def shut(self, job: Keyed, until: int) -> None:
        """Hold back all of a job's key."""
        self._steps += [Shut(gate, until) for gate in held_back_by(job)]

    def pump(self, gates: Iterable[str]) -> None:
        """Let pass who may."""
        self._steps += [Pump(gate) for gate in gates]

    def change(self, key: str, change: LimitChange) -> None:
        """A person changes what a key allows."""
        self._steps += [Change(gate, change) for gate in changed_by(key, change)]

    def entering(self) -> bool:
        """Whether anybody is to come into a ready line, by what is known before `write`."""
        return any(isinstance(step, End) for step in self._steps)

    def starts(self, tx: Transaction, n: int, job: Job, past: Past) -> Work[bool]:
        """Whether a ready job, whose gates are locked, may be claimed; if not, it waits again. The caller takes it out of its line."""
        gates = yield from self._opened(tx, job)
        yield from self._find_seats(tx, [n])
        each = member(job, n, self._seats[n], Own.of(job, past))
        yield from gates.meet(each.wants)
        return (yield from gates.run(lambda ledger: ledger.start(each)))

    def let_in(self, tx: Transaction) -> Work[None]:
        """Jobs of callers' transactions that were committed come to their gates, but for those whose gates another transaction has."""
        arrivals = dict(_arrivals((yield from tx.value("take_arrivals", limit=MOST_ARRIVALS))))
        if not arrivals:
            return
        rows = {n: row for n, row in sorted((yield from jobs_by_number(tx, list(arrivals))).items()) if row.state in _NOT_STARTED}
        jobs = {n: row.job() for n, row in rows.items()}
        busy = yield from locking.try_lock(tx, [*locking.gates_of(jobs.values()), *locking.lines_of(jobs.values())])
        ready = [rows[n] for n, job in jobs.items() if busy.isdisjoint([*locking.gates_of([job]), *locking.lines_of([job])])]
        taken = yield from take_out(tx, ready)
        for row in ready:
            if row.n in taken:
                self._let_in(row, jobs[row.n], taken[row.n], arrivals[row.n])
        yield from tx.post("drop_arrivals", ns=text([n for n in arrivals if n in taken or n not in rows]))

    def _let_in(self, row: JobColumns, job: Job, past: Past, moves_to: int | None) -> None:
        self._seats[row.n] = row.seat
        if row.lane is not None:
            self.withdraw(row.n, job)
        if moves_to is None:
            end = End(row.n, job.queue, -job.priority, None, past, True, job.fair_by)
            self._steps.append(Enter(row.n, job, Own.of(job, past), keeps_due=True, joins=True) if gated(job) else end)
        else:
            self.place(row.n, job, past, moves_to, joins=row.state is State.SCHEDULED)

    # -- at the gates --------------------------------------------------------------------------------------------------------

    def _opened(self, tx: Transaction, *jobs: Keyed) -> Work[Gates]:
        """The gates, for the steps and `jobs`; the first time, who waited to be let in comes to them before anybody else."""
        gates = self._gates = self._gates or Gates(tx)
        gates.passed, self._asked = self._passed, True
        if not gates.open:
            first = list(dict.fromkeys(_gates_of(self._steps)))
            yield from locking.have(tx, first)
            wants = [want for each in (*_keyed(self._steps), *jobs) for want in wants_of(each)]
            if (yield from gates.begin(first, wants)):
                later, self._steps = self._steps, []
                yield from self.let_in(tx)
                self._steps += later
        return gates

    def _passed(self, member: Member) -> None:
        own: Own = member.own
        self._steps.append(End(member.n, own.queue, own.rank, None, own.past, True, own.fair_by))

    def _pass(self, tx: Transaction) -> Work[None]:
        """Have everybody come to the gates; what is left are the ends of ready lines."""
        gates = yield from self._opened(tx)
        steps, self._steps = self._steps, []
        yield from self._expect(tx, gates, steps)
        for step in steps:
            yield from self._do(gates, step)
        yield from gates.write()

    def _expect(self, tx: Transaction, gates: Gates, steps: Sequence[Step]) -> Work[None]:
        """Read at once what these steps will ask for."""
        yield from self._join(tx, [step for step in steps if isinstance(step, Enter) and step.joins])
        yield from self._find_seats(tx, [step.n for step in steps if isinstance(step, Enter)])
        members = [self._member(step) for step in steps if isinstance(step, Enter | Leave | Withdraw)]
        yield from gates.expect(members, [step.gate for step in steps if isinstance(step, Shut | Pump | Change)])

    def _join(self, tx: Transaction, steps: Sequence[Enter]) -> Work[None]:
        """Give jobs their seats, now that their gates are locked.

        A number that was taken before may be lower than that of somebody who has the turn already: back at the gate he would stand behind
        one who waits for him. It will do as long as it is the last that was taken.
        """
        ns = [step.n for step in steps]
        if not ns or (all(step.new for step in steps) and (yield from tx.value("last_number")) == ns[-1]):
            return
        seats = dict(zip(ns, _numbers((yield from tx.value("take_numbers", count=len(ns)))), strict=True))
        yield from tx.post("note_seats", seats=text(seats))
        self._seats |= seats

    def _find_seats(self, tx: Transaction, ns: Iterable[int]) -> Work[None]:
        unknown = [n for n in ns if n not in self._seats]
        if unknown:
            self._seats |= dict(_seats((yield from tx.value("seats", ns=text(unknown)))))

    def _member(self, step: Enter | Leave | Withdraw) -> Member:
        """A job as gates see it. Who leaves needs no seat."""
        own = step.own if isinstance(step, Enter) else Own("", 0, Past())
        return member(step.keyed, step.n, self._seats.get(step.n, 0), own)

    def _do(self, gates: Gates, step: Step) -> Work[None]:
        match step:
            case End():
                self._steps.append(step)
            case Enter():
                yield from self._enter(gates, step)
            case Leave(_, _, kinds):
                each = self._member(step)
                yield from gates.run(lambda ledger: ledger.leave(each, kinds))
            case Withdraw():
                each = self._member(step)
                yield from gates.run(lambda ledger: ledger.withdraw(each))
            case Shut(gate, until):
                yield from gates.run(lambda ledger: ledger.shut(gate, until))
            case Pump(gate):
                yield from gates.run(lambda ledger: ledger.pump(gate))
            case Change(gate, change):
                yield from gates.run(lambda ledger: ledger.change(gate, change))
            case _:
                assert_never(step)

    def _enter(self, gates: Gates, step: Enter) -> Work[None]:
        each = self._member(step)
        if not (yield from gates.run(lambda ledger: ledger.enter(each))):
            if step.place is None and not step.new and not step.keeps_due:
                gates.waits(step.n, step.due)
        elif step.place is not None:
            self._back(step.n, step.own, *step.place)
        elif step.new and step.own.fair_by is None:
            self._new.append(step.n)
        else:
            queue, rank, past, fair_by = step.own
            pos = step.n if step.new else None
            self._steps.append(End(step.n, queue, rank, step.due, past, step.keeps_due or step.new, fair_by, pos))

    # -- in lines ------------------------------------------------------------------------------------------------------------

    def write(self, tx: Transaction, *, quietly: bool = False) -> Work[None]:
        """Do it all. Where `quietly`, the caller tells others of those that have `entered`."""
        if self._asked or any(not isinstance(step, End) or step.fair_by is not None for step in self._steps):
            yield from self._pass(tx)
        ends = list(self._ends())
        plain = [(end.n, end.queue, end.rank, end.due, *end.past, end.keeps_due) for end in ends if end.fair_by is None]
        if self._new:
            yield from tx.post("place_new", ns=text(self._new), now=self._now)
        if plain:
            yield from tx.post("to_the_end", moves=text(plain), now=self._now)
        if len(plain) < len(ends):
            yield from self._take_turns(tx, ends)
        if self._places:
            yield from tx.post("to_their_places", moves=text(self._places))
        if self._times:
            yield from tx.post("to_their_times", moves=text(self._times))
        self.entered = dict.fromkeys(self._new, "") | {end.n: end.queue for end in ends} | {place[3]: place[0] for place in self._places}
        tx.work |= bool(self._times) or (bool(self.entered) and not quietly)

    def _ends(self) -> Iterator[End]:
        for step in self._steps:
            assert isinstance(step, End)
            yield step

    def _take_turns(self, tx: Transaction, ends: Sequence[End]) -> Work[None]:
        fair = [(end, end.fair_by) for end in ends if end.fair_by is not None]
        wishes = [turns.Wish(end.queue, end.rank, key, None if end.ready_at is None else end.n) for end, key in fair]
        given, changes = yield from turns.give(tx, wishes)
        moves = [
            (end.n, end.queue, placed(end.rank, sum(turn)), end.due, *end.past, end.keeps_due, end.pos, end.ready_at, *turn)
            for (end, _), turn in zip(fair, given, strict=True)
        ]
        yield from tx.post("take_turns", moves=text(moves), now=self._now, **changes)


def _keyed(steps: Iterable[Step]) -> Iterator[Keyed]:
    return (step.keyed for step in steps if isinstance(step, Enter | Leave | Withdraw))


def _gates_of(steps: Iterable[Step]) -> Iterator[str]:
    for step in steps:
        if isinstance(step, Enter | Leave | Withdraw):
            yield from (want.gate for want in wants_of(step.keyed))
        elif not isinstance(step, End):
            yield step.gate


def put_off(tx: Transaction, jobs: Sequence[tuple[int, int | None]]) -> Work[None]:
    """Have jobs come to their gates and turns once a caller's transaction was committed: new ones, or those that go then to a time."""
    yield from tx.post("add_arrivals", jobs=text(jobs))
    tx.work = True


def take_out(tx: Transaction, rows: Sequence[JobColumns]) -> Work[dict[int, Past]]:
    """Take jobs that do not run out of where they stand; their rows in `jobs` stay.

    Returns what those that stood there have behind them, by number. The others have moved since `rows` were read: look again. From the
    lane in which it waits a job is still to be withdrawn.
    """
    if not rows:
        return {}
    places = [(row.n, row.state, row.queue, row.task, row.place, row.pos, row.due, row.aside, row.lane is not None) for row in rows]
    return dict(_taken((yield from tx.value("take_out", places=text(places)))))
