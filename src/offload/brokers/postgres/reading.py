"""What a person asks: records, counts, facts. Reads only, and locks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from offload.broker import Work
from offload.brokers.postgres import families, gating, planning
from offload.brokers.postgres.rows import JobColumns, jobs_by_id, jobs_by_number, moment
from offload.brokers.postgres.work import Transaction, text
from offload.job import State, WorkerInfo
from offload.records import Facts, Filter, Record, SessionRecord, Standing

LARGE_PAYLOAD_BYTES = 16 * 1024
MOST_LARGE = 20
MOST_FINISHED = 1_000
PAGE = 1_000
"""The most jobs looked at together by a search for text."""

_counts = msgspec.json.Decoder(list[tuple[str, State, int]]).decode
_ids = msgspec.json.Decoder(list[str]).decode
_numbers = msgspec.json.Decoder(dict[str, int]).decode
_large = msgspec.json.Decoder(list[tuple[str, str, int]]).decode
_finished = msgspec.json.Decoder(list[tuple[str, int | None, int]]).decode
_sessions = msgspec.json.Decoder(list[tuple[str, str, int, int, int, int]]).decode
_info = msgspec.json.Decoder(WorkerInfo).decode


def get(tx: Transaction, ids: Sequence[str]) -> Work[dict[str, Record]]:
    """The records of those of `ids` that exist, in the order asked for."""
    return {id: row.record() for id, row in (yield from jobs_by_id(tx, ids)).items()} if ids else {}


def ended(tx: Transaction, ids: Sequence[str]) -> Work[list[str]]:
    """Those of `ids` that are terminal or unknown."""
    return _ids((yield from tx.value("ended", ids=text(ids))))


def find(tx: Transaction, filter: Filter, limit: int, after: str | None) -> Work[list[Record]]:
    """Records that match; see `Store.find`."""
    yield from tx.post("plan_freely")
    place: tuple[int | None, int | None] = (None, None)
    if after is not None:
        place = (yield from tx.row("after", id=after)) or (-1 << 62, 0)
    found: list[Record] = []
    while True:
        ns = yield from _matches(tx, filter, limit, place)
        rows = yield from jobs_by_number(tx, ns)
        there = [rows[n] for n in ns if n in rows]
        found += [each for each in (row.record() for row in there) if filter.state in (None, each.state)]  # some have gone on since
        if len(found) >= limit or len(ns) < limit or not there:
            return found[:limit]
        place = there[-1].enqueued_at, there[-1].n


def _matches(tx: Transaction, filter: Filter, limit: int, place: tuple[int | None, int | None]) -> Work[list[int]]:
    """The numbers of jobs that match, the next after a place."""
    state = filter.state and filter.state.value
    wanted: dict[str, Any] = {"task": filter.task, "queue": filter.queue, "key": filter.key, "limit": limit}
    wanted |= {"workflow": filter.workflow, "batch": filter.batch}
    if filter.text is not None:
        return (yield from _mentions(tx, filter.text.casefold(), place, wanted | {"state": state}))
    wanted |= {"at": place[0], "after": place[1]}
    rows = yield from (tx.rows("find", **wanted) if state is None else tx.rows("find_in_state", state=state, **wanted))
    return [n for (n,) in rows]


def _mentions(tx: Transaction, sought: str, place: tuple[int | None, int | None], wanted: dict[str, Any]) -> Work[list[int]]:
    """The numbers of jobs whose id, task, payload or errors hold `sought`, in whatever case."""
    limit = wanted.pop("limit")
    at, after = place
    found: list[int] = []
    while len(found) < limit:
        page = yield from tx.rows("mention", sought=sought, at=at, after=after, limit=PAGE, **wanted)
        found += [n for n, _, told in page if sought in told.casefold()]
        if len(page) < PAGE:
            break
        after, at, _ = page[-1]
    return found[:limit]


def counts(tx: Transaction) -> Work[dict[str, dict[State, int]]]:
    """Numbers by queue and state."""
    yield from tx.post("plan_freely")
    found: dict[tuple[str, State], int] = {}
    for queue, state, number in _counts((yield from tx.value("counts"))):
        found[queue, state] = found.get((queue, state), 0) + number
    counted: dict[str, dict[State, int]] = {}
    for (queue, state), number in sorted(found.items()):
        counted.setdefault(queue, {})[state] = number
    return counted


def paused(tx: Transaction) -> Work[set[str]]:
    """The paused queues."""
    return set(_ids((yield from tx.value("paused"))))


def sessions(tx: Transaction) -> Work[list[SessionRecord]]:
    """The sessions, oldest first."""
    return [
        SessionRecord(id=id, info=_info(info), beat=beat, beat_at=moment(beat_at), started_at=moment(started_at), running=running)
        for id, info, beat, beat_at, started_at, running in _sessions((yield from tx.value("sessions")))
    ]


def standing(tx: Transaction, id: str, now: datetime) -> Work[Standing | None]:
    """The facts about one job."""
    row = (yield from jobs_by_id(tx, [id])).get(id)
    if row is None:
        return None
    ahead = 0
    if row.state is State.READY:
        ahead = yield from tx.value("ahead", queue=row.queue, rank=row.place, pos=row.pos)
    limits, before = yield from gating.limits_of(tx, row)
    parents, open_parents = yield from families.open_parents(tx, row)
    return Standing(
        record=row.record(),
        paused=row.queue in (yield from paused(tx)),
        aside=row.aside,
        ahead=ahead,
        waits_for=holder_before(row),
        parents=parents,
        open_parents=open_parents,
        limits=limits,
        before=before,
        sessions=tuple((yield from sessions(tx))),
        now=now,
    )


def holder_before(row: JobColumns) -> str | None:
    """The job behind which one waits."""
    if row.state is not State.WAITING or row.reason is None or not row.reason.startswith("behind "):
        return None
    return row.reason.removeprefix("behind ")


def facts(tx: Transaction, now: datetime, newest_schema: int) -> Work[Facts]:
    """What `doctor` judges by, but for where the store is and what `health` finds."""
    yield from tx.post("plan_freely")
    aside, oldest, large, finished = yield from tx.row(
        "facts", large=LARGE_PAYLOAD_BYTES, most_large=MOST_LARGE, most_finished=MOST_FINISHED
    )
    version, schema, *_ = yield from tx.row("server")
    return Facts(
        engine="PostgreSQL",
        version=version,
        schema=schema,
        newest_schema=newest_schema,
        paused=tuple(sorted((yield from paused(tx)))),
        sessions=tuple((yield from sessions(tx))),
        schedules=tuple((yield from planning.records(tx))),
        aside=_numbers(aside),
        oldest_ready={queue: moment(at) for queue, at in _numbers(oldest).items()},
        large=tuple(_large(large)),
        finished=tuple((task, (end - start) / 1_000_000) for task, start, end in _finished(finished) if start is not None),
        limits=(yield from gating.striking(tx)),
        declared=(yield from gating.declared(tx)),
        now=now,
    )
