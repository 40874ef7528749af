"""What a person asks: records, counts, limits, facts. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from offload.brokers.memory.line import Entry
from offload.brokers.memory.moves import member
from offload.brokers.memory.shelf import Shelf
from offload.gates import MOST_HOLDERS, MOST_STRIKING, Gate, by_rule, kind_of, limit_record
from offload.job import Job, State
from offload.records import Facts, Filter, LimitRecord, Record, ScheduleRecord, SessionRecord, Standing

LARGE_PAYLOAD_BYTES = 16 * 1024
MOST_LARGE = 20
MOST_LISTED = 1_000
MOST_PARENTS = 10


def record(shelf: Shelf, entry: Entry) -> Record:
    """What a person sees of a job."""
    if entry.behind is not None:
        return entry.record(f"behind {entry.behind}")
    if entry.pending:
        return entry.record("waits for its batch" if entry.job.callback is not None else "waits for its parents")
    gate = None if entry.lane is None else shelf.gating.lane_at(entry.lane)
    return entry.record(entry.reason if gate is None else f"waits for a {gate}")


def find(shelf: Shelf, filter: Filter, limit: int, after: str | None) -> list[Record]:
    """Records that match; see `Store.find`."""
    entries = sorted(shelf.entries.values(), key=lambda entry: (entry.job.enqueued_at, entry.n), reverse=True)
    if after is not None:
        position = next((i for i, entry in enumerate(entries) if entry.job.id == after), len(entries))
        entries = entries[position + 1 :]
    found: list[Record] = []
    for each in (record(shelf, entry) for entry in entries):
        if len(found) >= limit:
            break
        if _matches(each, filter):
            found.append(each)
    return found


def _matches(record: Record, filter: Filter) -> bool:
    if filter.text is not None:
        text = "\n".join((record.id, record.task, record.payload.decode(), *(error.message for error in record.errors)))
        if filter.text.casefold() not in text.casefold():
            return False
    return (
        filter.state in (None, record.state)
        and filter.task in (None, record.task)
        and filter.queue in (None, record.queue)
        and (filter.key is None or filter.key in _keys(record))
        and (filter.workflow is None or (record.workflow is not None and filter.workflow == record.workflow.id))
        and filter.batch in (None, record.batch)
    )


def _keys(job: Job) -> set[str | None]:
    """All that a job can be found by as a key."""
    unique = None if job.unique is None else job.unique.key
    return {unique, job.order_by, job.fair_by, *(limit.key for limit in job.limits)}


def counts(shelf: Shelf) -> dict[str, dict[State, int]]:
    """Numbers by queue and state."""
    counts: dict[str, dict[State, int]] = {}
    for (queue, state), number in sorted(Counter((entry.job.queue, entry.state) for entry in shelf.entries.values()).items()):
        counts.setdefault(queue, {})[state] = number
    return counts


def standing(shelf: Shelf, id: str, sessions: Sequence[SessionRecord]) -> Standing | None:
    """The facts about one job."""
    entry = shelf.entries.get(id)
    if entry is None:
        return None
    limits, before = _limits_of(shelf, entry)
    parents = [link.parent[1] for link in entry.links if link.fate == "open"] if entry.pending else []
    return Standing(
        record=record(shelf, entry),
        paused=entry.job.queue in shelf.paused,
        aside=entry.aside,
        ahead=_ahead(shelf, entry) if entry.state is State.READY else 0,
        waits_for=entry.behind,
        parents=tuple(parents[:MOST_PARENTS]),
        open_parents=len(parents),
        limits=limits,
        before=before,
        sessions=tuple(sessions),
        now=shelf.clock.now(),
    )


def _ahead(shelf: Shelf, entry: Entry) -> int:
    """How many ready jobs of its queue go before it."""
    ready = (other for other in shelf.entries.values() if other.state is State.READY and other.job.queue == entry.job.queue)
    return sum(other.rank < entry.rank for other in ready)


def _limits_of(shelf: Shelf, entry: Entry) -> tuple[tuple[LimitRecord, ...], int]:
    """What the keys of a job that is READY or in a lane allow, what stops it first, and how many of its lane go before it."""
    waits = member(entry)
    if entry.lane is None:
        gates = [want.gate for want in waits.wants] if entry.state is State.READY else []
        return tuple(limits(shelf, gates)), 0
    stop = shelf.gating.lane_at(entry.lane)
    gates = sorted((want.gate for want in waits.wants), key=lambda gate: gate != stop)
    if stop is not None and stop not in gates:
        gates = [stop, *gates]
    return tuple(limits(shelf, gates)), shelf.gating.before(waits)


def limits(shelf: Shelf, gates: Iterable[str]) -> list[LimitRecord]:
    """What gates allow, and who holds them, in the order given; see `Store.limits`."""
    jobs = {entry.n: entry for entry in shelf.entries.values()}
    return [_limit(shelf, gate, jobs) for gate in gates]


def _limit(shelf: Shelf, id: str, jobs: Mapping[int, Entry]) -> LimitRecord:
    gating = shelf.gating
    gate = gating.gates.get(id) or Gate(id, kind_of(id))
    holders = sorted(gating.holders.get(id, {}))
    waiting = gating.waiting(id)
    first = member(jobs[holders[0]]) if holders else waiting[0] if waiting else None
    want = next((want for want in first.wants if want.gate == id), None) if first else None
    dead = gate.kind == "turn" and any(jobs[n].state is State.DEAD for n in holders)
    named = [jobs[n].job.id for n in holders[:MOST_HOLDERS]]
    return limit_record(gate, want, gating.rules, shelf.moment(), named, len(holders), len(waiting), dead=dead)


def _striking(shelf: Shelf) -> tuple[LimitRecord, ...]:
    """Those that let nobody pass."""
    found = limits(shelf, shelf.gating.known(shelf.moment()))
    return tuple(
        sorted((each for each in found if each.paused or each.shut_until or each.dead), key=lambda each: (each.key, each.kind))[
            :MOST_STRIKING
        ]
    )


def facts(shelf: Shelf, sessions: Sequence[SessionRecord], schedules: Sequence[ScheduleRecord]) -> Facts:
    """What `doctor` judges by."""
    entries = list(shelf.entries.values())
    large = [(e.job.id, e.job.task, len(e.job.payload)) for e in entries if len(e.job.payload) > LARGE_PAYLOAD_BYTES]
    return Facts(
        engine="memory",
        version="",
        schema=1,
        newest_schema=1,
        durable=False,
        paused=tuple(sorted(shelf.paused)),
        sessions=tuple(sessions),
        schedules=tuple(schedules),
        aside=dict(Counter(entry.job.task for entry in entries if entry.aside)),
        oldest_ready=_oldest_ready(entries),
        large=tuple(sorted(large, key=lambda row: (-row[2], row[0]))[:MOST_LARGE]),
        finished=_run_times(entries),
        limits=_striking(shelf),
        declared=by_rule(shelf.gating.rules.values()),
        now=shelf.clock.now(),
    )


def _oldest_ready(entries: Sequence[Entry]) -> dict[str, datetime]:
    """By queue, since when the job is ready that has been so for longest."""
    oldest: dict[str, datetime] = {}
    for entry in entries:
        if entry.state is State.READY and entry.ready_at is not None:
            oldest[entry.job.queue] = min(entry.ready_at, oldest.get(entry.job.queue, entry.ready_at))
    return oldest


def _run_times(entries: Sequence[Entry]) -> tuple[tuple[str, float], ...]:
    """How many seconds the latest successes took, each with its task."""
    succeeded = [
        (entry.finished_at, entry.n, entry.job.task, (entry.finished_at - entry.started_at).total_seconds())
        for entry in entries
        if entry.state is State.SUCCEEDED and entry.finished_at is not None and entry.started_at is not None
    ]
    return tuple((task, seconds) for *_, task, seconds in sorted(succeeded, reverse=True)[:MOST_LISTED])
