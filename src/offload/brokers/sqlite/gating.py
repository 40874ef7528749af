"""The gates and lanes of an SQLite store, as `offload.gates` reads and writes them within one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, assert_never

import msgspec

from offload.brokers.sqlite.rows import JobColumns, read_extra, text
from offload.brokers.sqlite.transaction import T, Transaction
from offload.gates import (
    MOST_HOLDERS,
    MOST_STRIKING,
    MOST_WOKEN,
    Lane,
    Ledger,
    Member,
    Need,
    Place,
    Steps,
    answered,
    by_rule,
    changed_gates,
    gates_of,
    is_known,
    key_of,
    kind_of,
    member_of,
    new_rules,
    page_of,
    rule_id,
    rules_of,
    wants_of,
)
from offload.gates.rows import (
    GateRow,
    gate_from,
    record_of,
    stopping_first,
    unread_gates,
    unread_lanes,
    written,
)
from offload.job import Job, Limit, State
from offload.records import LimitRecord

DEPTH = 2
"""How many lanes of a gate, and jobs of a lane, are read at first: hardly ever more pass at once."""
FURTHER = 100
"""How many are read when those were not enough."""


class Past(NamedTuple):
    """What a job takes along from line to line."""

    claim: int = 0
    attempt: int = 0
    crashes: int = 0
    started_at: int | None = None
    worker: str | None = None


class Own(NamedTuple):
    """What the store wants to know of a job at a gate: its line when it passes, and what it takes along."""

    queue: str
    rank: int
    past: Past
    fair_by: str | None


LineRow = tuple[int, int, str, int, str, int, int, int, int | None, str | None]
LaneRow = tuple[str, str | None, list[LineRow]]

_gates = msgspec.json.Decoder(list[GateRow]).decode
_lanes = msgspec.json.Decoder(list[LaneRow]).decode
_line = msgspec.json.Decoder(list[LineRow]).decode
_places = msgspec.json.Decoder(list[Place]).decode
_rules = msgspec.json.Decoder(dict[str, Limit]).decode
_seats = msgspec.json.Decoder(list[tuple[int, int]]).decode
_names = msgspec.json.Decoder(list[str]).decode
_heads = msgspec.json.Decoder(list[tuple[str, str]]).decode


def member(job: Job, n: int, seat: int, past: Past) -> Member:
    """A job as gates see it."""
    return member_of(job, n, seat, Own(job.queue, -job.priority, past, job.fair_by))


def _member(row: LineRow) -> Member:
    seat, n, queue, rank, extra = row[:5]
    keyed = read_extra(extra)
    return member_of(keyed, n, seat, Own(queue, rank, Past(*row[5:]), keyed.fair_by))


class Rules:
    """What workers declare: read as far as it is asked for, for there may be thousands, and it may be another at the next transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._known: dict[str, Limit | None] = {}

    def read(self, ids: Iterable[str]) -> None:
        """Read at once what will be asked for."""
        if missing := [id for id in ids if id not in self._known]:
            self._known |= dict.fromkeys(missing) | _rules(self._tx.value("rules", ids=text(missing)))

    def get(self, id: str, /) -> Limit | None:
        """The limit that is declared under a rule."""
        self.read([id])
        return self._known[id]


class Gates:
    """The gates and lanes that a transaction has to do with. `passed` is called for each job that passes after it has waited."""

    def __init__(self, tx: Transaction, now: int, passed: Callable[[Member], None]) -> None:
        self._tx = tx
        self._rules = Rules(tx)
        self._ledger = Ledger(now, self._rules, passed)
        self._stored: set[str] = set()
        """The lanes that stood in the table `lanes`."""
        self._dues: list[tuple[int, int | None]] = []

    def run(self, steps: Callable[[Ledger], Steps[T]]) -> T:
        """Do something at the gates."""
        return answered(steps(self._ledger), self._answer)

    def expect(self, members: Sequence[Member]) -> None:
        """Read at once what these will need."""
        self._meet(members)
        missing = unread_gates(self._ledger, (want.gate for each in members for want in each.wants))
        if missing:
            self._answer(Need("gates", missing))
        if lanes := unread_lanes(self._ledger, members, missing):
            self._answer(Need("lanes", lanes))

    def _meet(self, members: Iterable[Member]) -> None:
        self._rules.read(rules_of(want for each in members for want in each.wants))

    def waits(self, n: int, due: int | None) -> None:
        """Note the time of a job that waits in its lane from now on."""
        self._dues.append((n, due))

    def _answer(self, need: Need) -> None:
        match need.what:
            case "gates":
                self._read_gates(need.ids)
            case "lanes":
                self._read_lanes(need.ids)
            case "parked":
                for id in need.ids:
                    seat, lane = self._ledger.gates[id].read_to
                    parked = _places(self._tx.value("parked_lanes", gate=id, seat=seat, id=lane, depth=FURTHER))
                    self._ledger.read_parked(id, parked, len(parked) == FURTHER)
            case "line":
                for id in need.ids:
                    seat = self._ledger.lanes[id].read_to
                    line = [_member(row) for row in _line(self._tx.value("line", lane=id, seat=seat, depth=FURTHER))]
                    self._meet(line)
                    self._ledger.read_line(id, line, len(line) == FURTHER)
            case _:
                assert_never(need.what)

    def _read_gates(self, ids: Sequence[str]) -> None:
        for row in _gates(self._tx.value("gates", ids=text(list(ids)), depth=DEPTH)):
            self._ledger.read_gate(gate_from(row), row[3], len(row[3]) == DEPTH)

    def _read_lanes(self, ids: Sequence[str]) -> None:
        rows = _lanes(self._tx.value("lanes", ids=text(list(ids)), depth=DEPTH))
        lines = {id: [_member(row) for row in line] for id, _, line in rows}
        self._meet(member for line in lines.values() for member in line)
        for id, gate, line in rows:
            if gate is not None:
                self._stored.add(id)
            self._ledger.read_lane(Lane(id, gate or (id if line else None)), lines[id], len(line) == DEPTH)

    def write(self) -> None:
        """Write what has changed."""
        tx, changes = self._tx, self._ledger.changes
        if changes.held:
            tx.do("drop_slots", pairs=text(list(changes.held)))
            tx.add("add_slots", [(gate, n, cost) for (gate, n), cost in changes.held.items() if cost is not None])
        if changes.waiting:
            tx.do("drop_parked", ns=text(list(changes.waiting)))
            tx.add("add_parked", [(each.n, each.lane, each.seat, *each.own.past) for each, waits in changes.waiting.values() if waits])
        if self._dues:
            tx.do("note_parked", dues=text(self._dues))
        if changes.lanes:
            lanes = [self._ledger.lanes[id] for id in changes.lanes]
            if moved := [lane.id for lane in lanes if lane.id in self._stored]:
                tx.do("drop_lanes", ids=text(moved))
            tx.add("add_lanes", [(lane.id, lane.gate, lane.line[0].seat) for lane in lanes if lane.gate not in (None, lane.id)])
        if changes.gates:
            gates = [self._ledger.gates[id] for id in changes.gates]
            tx.do("drop_gates", ids=text([gate.id for gate in gates]))
            tx.add("add_gates", [written(gate) for gate in gates])
            tx.work = True  # who sleeps may have to wake up at another time


def seats(tx: Transaction, ns: Iterable[int]) -> dict[int, int]:
    """The places of jobs in lanes."""
    return dict(_seats(tx.value("seats", ns=text(list(ns)))))


def due(tx: Transaction, now: int) -> list[str]:
    """The gates where time alone may let somebody pass by now, those whose time came first."""
    return _names(tx.value("due_gates", now=now, limit=MOST_WOKEN))


def declare(tx: Transaction, limits: Sequence[Limit]) -> list[str]:
    """Take over what a worker declares. Returns the gates where somebody may pass now."""
    known = _rules(tx.value("rules", ids=text([rule_id(limit) for limit in limits])))
    changed = new_rules(limits, known)
    if not changed:
        return []
    tx.do("put_rules", rules=text([(rule_id(limit), limit) for limit, _ in changed]))
    return changed_gates(changed, ((gate, wants_of(read_extra(extra))) for gate, extra in _heads(tx.value("heads"))))


def page(tx: Transaction, now: int, limit: int, after: str | None, key: str | None) -> list[LimitRecord]:
    """What the first `limit` keys after one allow, or one `key` alone."""
    gates = _names(tx.value("known_gates", now=now)) if key is None else gates_of(key)
    return [each for each in limits(tx, now, page_of(gates, limit, after)) if is_known(each)]


def limits(tx: Transaction, now: int, gates: Sequence[str]) -> list[LimitRecord]:
    """What gates allow, and who holds them, in the order given."""
    rules = Rules(tx)
    return [_limit(tx, now, row, rules) for row in _gates(tx.value("gates", ids=text(list(gates)), depth=0))]


def striking(tx: Transaction, now: int) -> tuple[LimitRecord, ...]:
    """Those that let nobody pass."""
    gates = sorted(_names(tx.value("striking_gates", now=now)), key=lambda gate: (key_of(gate), kind_of(gate)))
    return tuple(limits(tx, now, gates[:MOST_STRIKING]))


def declared(tx: Transaction) -> tuple[Limit, ...]:
    """What counts of all that workers have declared."""
    return by_rule(_rules(tx.value("all_rules")).values())


def _limit(tx: Transaction, now: int, row: GateRow, rules: Rules) -> LimitRecord:
    waiting, extra, holders, dead = tx.row("gate_facts", gate=row[0], most=MOST_HOLDERS)
    concerned = None if extra is None else read_extra(extra)
    return record_of(row, rules, now, _names(holders), waiting, concerned, dead=bool(dead))


def limits_of(tx: Transaction, now: int, row: JobColumns) -> tuple[tuple[LimitRecord, ...], int]:
    """What the keys of a job that is READY or in a lane allow, what stops it first, and how many of its lane go before it."""
    if row.lane is None:
        gates = [want.gate for want in wants_of(row.job())] if row.state is State.READY else []
        return (tuple(limits(tx, now, gates)) if gates else ()), 0
    stop, before = tx.row("lane_facts", lane=row.lane, seat=row.seat)
    return tuple(limits(tx, now, stopping_first(row.job(), stop))), before


def forget(tx: Transaction, now: int) -> None:
    """Drop what says no more than that nothing is known."""
    tx.do("forget_gates", now=now)
