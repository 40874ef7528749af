"""The gates and lanes of a memory store, as `offload.gates` reads and writes them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import TypeVar, assert_never

from offload.gates import (
    LATENESS,
    MOST_WOKEN,
    Gate,
    Lane,
    Ledger,
    Member,
    Need,
    Place,
    Steps,
    answered,
    changed_gates,
    kind_of,
    new_rules,
    rule_id,
)
from offload.job import Limit

T = TypeVar("T")

DEPTH = 16
"""How many lanes of a gate, or jobs of a lane, are read at once."""


class Gating:
    """Who holds what, and who waits where."""

    def __init__(self) -> None:
        self.rules: dict[str, Limit] = {}
        self.gates: dict[str, Gate] = {}
        """Those of which anything is known but who holds them."""
        self.holders: dict[str, dict[int, int]] = {}
        self.parked: dict[str, list[Place]] = {}
        self.lines: dict[str, list[Member]] = {}
        self._lanes: dict[str, tuple[int, str]] = {}
        """Lane -> the seat of its first job, and the gate where it is parked."""

    def run(self, now: int, ready: Callable[[Member], None], act: Callable[[Ledger], Steps[T]]) -> tuple[T, Callable[[], None]]:
        """Carry out an operation. Returns what it returns, and what undoes all that it changed here."""
        ledger = Ledger(now, self.rules, ready)
        result = answered(act(ledger), lambda need: self.answer(ledger, need))
        return result, self._write(ledger)

    def due(self, now: int) -> list[str]:
        """The gates where time alone may let somebody pass by now, those whose time came first."""
        due = sorted((gate.wake_at, gate.id) for gate in self.gates.values() if gate.wake_at is not None and gate.wake_at <= now)
        return sorted(id for _, id in due[:MOST_WOKEN])

    def look_again(self, now: int) -> None:
        """The clock was set back: what waits for a moment that was reckoned with before is to be looked at now."""
        for gate in self.gates.values():
            if gate.wake_at is not None:
                gate.wake_at = min(gate.wake_at, now)

    def next_moment(self) -> int | None:
        """When that is next to be looked at."""
        return min((gate.wake_at for gate in self.gates.values() if gate.wake_at is not None), default=None)

    def lane_at(self, lane: str) -> str | None:
        """The gate where a lane is parked."""
        place = self._lanes.get(lane)
        return None if place is None else place[1]

    def known(self, now: int) -> set[str]:
        """The gates that somebody holds or waits for, or that were changed."""
        changed = {gate.id for gate in self.gates.values() if _changed(gate, now)}
        return changed | self.holders.keys() | self.parked.keys()

    def declare(self, limits: Sequence[Limit]) -> list[str]:
        """Take over what a worker declares. Returns the gates where somebody waits for whom it changes anything."""
        changed = new_rules(limits, self.rules)
        self.rules |= {rule_id(limit): limit for limit, _ in changed}
        heads = ((gate, self.lines[parked[0][1]][0]) for gate, parked in self.parked.items())
        return changed_gates(changed, ((gate, head.wants) for gate, head in heads)) if changed else []

    def waiting(self, gate: str) -> list[Member]:
        """The jobs that wait in lanes parked at a gate, lane by lane."""
        return [member for _, lane in self.parked.get(gate, ()) for member in self.lines[lane]]

    def before(self, member: Member) -> int:
        """How many of its lane go before a job."""
        return self._place(member) or 0

    def forget(self, now: int) -> None:
        """Drop what says no more than that nothing is known."""
        for gate in list(self.gates.values()):
            if not _changed(gate, now) and gate.wake_at is None and gate.tat < now - LATENESS:
                del self.gates[gate.id]

    def answer(self, ledger: Ledger, need: Need) -> None:
        """Tell a ledger what it needs."""
        for id in need.ids:
            match need.what:
                case "gates":
                    known = self.gates.get(id) or Gate(id, kind_of(id))
                    gate = replace(known, holders=dict(self.holders.get(id, {})), parked=[], more=False, read_to=(-1, ""))
                    ledger.read_gate(gate, *self._read_parked(id, (-1, "")))
                case "parked":
                    ledger.read_parked(id, *self._read_parked(id, ledger.gates[id].read_to))
                case "lanes":
                    ledger.read_lane(Lane(id, self.lane_at(id)), *self._read_line(id, -1))
                case "line":
                    ledger.read_line(id, *self._read_line(id, ledger.lanes[id].read_to))
                case _:
                    assert_never(need.what)

    def _read_parked(self, id: str, after: Place) -> tuple[list[Place], bool]:
        parked = self.parked.get(id, [])
        first = bisect_right(parked, after)
        return parked[first : first + DEPTH], first + DEPTH < len(parked)

    def _read_line(self, id: str, after: int) -> tuple[list[Member], bool]:
        line = self.lines.get(id, [])
        first = bisect_right(line, after, key=lambda member: member.seat)
        return line[first : first + DEPTH], first + DEPTH < len(line)

    def _write(self, ledger: Ledger) -> Callable[[], None]:
        undo: list[Callable[[], None]] = []
        changes = ledger.changes
        for (gate, n), cost in changes.held.items():
            was = self.holders.get(gate, {}).get(n)
            self._hold(gate, n, cost)
            undo.append(lambda gate=gate, n=n, was=was: self._hold(gate, n, was))
        for member, waits in changes.waiting.values():
            waited = self._place(member) is not None
            self._line(member, waits=waits)
            undo.append(lambda member=member, waited=waited: self._line(member, waits=waited))
        for id in changes.lanes:
            lane, stood = ledger.lanes[id], self._lanes.get(id)
            undo.append(lambda id=id, stood=stood: self._move(id, stood))
            self._move(id, None if lane.gate is None else (lane.line[0].seat, lane.gate))
        for id in changes.gates:
            before = copy(self.gates.get(id))
            undo.append(lambda id=id, before=before: self._put(id, before))
            self._put(id, replace(ledger.gates[id], holders={}, parked=[]))

        def undone() -> None:
            for step in reversed(undo):
                step()

        return undone

    def _hold(self, gate: str, n: int, cost: int | None) -> None:
        held = self.holders.setdefault(gate, {})
        if cost is None:
            held.pop(n, None)
            if not held:
                del self.holders[gate]
        else:
            held[n] = cost

    def _place(self, member: Member) -> int | None:
        """Where a job stands in its line."""
        line = self.lines.get(member.lane, [])
        at = bisect_left(line, member.seat, key=lambda each: each.seat)
        return at if at < len(line) and line[at].n == member.n else None

    def _line(self, member: Member, *, waits: bool) -> None:
        at = self._place(member)
        line = self.lines.setdefault(member.lane, [])
        if waits and at is None:
            insort(line, member, key=lambda each: each.seat)
        elif at is not None and not waits:
            del line[at]
        if not line:
            del self.lines[member.lane]

    def _move(self, lane: str, place: tuple[int, str] | None) -> None:
        was = self._lanes.pop(lane, None)
        if was is not None:
            parked = self.parked[was[1]]
            parked.remove((was[0], lane))
            if not parked:
                del self.parked[was[1]]
        if place is not None:
            self._lanes[lane] = place
            insort(self.parked.setdefault(place[1], []), (place[0], lane))

    def _put(self, id: str, gate: Gate | None) -> None:
        if gate is None:
            self.gates.pop(id, None)
        else:
            self.gates[id] = gate


def _changed(gate: Gate, now: int) -> bool:
    """Whether a person or a task has set anything that still counts."""
    return gate.paused or gate.shut_until > now or (gate.n, gate.interval, gate.burst) != (None, None, None)
