"""What a person asks: records, counts, facts. Reads only, in pieces that hold up the server for about a millisecond."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeAlias

import msgspec

from offload.brokers.redis import planning
from offload.brokers.redis.connections import server_version
from offload.brokers.redis.notes import Note, notes
from offload.brokers.redis.rows import MEMBER, MICROSECOND, Known, failures_of, job_of, moment, optional_moment
from offload.brokers.redis.script import Script
from offload.brokers.redis.tallies import name_of
from offload.gates import KINDS, MOST_STRIKING, by_rule, gate_of, key_of, kind_of, page_of
from offload.job import Kind, Limit, State, WorkerInfo
from offload.records import Facts, Filter, LimitRecord, Record, SessionRecord, Standing

SCHEMA = 1
PAGE = 200
"""Jobs looked at in one call."""
FEW = 10
"""The jobs in a state are gone through alone where they are fewer than one in so many."""
SIFTED = ("state", "task", "queue", "key", "workflow", "batch")
"""The fields of a filter by which the script goes."""
MOST_LARGE = 20
MOST_FINISHED = 1_000
LARGEST_SKEW = timedelta(seconds=2)

Place: TypeAlias = tuple[bytes, bytes]
"""A job's member, and when it was enqueued: where a page of all jobs ends."""

_info = msgspec.json.Decoder(WorkerInfo).decode
_pack = msgspec.msgpack.Encoder().encode
_limit: msgspec.msgpack.Decoder[Limit] = msgspec.msgpack.Decoder(Limit)


async def get(script: Script, ids: Sequence[str], *, patient: bool = False) -> dict[str, Record]:
    """The records of those of `ids` that exist, in the order asked for."""
    wanted = list(dict.fromkeys(ids))
    records: dict[str, Record] = {}
    for start in range(0, len(wanted), PAGE):
        for known in await script.ask("get", *wanted[start : start + PAGE], patient=patient):
            record = Known(*known).record()
            records[record.id] = record
    return records


async def find(script: Script, filter: Filter, limit: int, after: str | None) -> list[Record]:
    """Records that match, newest enqueued first."""
    place: Place | None = (b"", b"") if after is None else await script.ask("seat", after)
    if place is None:
        return []
    wanted = _pack({name: value for name in SIFTED if (value := getattr(filter, name)) is not None})
    tallies = _tallies_of(filter)
    lines = None if filter.state is None or tallies else await _few(script, filter.state)
    pages = _walk(script, wanted, place, tallies) if lines is None else _through(script, wanted, lines, place)
    found: dict[str, Record] = {}
    async for ids in pages:
        records = await get(script, ids if filter.text is None else await _mentioning(script, ids, filter.text))
        found |= {id: each for id, each in records.items() if filter.state in (None, each.state)}  # some have gone on since
        if len(found) >= limit:
            break
    return list(found.values())[:limit]


def _tallies_of(filter: Filter) -> list[str]:
    """The one workflow or batch whose jobs are gone through, none for all jobs."""
    if filter.workflow is not None:
        return [name_of("workflow", filter.workflow)]
    return [] if filter.batch is None else [name_of("batch", filter.batch)]


async def _walk(script: Script, wanted: bytes, place: Place, tallies: Sequence[str]) -> AsyncIterator[list[str]]:
    """The ids of jobs that match, page by page, by way of all jobs that come after `place`, or those of a tally."""
    member: bytes | None
    member, enqueued = place
    while member is not None:
        member, enqueued, ids = await script.ask("walk", PAGE, wanted, member, enqueued, *tallies)
        yield [id.decode() for id in ids]


async def _few(script: Script, state: State) -> list[bytes] | None:
    """The lines of the jobs in a state, where it is quicker to go through them than through all jobs."""
    total, lengths = await script.ask("lines", state.value)
    return lengths[::2] if sum(lengths[1::2]) <= max(total // FEW, PAGE) else None


async def _through(script: Script, wanted: bytes, lines: Sequence[bytes], place: Place) -> AsyncIterator[list[str]]:
    """As `_walk`, by way of some lines."""
    found: set[tuple[int, bytes]] = set()
    for line in lines:
        on = b"0"
        while True:
            on, members, times = await script.ask("members", line, on, PAGE)
            found.update((int(time), member) for member, time in zip(members, times, strict=True) if time is not None)
            if int(on) == 0:
                break
    member, enqueued = place
    seats = sorted(found, key=lambda seat: (seat[0], seat[1][:MEMBER]), reverse=True)
    if member:
        seats = [seat for seat in seats if (seat[0], seat[1][:MEMBER]) < (int(enqueued), member[:MEMBER])]
    for start in range(0, len(seats), PAGE):
        yield [id.decode() for id in await script.ask("sift", wanted, *(member for _, member in seats[start : start + PAGE]))]


async def _mentioning(script: Script, ids: Sequence[str], sought: str) -> list[str]:
    """Those of `ids` whose job, by its id, task, payload or errors, mentions what is sought, in whatever case."""
    sought = sought.casefold()
    found: list[str] = []
    for id, row, errors in await script.ask("texts", *ids):
        job = job_of(id.decode(), row)
        told = (job.id, job.task, job.payload.decode(), *(failure.message for failure in failures_of(errors)))
        if sought in "\n".join(told).casefold():
            found.append(job.id)
    return found


async def counts(script: Script) -> dict[str, dict[State, int]]:
    """Numbers by queue and state."""
    found: dict[tuple[str, State], int] = {}
    flat = await script.ask("counts")
    for field, number in zip(flat[::2], flat[1::2], strict=True):
        state, _, queue = field.decode().partition("\n")
        found[queue, State(state)] = found.get((queue, State(state)), 0) + int(number)
    counted: dict[str, dict[State, int]] = {}
    for (queue, state), number in sorted(found.items()):
        counted.setdefault(queue, {})[state] = number
    return counted


async def standing(script: Script, id: str) -> Standing | None:
    """The facts about one job."""
    found = await script.ask("standing", id)
    if found is None:
        return None
    known, paused, aside, ahead, waits_for, limits, before, parents, open_parents = found
    return Standing(
        record=Known(*known).record(),
        paused=bool(paused),
        aside=bool(aside),
        ahead=ahead,
        waits_for=None if waits_for is None else waits_for.decode(),
        limits=tuple(GateRow(*row).record() for row in limits),
        parents=tuple(id.decode() for id in parents),
        open_parents=open_parents,
        before=before,
        sessions=tuple(await sessions(script)),
        now=script.clock.now(),
    )


class GateRow(NamedTuple):
    """What a gate allows and who holds it, as the script tells it."""

    gate: bytes
    n: int | None
    interval: int | None
    burst: int | None
    changed: int
    paused: int
    shut_until: int | None
    wake_at: int | None
    holders: Sequence[bytes]
    held: int
    dead: int
    waiting: int

    def record(self) -> LimitRecord:
        """The same as people see it."""
        gate = self.gate.decode()
        return LimitRecord(
            key=key_of(gate),
            kind=kind_of(gate),
            n=self.n,
            interval=self.interval,
            burst=self.burst,
            changed=bool(self.changed),
            paused=bool(self.paused),
            shut_until=optional_moment(self.shut_until),
            next_at=optional_moment(self.wake_at),
            holders=tuple(id.decode() for id in self.holders),
            held=self.held,
            dead=bool(self.dead),
            waiting=self.waiting,
        )


async def limits(script: Script, limit: int, after: str | None, key: str | None) -> list[LimitRecord]:
    """What gates allow, by key and kind: of the first `limit` keys after one, or of one `key`."""
    found: dict[str, LimitRecord] = {}
    for kind in KINDS:
        number = 0
        async for each in _limits(script, kind, after, key):
            found[gate_of(kind, each.key)] = each
            number += 1
            if number == limit:
                break
    return [found[gate] for gate in page_of(found, limit, after, key)]


async def _limits(script: Script, kind: Kind, after: str | None = None, key: str | None = None) -> AsyncIterator[LimitRecord]:
    """Those of one kind by key, for so does the script know them; it looks at a page at a time whether there is anything to tell."""
    first, last = (b"(" + gate_of(kind, after or "").encode(), f"({kind}!".encode())
    if key is not None:
        first = last = b"[" + gate_of(kind, key).encode()
    while first is not None:
        seen, rows = await script.ask("limits", first, last, PAGE)
        for row in rows:
            yield GateRow(*row).record()
        first = None if seen is None else b"(" + seen


async def _striking(script: Script) -> tuple[LimitRecord, ...]:
    """Those that let nobody pass."""
    found = [each for kind in KINDS async for each in _limits(script, kind) if each.paused or each.shut_until or each.dead]
    return tuple(sorted(found, key=lambda limit: (limit.key, limit.kind))[:MOST_STRIKING])


async def sessions(script: Script) -> list[SessionRecord]:
    """The sessions, oldest first."""
    return [
        SessionRecord(id=id.decode(), info=_info(info), beat=beat, beat_at=moment(beat_at), started_at=moment(started_at), running=running)
        for id, info, beat, beat_at, started_at, running in await script.ask("sessions")
    ]


async def facts(script: Script) -> Facts:
    """What `doctor` judges by."""
    aside, large, finished = await script.ask("facts", 5 * MOST_LARGE, MOST_FINISHED)
    engine, version = server_version(await script.link.facts())
    set_aside: dict[str, int] = {}
    for task, number in aside:
        set_aside[task.decode()] = set_aside.get(task.decode(), 0) + number
    oldest = {queue: await script.ask("oldest", queue) for queue in await script.ask("queues")}
    payloads = sorted(((id.decode(), task.decode(), size) for id, task, size in large), key=lambda row: (-row[2], row[0]))
    return Facts(
        engine=engine,
        version=version,
        schema=SCHEMA,
        newest_schema=SCHEMA,
        place=f"{script.link.address} under {script.link.address.key}",
        paused=tuple(sorted(queue.decode() for queue in await script.ask("paused"))),
        sessions=tuple(await sessions(script)),
        schedules=tuple(planning.record_of(row) for row in await script.ask("schedules")),
        aside=set_aside,
        oldest_ready={queue.decode(): moment(since) for queue, since in oldest.items() if since is not None},
        large=tuple(payloads[:MOST_LARGE]),
        finished=tuple((task.decode(), took / 1_000_000) for _, _, task, took in sorted(finished, reverse=True)),
        limits=await _striking(script),
        declared=by_rule([_limit.decode(row) for row in await script.ask("declared")]),
        notes=(*_skew(script), *await notes(script.link)),
        now=script.clock.now(),
    )


def _skew(script: Script) -> list[Note]:
    skew = script.clock.skew
    if skew is None or abs(skew) <= LARGEST_SKEW:
        return []
    way = "ahead of" if skew > timedelta() else "behind"
    text = f"this machine's clock is {abs(skew) // MICROSECOND / 1_000_000:,.1f} s {way} the server's"
    return [("warning", text, "Jobs go by the server's clock; set this machine's by NTP, so that times enqueued here mean what they say.")]
