"""Proves of all that a store holds at one moment that workflows and batches are counted right, and that nobody waits for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from offload.job import State
from offload.records import Record, Tally

_ENDS = (State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED)


def prove_counted(records: Sequence[Record], tallies: Sequence[Tally]) -> None:
    """Raise AssertionError where a number is wrong, a workflow that is over goes on, or a job waits for parents that have all ended."""
    by_id = {record.id: record for record in records}
    for tally in tallies:
        _prove_numbers(tally, [record for record in records if _counts(record, tally)])
    complete = {tally.id for tally in tallies if tally.kind == "workflow" and tally.total >= tally.size}
    for record in records:
        if record.state is State.WAITING and record.reason == "waits for its parents" and record.workflow is not None:
            _prove_waiting(record, by_id, complete=record.workflow.id in complete)


def _counts(record: Record, tally: Tally) -> bool:
    if tally.kind == "batch":
        return record.batch == tally.id and record.callback is None
    return record.workflow is not None and record.workflow.id == tally.id


def _prove_numbers(tally: Tally, members: Sequence[Record]) -> None:
    """Records may be gone that were counted; none may be there that was not."""
    there = Counter(record.state for record in members)
    counted = dict(zip(_ENDS, (tally.succeeded, tally.dead, tally.cancelled, tally.expired), strict=True))
    for state, number in counted.items():
        assert there[state] <= number, f"{there[state]} jobs of {tally.kind} {tally.id} are {state}, and {number} are counted"
    alive = sum(number for state, number in there.items() if not state.terminal)
    assert alive == tally.waiting + tally.running, f"{alive} jobs of {tally} have not ended"
    assert there[State.RUNNING] == tally.running, f"{there[State.RUNNING]} jobs of {tally} run"
    complete = tally.sealed if tally.kind == "batch" else tally.total >= tally.size
    over = complete and alive == 0
    assert over == (tally.finished_at is not None), f"{tally} is {'' if over else 'not '}over"


def _prove_waiting(record: Record, by_id: dict[str, Record], *, complete: bool) -> None:
    known = [by_id.get(parent.id) for parent in record.parents]
    parents = [parent if parent is not None and parent.workflow == record.workflow else None for parent in known]
    to_come = not complete and any(parent is None for parent in parents)
    alive = any(parent is not None and not parent.state.terminal for parent in parents)
    assert to_come or alive, f"{record} waits for parents of which none goes on"
