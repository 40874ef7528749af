"""What a person asks: records, counts, facts. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from offload.brokers.sqlite import gating, planning
from offload.brokers.sqlite.file import SCHEMA
from offload.brokers.sqlite.rows import jobs_by_id, jobs_by_number, moment, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.job import State, WorkerInfo
from offload.records import Facts, Filter, Record, SessionRecord, Standing

LARGE_PAYLOAD_BYTES = 16 * 1024
MOST_LARGE = 20
MOST_FINISHED = 1_000
MOST_PARENTS = 10
PAGE = 1_000
"""Jobs looked at together by a search for text; other reads come in between."""

_counts = msgspec.json.Decoder(list[tuple[str, State, int]]).decode
_integers = msgspec.json.Decoder(list[int]).decode
_texts = msgspec.json.Decoder(list[tuple[int, str, str, str, list[str]]]).decode
_names = msgspec.json.Decoder(list[str]).decode
_numbers = msgspec.json.Decoder(dict[str, int]).decode
_large = msgspec.json.Decoder(list[tuple[str, str, int]]).decode
_finished = msgspec.json.Decoder(list[tuple[str, int | None, int]]).decode
_sessions = msgspec.json.Decoder(list[tuple[str, str, int, int, int, int]]).decode
_info = msgspec.json.Decoder(WorkerInfo).decode


def get(tx: Transaction, ids: Sequence[str]) -> dict[str, Record]:
    """The records of those of `ids` that exist, in the order asked for."""
    return {id: row.record() for id, row in jobs_by_id(tx, ids).items()}


def matches(tx: Transaction, filter: Filter, limit: int, after: str | None) -> list[int]:
    """The numbers of jobs that match all of the filter but its text, newest first; a limit of -1 is none."""
    at, n = (None, None) if after is None else tx.row("after", id=after) or (-1 << 62, 0)
    wanted = {"task": filter.task, "queue": filter.queue, "key": filter.key, "at": at, "after": n, "limit": limit}
    if filter.workflow is not None or filter.batch is not None:
        state = None if filter.state is None else filter.state.value
        return _integers(tx.value("find_members", workflow=filter.workflow, batch=filter.batch, state=state, **wanted))
    return _integers(tx.value("find", **wanted) if filter.state is None else tx.value("find_in_state", state=filter.state.value, **wanted))


def records(tx: Transaction, ns: Sequence[int]) -> list[Record]:
    """The records of these numbers, in their order."""
    rows = jobs_by_number(tx, ns)
    return [rows[n].record() for n in ns if n in rows]


def mentioning(tx: Transaction, ns: Sequence[int], sought: str) -> list[Record]:
    """Those of `ns`, in order, whose id, task, payload or errors hold `sought` in whatever case. SQLite folds the case of ASCII only."""
    sought = sought.casefold()
    found = {n for n, *told, errors in _texts(tx.value("texts", ns=text(ns))) if sought in "\n".join((*told, *errors)).casefold()}
    return records(tx, [n for n in ns if n in found])


def counts(tx: Transaction) -> dict[str, dict[State, int]]:
    """Numbers by queue and state."""
    found: dict[tuple[str, State], int] = {}
    for queue, state, number in _counts(tx.value("counts")):
        found[queue, state] = found.get((queue, state), 0) + number
    counted: dict[str, dict[State, int]] = {}
    for (queue, state), number in sorted(found.items()):
        counted.setdefault(queue, {})[state] = number
    return counted


def paused(tx: Transaction) -> set[str]:
    """The paused queues."""
    return set(_names(tx.value("paused")))


def sessions(tx: Transaction) -> list[SessionRecord]:
    """The sessions, oldest first."""
    return [
        SessionRecord(id=id, info=_info(info), beat=beat, beat_at=moment(beat_at), started_at=moment(started_at), running=running)
        for id, info, beat, beat_at, started_at, running in _sessions(tx.value("sessions"))
    ]


def standing(tx: Transaction, id: str, now: datetime) -> Standing | None:
    """The facts about one job."""
    row = jobs_by_id(tx, [id]).get(id)
    if row is None:
        return None
    limits, before = gating.limits_of(tx, stored(now), row)
    open, parents = tx.row("open_parents", n=row.n, most=MOST_PARENTS) if row.what == "parents" else (0, "[]")
    return Standing(
        record=row.record(),
        paused=row.queue in paused(tx),
        aside=bool(row.aside),
        ahead=tx.value("ahead", queue=row.queue, rank=row.place, pos=row.pos) if row.state is State.READY else 0,
        waits_for=row.reason.removeprefix("behind ")
        if row.state is State.WAITING and row.lane is None and row.what is None and row.reason is not None
        else None,
        parents=tuple(_names(parents)),
        open_parents=open,
        limits=limits,
        before=before,
        sessions=tuple(sessions(tx)),
        now=now,
    )


def facts(tx: Transaction, now: datetime, version: str) -> Facts:
    """What `doctor` judges by, but for the notes about the file."""
    aside, oldest, large, finished = tx.row("facts", large=LARGE_PAYLOAD_BYTES, most_large=MOST_LARGE, most_finished=MOST_FINISHED)
    return Facts(
        engine="SQLite",
        version=version,
        schema=SCHEMA,
        newest_schema=SCHEMA,
        paused=tuple(sorted(paused(tx))),
        sessions=tuple(sessions(tx)),
        schedules=tuple(planning.records(tx)),
        aside=_numbers(aside),
        oldest_ready={queue: moment(at) for queue, at in _numbers(oldest).items()},
        large=tuple(_large(large)),
        finished=tuple((task, (end - start) / 1_000_000) for task, start, end in _finished(finished) if start is not None),
        limits=gating.striking(tx, stored(now)),
        declared=gating.declared(tx),
        now=now,
    )
