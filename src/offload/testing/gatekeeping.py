"""Proves of all that a store holds at one moment that its gates do as they promise: no leak, nobody over, nobody held up for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from offload.job import Kind, LimitRecord, RateLimit, Record, SlotLimit, State

_AT_WORK = frozenset({State.READY, State.RUNNING})


def prove(records: Sequence[Record], limits: Sequence[LimitRecord]) -> None:
    """Raise AssertionError where a gate is held by who should not, not held by who should, or keeps somebody waiting who could pass."""
    known = {(limit.kind, limit.key): limit for limit in limits}
    for record in records:
        for kind, key in _passed(record):
            limit = known.get((kind, key))
            assert limit is not None and record.id in limit.holders, f"{record.id} is {record.state} without its {kind} of {key}: {limit}"
    by_id = {record.id: record for record in records}
    for limit in limits:
        for id in limit.holders:
            assert id in by_id, f"the {limit.kind} of {limit.key} is held by {id}, which is gone"
            assert _may_hold(by_id[id], limit.kind), f"the {limit.kind} of {limit.key} is held by {id}, which is {by_id[id].state}"
        assert limit.kind != "turn" or limit.held <= 1, f"{limit.held} have their turn of {limit.key}"
    for record in records:
        if record.state is State.WAITING and (record.reason or "").startswith("waits for a "):
            kind, _, key = (record.reason or "").removeprefix("waits for a ").partition(" of ")
            _prove_shut(record, kind, known.get((kind, key)))


def _prove_shut(record: Record, kind: str, limit: LimitRecord | None) -> None:
    """Whoever waits at a gate waits for something."""
    assert limit is not None, f"{record.id} {record.reason}, of which nobody knows"
    if limit.paused or limit.shut_until is not None or limit.next_at is not None:
        return  # or time alone lets somebody pass, as soon as anybody looks
    match kind:
        case "turn":
            assert limit.held, f"{record.id} {record.reason}, which nobody has"
        case "slot":
            assert limit.n is not None and limit.held, f"{record.id} {record.reason}, which nobody has"
        case _:
            assert limit.next_at is not None, f"{record.id} {record.reason}, which never comes"


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
