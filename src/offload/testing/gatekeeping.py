"""Proves of all that a store holds at one moment that its gates do as they promise: no leak, nobody over, nobody held up for nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from offload.brokers.memory.gating import Gating
from offload.gates import Ledger, Member, answered
from offload.gates.rules import slots_of
from offload.job import Kind, Limit, RateLimit, SlotLimit, State
from offload.records import LimitRecord, Record

_AT_WORK = frozenset({State.READY, State.RUNNING})


def prove(
    records: Sequence[Record],
    limits: Sequence[LimitRecord],
    rules: Mapping[str, Limit] | None = None,
    before: Sequence[LimitRecord] = (),
) -> None:
    """Raise AssertionError where a gate is held by who should not, not held by who should, or keeps somebody waiting who could pass.

    `rules` are what workers declare; `before` is what was allowed, and held, when one operation less was done.
    """
    known = {(limit.kind, limit.key): limit for limit in limits}
    for record in records:
        for kind, key in _passed(record):
            limit = known.get((kind, key))
            assert limit is not None and record.id in limit.holders, f"{record.id} is {record.state} without its {kind} of {key}: {limit}"
    by_id = {record.id: record for record in records}
    held = {(limit.kind, limit.key): limit.holders for limit in before}
    for limit in limits:
        for id in limit.holders:
            assert id in by_id, f"the {limit.kind} of {limit.key} is held by {id}, which is gone"
            assert _may_hold(by_id[id], limit.kind), f"the {limit.kind} of {limit.key} is held by {id}, which is {by_id[id].state}"
        _prove_narrow(limit, [by_id[id] for id in limit.holders], rules or {}, held.get((limit.kind, limit.key), ()))
    waiting: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.state is State.WAITING and (record.reason or "").startswith("waits for a "):
            kind, _, key = (record.reason or "").removeprefix("waits for a ").partition(" of ")
            waiting[kind, key].append(record)
    for gate, waiters in waiting.items():
        _prove_shut(gate, waiters, known.get(gate), rules or {})


def _prove_narrow(limit: LimitRecord, holders: Sequence[Record], rules: Mapping[str, Limit], before: Sequence[str]) -> None:
    """No more than n hold a gate; where n was lowered meanwhile, nobody comes until fewer do."""
    match limit.kind:
        case "turn":
            assert limit.held <= 1, f"{limit.held} have their turn of {limit.key}"
        case "slot":
            n = max(_slots(limit, holders, rules), default=limit.n or 0)
            newcomers = set(limit.holders) - set(before)
            assert limit.held <= n or not newcomers, f"{limit.held} hold the {n} slots of {limit.key}, newly {sorted(newcomers)}"
        case "token":
            pass  # how many are there depends on the time: `prove_shut` asks the algorithm


def _prove_shut(gate: tuple[str, str], waiters: Sequence[Record], limit: LimitRecord | None, rules: Mapping[str, Limit]) -> None:
    """Whoever waits at a gate waits for something. Who of them is the first is not known: so for what the least demanding of them needs."""
    says = f"{', '.join(record.id for record in waiters)} {waiters[0].reason}"
    assert limit is not None, f"{says}, of which nobody knows"
    if limit.paused or limit.shut_until is not None or limit.next_at is not None:
        return  # or time alone lets somebody pass, as soon as anybody looks
    match limit.kind:
        case "turn":
            assert limit.held, f"{says}, which nobody has"
        case "slot":
            n = min(_slots(limit, waiters, rules), default=0)
            assert limit.held >= max(n, 1), f"{says}, of which {limit.held} of {n} are held"
        case "token":
            raise AssertionError(f"{says}, which never comes")


def _slots(limit: LimitRecord, records: Sequence[Record], rules: Mapping[str, Limit]) -> list[int]:
    """How many may hold a slot as far as each job goes that wants one."""
    if limit.changed:
        return [] if limit.n is None else [limit.n]
    wanted = [each for record in records for each in record.limits if isinstance(each, SlotLimit) and each.key == limit.key]
    return [slots_of(each, rules) for each in wanted]


def prove_shut(gating: Gating, now: int, latest: int) -> None:
    """Raise AssertionError where a gate of the reference would let somebody pass if it was looked at, and nothing says that it is to be.

    `latest` is the latest moment that the clock has shown: what was to be looked at then is looked at so much later once it was set back.
    """
    for id in list(gating.parked):
        gate = gating.gates.get(id)
        if gate is not None and gate.wake_at is not None and gate.wake_at <= latest + 1:
            continue  # whoever comes to wait for a token that is there already is looked at a microsecond later
        passed: list[Member] = []
        ledger = Ledger(now, gating.rules, passed.append)
        answered(ledger.pump(id), lambda need, ledger=ledger: gating.answer(ledger, need))
        moved = [member.own.job.id for member in passed] or sorted(ledger.changes.lanes)
        assert not moved, f"the {id} keeps {', '.join(moved)} waiting for nothing"


def _passed(record: Record) -> Iterator[tuple[Kind, str]]:
    """The gates that a job must hold, by its state."""
    if record.order_by is not None and record.state in _AT_WORK:
        yield "turn", record.order_by
    for limit in record.limits:
        if isinstance(limit, SlotLimit) and record.state in _AT_WORK:
            yield "slot", limit.key
        if isinstance(limit, RateLimit) and record.state is State.READY:
            yield "token", limit.key


def _may_hold(record: Record, kind: Kind) -> bool:
    match kind:
        case "turn":  # from the first time on until it is terminal
            return not record.state.terminal or (record.state is State.DEAD and record.on_dead == "hold")
        case "slot":
            return record.state in _AT_WORK
        case "token":
            return record.state is State.READY
