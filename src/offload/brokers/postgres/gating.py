"""The gates and lanes of a PostgreSQL store, as `offload.gates` reads and writes them within one transaction.

What is known of a gate, who holds it and which lanes are parked there is read and changed under the gate's lock: see locking.py. A lane
is read and changed under the lock of its turn, or else of the gate where it is parked, which is one of those that all its jobs want.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple, assert_never

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking
from offload.brokers.postgres.rows import JobColumns, read_extra
from offload.brokers.postgres.work import T, Transaction, text
from offload.gates import (
    MOST_HOLDERS,
    MOST_STRIKING,
    MOST_WOKEN,
    Changes,
    Keyed,
    Lane,
    Ledger,
    Member,
    Need,
    Place,
    Steps,
    Want,
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
"""How many lanes of a gate are read at first: hardly ever more pass at once."""
LINE_DEPTH = 4
"""How many jobs of a lane are read at first."""
FURTHER = 100
"""How many are read when those were not enough."""
LONGEST_LANE = 900
"""The most bytes of a lane's id, more than the longest gate has: an index takes no more than 2,704 of both together."""


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
    fair_by: str | None = None

    @classmethod
    def of(cls, job: Job, past: Past) -> Own:
        """What it wants to know of a job."""
        return cls(job.queue, -job.priority, past, job.fair_by)


LineRow = tuple[int, int, str, int, str, int, int, int, int | None, str | None]
LaneRow = tuple[str, str | None, list[LineRow]]
Facts = tuple[int, str | None, list[str], bool]

_gates = msgspec.json.Decoder(list[GateRow]).decode
_lanes = msgspec.json.Decoder(list[LaneRow]).decode
_line = msgspec.json.Decoder(list[LineRow]).decode
_places = msgspec.json.Decoder(list[Place]).decode
_rules = msgspec.json.Decoder(dict[str, Limit]).decode
_names = msgspec.json.Decoder(list[str]).decode
_facts = msgspec.json.Decoder(list[Facts]).decode
_heads = msgspec.json.Decoder(list[tuple[str, str]]).decode


def member(job: Keyed, n: int, seat: int, own: Own) -> Member:
    """A job as gates see it."""
    found = member_of(job, n, seat, own)
    lane = _fitting(found.lane)
    return found if lane is found.lane else found._replace(lane=lane)


@lru_cache(8192)
def _fitting(lane: str) -> str:
    """The id of a lane; where it is too long, one that names none of its many gates."""
    encoded = lane.encode()
    return lane if len(encoded) <= LONGEST_LANE else f"lane\n{sha256(encoded).hexdigest()}"


def _member(row: LineRow) -> Member:
    seat, n, queue, rank, extra = row[:5]
    keyed = read_extra(extra)
    return member(keyed, n, seat, Own(queue, rank, Past(*row[5:]), keyed.fair_by))


class Gates:
    """The gates and lanes that a transaction has to do with."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self.passed: Callable[[Member], None] = lambda _: None
        """Called for each job that passes after it has waited."""
        self.seats: dict[int, int] = {}
        """The places of jobs in lanes, as far as they are known."""
        self.open = False
        """Whether what is true of all gates was read."""
        self._rules: dict[str, Limit | None] = {}
        """What workers declare under the rules that were asked for: there may be thousands of others."""
        self._ledger = Ledger(tx.now, self._rules, self._let_pass)
        self._stored: set[str] = set()
        """The lanes that stood in the table `lanes`."""
        self._wakes: dict[str, int | None] = {}
        self._dues: dict[int, int | None] = {}

    def _let_pass(self, member: Member) -> None:
        self.seats[member.n] = member.seat
        self.passed(member)

    def begin(self, ids: Sequence[str], wants: Iterable[Want]) -> Work[bool]:
        """Read gates, which are locked, and the rules that `wants` name. Returns whether jobs wait to be let in."""
        names = rules_of(wants)
        if ids:
            rows, rules, arrivals = yield from self._tx.row("gates", ids=text(list(ids)), depth=DEPTH, rules=text(names))
            self._note_gates(_gates(rows))
        else:
            rules, arrivals = yield from self._tx.row("at_gates", rules=text(names))
        self._rules |= dict.fromkeys(names) | _rules(rules)
        self.open = True
        return arrivals

    def meet(self, wants: Iterable[Want]) -> Work[None]:
        """Read the rules that these name, but for those that are known: none changes as long as a gate is locked."""
        if names := [name for name in rules_of(wants) if name not in self._rules]:
            self._rules |= dict.fromkeys(names) | (yield from _declared(self._tx, names))

    def run(self, act: Callable[[Ledger], Steps[T]]) -> Work[T]:
        """Do something at the gates."""
        steps = act(self._ledger)
        while True:
            try:
                need = next(steps)
            except StopIteration as end:
                return end.value
            yield from self._answer(need)

    def expect(self, members: Sequence[Member], gates: Sequence[str] = ()) -> Work[None]:
        """Read at once what these will need."""
        yield from self.meet(want for each in members for want in each.wants)
        wanted = [*(want.gate for each in members for want in each.wants), *gates]
        if missing := unread_gates(self._ledger, wanted):
            yield from self._answer(Need("gates", missing))
        if lanes := unread_lanes(self._ledger, members, dict.fromkeys(wanted)):
            yield from self._answer(Need("lanes", lanes))

    @property
    def wake_at(self) -> int | None:
        """When somebody may pass one of these by time alone."""
        return min((at for at in self._wakes.values() if at is not None), default=None)

    def waits(self, n: int, due: int | None) -> None:
        """Note the time of a job that waits in its lane from now on."""
        self._dues[n] = due

    def _answer(self, need: Need) -> Work[None]:
        match need.what:
            case "gates":
                yield from self._read_gates(need.ids)
            case "lanes":
                yield from self._read_lanes(need.ids)
            case "parked":
                for id in need.ids:
                    seat, lane = self._ledger.gates[id].read_to
                    parked = _places((yield from self._tx.value("parked_lanes", gate=id, seat=seat, id=lane, depth=FURTHER)))
                    self._ledger.read_parked(id, parked, len(parked) == FURTHER)
            case "line":
                for id in need.ids:
                    seat = self._ledger.lanes[id].read_to
                    line = [_member(row) for row in _line((yield from self._tx.value("line", lane=id, seat=seat, depth=FURTHER)))]
                    yield from self.meet(want for each in line for want in each.wants)
                    self._ledger.read_line(id, line, len(line) == FURTHER)
            case _:
                assert_never(need.what)

    def _read_gates(self, ids: Sequence[str]) -> Work[None]:
        yield from locking.have(self._tx, ids)
        self._note_gates(_gates((yield from self._tx.value("gates", ids=text(list(ids)), depth=DEPTH, rules="[]"))))

    def _note_gates(self, rows: Sequence[GateRow]) -> None:
        for row in rows:
            gate = gate_from(row)
            self._wakes[gate.id] = gate.wake_at
            self._ledger.read_gate(gate, row[3], len(row[3]) == DEPTH)

    def _read_lanes(self, ids: Sequence[str]) -> Work[None]:
        yield from locking.have(self._tx, [id for id in ids if id.startswith("turn of ")])
        rows = _lanes((yield from self._tx.value("lanes", ids=text(list(ids)), depth=LINE_DEPTH)))
        yield from locking.have(self._tx, [gate for _, gate, _ in rows if gate is not None])  # where it is parked may change, too
        lines = {id: [_member(row) for row in line] for id, _, line in rows}
        yield from self.meet(want for line in lines.values() for each in line for want in each.wants)
        for id, gate, line in rows:
            if gate is not None:
                self._stored.add(id)
            self._ledger.read_lane(Lane(id, gate or (id if line else None)), lines[id], len(line) == LINE_DEPTH)

    def write(self) -> Work[None]:
        """Write what has changed, and go on from there."""
        tx, changes = self._tx, self._ledger.changes
        held = [(gate, n, cost) for (gate, n), cost in changes.held.items()]
        waiting = changes.waiting.values()
        lanes = [self._ledger.lanes[id] for id in changes.lanes]
        parked = {lane.id: (lane.id, lane.gate, lane.line[0].seat) for lane in lanes if lane.gate not in (None, lane.id)}
        gates = [self._ledger.gates[id] for id in changes.gates]
        if held or waiting or lanes or gates:
            yield from tx.post(
                "put_gates",
                left=text([(gate, n) for gate, n, cost in held if cost is None]),
                held=text([each for each in held if each[2] is not None]),
                passed=text([each.n for each, waits in waiting if not waits]),
                waiting=text([(each.n, each.lane, each.seat, *each.own.past) for each, waits in waiting if waits]),
                empty=text([lane.id for lane in lanes if lane.id in self._stored and lane.id not in parked]),
                lanes=text(list(parked.values())),
                gates=text([written(gate) for gate in gates]),
            )
        if self._dues:
            yield from tx.post("note_dues", dues=text(self._dues))
        tx.work |= any(_earlier(gate.wake_at, self._wakes[gate.id]) for gate in gates)  # who sleeps has to wake up at another time
        self._wakes |= {gate.id: gate.wake_at for gate in gates}
        self._stored.difference_update(lane.id for lane in lanes)
        self._stored.update(parked)
        self._ledger.changes = Changes()
        self._dues = {}


def _earlier(wake_at: int | None, before: int | None) -> bool:
    return wake_at is not None and (before is None or wake_at < before)


def due(tx: Transaction) -> Work[tuple[list[str], bool]]:
    """The gates where time alone may let somebody pass by now, those whose time came first, and whether jobs wait to be let in."""
    ids, arrivals = yield from tx.row("due_gates", now=tx.now, limit=MOST_WOKEN)
    return _names(ids), arrivals


def declare(tx: Transaction, limits: Sequence[Limit]) -> Work[list[str]]:
    """Take over what a worker declares. Returns the gates where somebody may pass now.

    Whoever is at any gate goes by the rules that he read there. So all gates are locked, but only where a rule changes.
    """
    names = [rule_id(limit) for limit in limits]
    if not new_rules(limits, (yield from _declared(tx, names))):
        return []
    yield from locking.lock_all(tx)
    changed = new_rules(limits, (yield from _declared(tx, names)))
    if not changed:
        return []
    yield from tx.post("put_rules", rules=text([(rule_id(limit), limit) for limit, _ in changed]))
    heads = _heads((yield from tx.value("heads")))
    return changed_gates(changed, ((gate, wants_of(read_extra(extra))) for gate, extra in heads))


def _declared(tx: Transaction, names: Sequence[str]) -> Work[dict[str, Limit]]:
    return _rules((yield from tx.value("rules", rules=text(list(names))))) if names else {}


def page(tx: Transaction, limit: int, after: str | None, key: str | None) -> Work[list[LimitRecord]]:
    """What the first `limit` keys after one allow, or one `key` alone."""
    gates = _names((yield from tx.value("known_gates", now=tx.now))) if key is None else gates_of(key)
    return [each for each in (yield from limits(tx, page_of(gates, limit, after))) if is_known(each)]


def limits(tx: Transaction, gates: Sequence[str]) -> Work[list[LimitRecord]]:
    """What gates allow, and who holds them, in the order given."""
    rows = _gates((yield from tx.value("gates", ids=text(list(gates)), depth=0, rules="[]")))
    facts = _facts((yield from tx.value("gate_facts", gates=text([row[0] for row in rows]), most=MOST_HOLDERS)))
    concerned = [None if extra is None else read_extra(extra) for _, extra, _, _ in facts]
    rules = yield from _declared(tx, rules_of(want for job in concerned if job is not None for want in wants_of(job)))
    return [
        record_of(row, rules, tx.now, holders, waiting, job, dead=dead)
        for row, (waiting, _, holders, dead), job in zip(rows, facts, concerned, strict=True)
    ]


def striking(tx: Transaction) -> Work[tuple[LimitRecord, ...]]:
    """Those that let nobody pass."""
    gates = sorted(_names((yield from tx.value("striking_gates", now=tx.now))), key=lambda gate: (key_of(gate), kind_of(gate)))
    return tuple((yield from limits(tx, gates[:MOST_STRIKING])))


def declared(tx: Transaction) -> Work[tuple[Limit, ...]]:
    """What counts of all that workers have declared."""
    return by_rule(_rules((yield from tx.value("all_rules"))).values())


def limits_of(tx: Transaction, row: JobColumns) -> Work[tuple[tuple[LimitRecord, ...], int]]:
    """What the keys of a job that is READY or in a lane allow, what stops it first, and how many of its lane go before it."""
    if row.lane is None:
        gates = [want.gate for want in wants_of(row.job())] if row.state is State.READY else []
        return (tuple((yield from limits(tx, gates))) if gates else ()), 0
    stop, before = yield from tx.row("lane_facts", lane=row.lane, seat=row.seat)
    return tuple((yield from limits(tx, stopping_first(row.job(), stop)))), before


def forget(tx: Transaction) -> Work[None]:
    """Drop what says no more than that nothing is known."""
    yield from tx.post("forget_gates", now=tx.now)
