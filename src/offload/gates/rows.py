"""Gates as SQL stores write them down, and which of them and of their lanes are still to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from offload.gates.ledger import Ledger
from offload.gates.records import limit_record
from offload.gates.rules import Rules
from offload.gates.state import Gate, Place
from offload.gates.wants import Keyed, Member, kind_of, wants_of
from offload.records import LimitRecord

Told: TypeAlias = tuple[int | None, int | None, int | None, bool, int, int, int, int | None]
"""What is known of a gate besides: n, interval, burst, paused, shut_until, tat, owed, wake_at."""
GateRow: TypeAlias = tuple[str, Told | None, list[tuple[int, int]], list[Place]]
"""A gate: its id, what is known of it, who holds it with which costs, the first lanes that are parked there."""


def gate_from(row: GateRow) -> Gate:
    """The gate of a row; its lanes are told to the ledger."""
    id, told, holders, _ = row
    gate = Gate(id, kind_of(id), dict(holders))
    if told is not None:
        gate.n, gate.interval, gate.burst, gate.paused, gate.shut_until, gate.tat, gate.owed, gate.wake_at = told
    return gate


def written(gate: Gate) -> tuple[str, int | None, int | None, int | None, bool, int, int, int, int | None]:
    """What is known of a gate, behind its id."""
    return (gate.id, gate.n, gate.interval, gate.burst, gate.paused, gate.shut_until, gate.tat, gate.owed, gate.wake_at)


def unread_gates(ledger: Ledger, gates: Iterable[str]) -> list[str]:
    """Those of the gates that are not in the ledger yet."""
    return [gate for gate in dict.fromkeys(gates) if gate not in ledger.gates]


def unread_lanes(ledger: Ledger, members: Iterable[Member], gates: Iterable[str]) -> list[str]:
    """The lanes of jobs, and those that are parked at gates, that are not in the ledger yet."""
    parked = [lane for gate in gates for _, lane in ledger.gates[gate].parked]
    return [lane for lane in dict.fromkeys((*(member.lane for member in members), *parked)) if lane not in ledger.lanes]


def stopping_first(job: Keyed, stop: str) -> list[str]:
    """The gates of a job that waits, the one that stops its lane first: it may be another's of the same lane."""
    gates = sorted((want.gate for want in wants_of(job)), key=lambda gate: gate != stop)
    return gates if stop in gates else [stop, *gates]


def record_of(
    row: GateRow, rules: Rules, now: int, holders: Sequence[str], waiting: int, concerned: Keyed | None, *, dead: bool
) -> LimitRecord:
    """A gate as people see it; `concerned` is any job that has to do with it."""
    gate = gate_from(row)
    want = next((want for want in wants_of(concerned) if want.gate == gate.id), None) if concerned is not None else None
    return limit_record(gate, want, rules, now, holders, len(gate.holders), waiting, dead=dead)
