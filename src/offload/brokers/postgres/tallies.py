"""Workflows and batches: who joins them, when they are finished, which callbacks are due, and how one is stopped.

The row of one is locked late: it is where all meet that end its jobs. But who adds jobs has it from before they are placed, so that they
come before it is sealed, or after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from offload.broker import Work
from offload.brokers.postgres import locking
from offload.brokers.postgres.books import SPANS, Count, Key, tallies_of
from offload.brokers.postgres.cancelling import end
from offload.brokers.postgres.endings import drop_expiring, forget
from offload.brokers.postgres.families import forget_kin, note_fallen, pay, pay_owed
from offload.brokers.postgres.keys import ALL_KEYS, Keys
from offload.brokers.postgres.moves import Moves, take_out
from offload.brokers.postgres.rows import JobColumns, jobs_by_id, moment, optional_moment, optional_stored, read_extra, stored
from offload.brokers.postgres.work import Doubt, Transaction, text
from offload.counting import is_due, tally_of
from offload.errors import BatchClosed
from offload.job import DAY, Job, State, TallyKind
from offload.records import Tally

POSTPONED = round(DAY * 1_000_000)
"""Microseconds for which a workflow is kept on of which a dead job keeps its turn."""
WINDOW = 1_000
"""The most records that one round forgets, and the most jobs that one operation stops."""

STOPS = "stops"
"""Locked as a gate by who cancels jobs of what is being stopped: two who cancel the same ones would be in each other's way."""

MOST_ABANDONED = 20
"""The most that one round gives up."""

ENDS = (State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED)

_counts = msgspec.json.Decoder(list[Count]).decode
_shown = msgspec.json.Decoder(list[tuple[Count, int]]).decode
_keys = msgspec.json.Decoder(list[Key]).decode
_members = msgspec.json.Decoder(list[tuple[int, str]]).decode
_extras = msgspec.json.Decoder(list[str]).decode
_ids = msgspec.json.Decoder(list[str]).decode
_numbers = msgspec.json.Decoder(list[int]).decode


def lock(tx: Transaction, keys: Iterable[Key]) -> Work[None]:
    """Lock tallies, and have them in the books."""
    counts = tx.books.counts
    missing = sorted(set(keys) - counts.keys())
    if missing:
        found = {count.key: count for count in _counts((yield from tx.value("lock_tallies", keys=text(missing))))}
        counts |= {key: found.get(key) for key in missing}


def try_lock(tx: Transaction, jobs: Iterable[Job]) -> Work[set[Key]]:
    """Lock where jobs are counted without waiting. Returns those that another transaction has."""
    keys = {key for job in jobs for key in tallies_of(job)}
    return set(_keys((yield from tx.value("try_tallies", keys=text(sorted(keys)))))) if keys else set()


def begin(tx: Transaction, tallies: Sequence[tuple[TallyKind, str, str]]) -> Work[set[Key]]:
    """Begin those that there are not. Returns them."""
    added = set(_keys((yield from tx.value("add_tallies", tallies=text(tallies), now=tx.now))))
    for kind, id, _ in tallies:
        tx.books.counts.pop((kind, id), None)
    yield from lock(tx, [(kind, id) for kind, id, _ in tallies])
    return added


def join(tx: Transaction, job: Job, adder: Job | None) -> str | None:
    """Count a new job where it belongs. Returns why it is cancelled at once, if it is. Raises BatchClosed.

    `adder` is the job that adds it, which may do so to its own batch when that is sealed.
    """
    stopped: str | None = None
    if job.workflow is not None:
        count = tx.books.counts["workflow", job.workflow.id]
        assert count is not None
        if count.total == 0:
            count.created_at = stored(job.enqueued_at)
        count.name, count.keep = count.name or job.workflow.name, max(count.keep, job.keep)
        if not count.stopped:
            count.size = max(count.size, job.workflow.size) + (adder is not None)  # whom a job adds its producer did not announce
        stopped = _add(tx, count)
    if job.batch is not None and job.callback is None:
        count = tx.books.counts["batch", job.batch]
        if count is None:
            raise BatchClosed(f"there is no batch {job.batch}: open it first, or it is forgotten")
        if count.sealed and (adder is None or adder.batch != job.batch):
            raise BatchClosed(f"batch {job.batch} is sealed and takes no more jobs; add them before its block ends, or from its own jobs")
        stopped = _add(tx, count) or stopped
    return stopped


def _add(tx: Transaction, count: Count) -> str | None:
    count.total += 1
    count.touched_at = tx.now
    tx.books.touched.add(count.key)
    return f"its {count.kind} was cancelled" if count.stopped else None


# -- at the end of each operation --------------------------------------------------------------------------------------------


def settle_up(tx: Transaction) -> Work[None]:
    """Children learn how their parents ended, and then all is counted; callbacks that are due may go. May raise Doubt."""
    books = tx.books
    yield from pay(tx)
    keys = sorted(books.changes.keys() | books.touched)
    if not books.counts and not books.freed and all(kind == "workflow" for kind, _ in keys):
        yield from _count_workflows(tx)
        books.clear()
        return
    yield from lock(tx, keys)
    changed = [count for key in keys if (count := books.counts[key]) is not None]
    for count in changed:
        if count.key in books.freed:
            if count.stopping is not None:
                raise Doubt  # a stop that has begun meanwhile reaches everybody first
            count.stopped = False
        for state, number in books.changes.get(count.key, {}).items():
            count.add(state, number)
        count.close(tx.now)
    if changed:
        yield from tx.post("put_tallies", tallies=text([count.row() for count in changed]))
    yield from _call_back(tx, changed)
    books.clear()


def _count_workflows(tx: Transaction) -> Work[None]:
    """Count what has ended in workflows that nothing else is to be done for."""
    if tx.books.changes:
        changes = {id: [change.get(state, 0) for state in ENDS] for (_, id), change in tx.books.changes.items()}
        yield from tx.post("count_workflows", changes=text(changes), now=tx.now, **SPANS)


def _call_back(tx: Transaction, changed: Sequence[Count]) -> Work[None]:
    """Let callbacks go that are due, in the order in which they were stored; those that can never come due are deleted."""
    due = {id for count in changed for which, id in count.callbacks.items() if is_due(count, which)}
    void = {id for count in changed if is_due(count, "success") for id in count.callbacks.values()} - due
    if not due | void:
        return
    rows = [row for row in (yield from jobs_by_id(tx, [*due, *void])).values() if row.what == "batch"]
    yield from _let_callbacks_go(tx, [row for row in rows if row.id in due])
    yield from _drop_callbacks(tx, [row for row in rows if row.id in void])


def _let_callbacks_go(tx: Transaction, rows: Sequence[JobColumns]) -> Work[None]:
    out = yield from take_out(tx, rows)
    moves = Moves(tx.now)
    moves.seated({row.n: row.seat for row in rows})
    for row in sorted(rows, key=lambda row: row.n):
        if row.n in out:
            job = row.job()
            moves.place(row.n, job, out[row.n], optional_stored(job.run_at), joins=True)
    yield from moves.write(tx)


def _drop_callbacks(tx: Transaction, rows: Sequence[JobColumns]) -> Work[None]:
    """Drop all that is known of callbacks that never come, and give their keys to those who wait for them."""
    if not rows:
        return
    keys, moves = Keys(tx), Moves(tx.now)
    yield from keys.lock(row.job() for row in rows)
    out = yield from take_out(tx, rows)
    gone = [(row, row.job()) for row in rows if row.n in out]
    for row, job in gone:
        yield from keys.give_up(row.n, job, ALL_KEYS, moves)
    yield from keys.write()
    yield from moves.write(tx)
    yield from drop_expiring(tx, [(row.n, job) for row, job in gone])
    yield from forget(tx, [row.n for row, _ in gone])
    yield from forget_kin(tx, [row.n for row, _ in gone if row.workflow is not None])


# -- stopped, or given up ----------------------------------------------------------------------------------------------------


def seal(tx: Transaction, id: str) -> Work[bool]:
    """Let no more jobs come from outside."""
    yield from lock(tx, [("batch", id)])
    count = tx.books.counts["batch", id]
    if count is None or count.sealed:
        return False
    count.sealed = True
    tx.books.touched.add(count.key)
    return True


def begin_to_stop(tx: Transaction, kind: TallyKind, id: str) -> Work[bool]:
    """Take no more jobs but to cancel them. What there is, is cancelled in operations to come: it is locked before its tally."""
    yield from lock(tx, [(kind, id)])
    count = tx.books.counts[kind, id]
    if count is None or count.finished_at is not None:
        return False
    _stop(tx, count)
    return True


def _stop(tx: Transaction, count: Count) -> None:
    count.stopped, count.sealed = True, count.kind == "batch"
    count.size = min(count.size, count.total)
    count.stopping = 0
    tx.books.touched.add(count.key)


def is_behind(tx: Transaction, ids: Sequence[str]) -> Work[bool]:
    """Whether anything was begun that is to reach everybody before any of these jobs is revived: news of parents, or a stop."""
    return (yield from tx.value("is_owed")) or bool(_keys((yield from tx.value("stopping_of", ids=text(ids)))))


def catch_up(tx: Transaction, ids: Sequence[str]) -> Work[None]:
    """Do the next piece of that."""
    if (yield from pay_owed(tx, waits=True)):
        return
    for key in _keys((yield from tx.value("stopping_of", ids=text(ids))))[:1]:
        yield from go_on_stopping(tx, key)


def go_on_stopping(tx: Transaction, only: Key | None = None) -> Work[bool]:
    """Cancel the next jobs of what is being stopped, of one or of all. Returns whether there was any.

    Raises Doubt where another transaction has gone on with it meanwhile: somebody may have been revived since.
    """
    yield from locking.lock(tx, [STOPS])
    kind, id = only or (None, None)
    row = yield from tx.row("stopping", kind=kind, id=id)
    if row is None:
        return False
    kind, id, after = row
    last = yield from _cancel_next(tx, kind, id, after)
    yield from lock(tx, [(kind, id)])
    count = tx.books.counts[kind, id]
    if count is None or count.stopping != after:
        raise Doubt
    count.stopping = last
    tx.books.touched.add(count.key)
    return True


def _cancel_next(tx: Transaction, kind: TallyKind, id: str, after: int) -> Work[int | None]:
    """Cancel jobs of a tally. Returns the last that was looked at, where there may be more."""
    members = _members((yield from tx.value(f"{kind}_members", id=id, after=after, limit=WINDOW)))
    ended = yield from end(tx, [id for _, id in members], State.CANCELLED, f"its {kind} was cancelled")
    yield from note_fallen(tx, [row.n for row in ended if row.what == "parents"])  # so they come back with them
    return members[-1][0] if len(members) == WINDOW else None


def abandon(tx: Transaction) -> Work[None]:
    """Give up what its producer left incomplete. Hardly anything goes on there, so that tallies may be locked before jobs for once."""
    keys = _keys((yield from tx.value("abandoned", now=tx.now, limit=MOST_ABANDONED)))
    yield from lock(tx, keys)
    for count in sorted((count for key in keys if (count := tx.books.counts[key]) is not None), key=lambda count: count.n):
        count.abandoned = True
        if count.kind == "workflow":
            _stop(tx, count)
            count.stopping = yield from _cancel_next(tx, count.kind, count.id, 0)
        else:
            count.sealed = True
            tx.books.touched.add(count.key)


# -- forgotten ---------------------------------------------------------------------------------------------------------------


def forget_finished(tx: Transaction) -> Work[int]:
    """Drop the finished ones whose time is over, with the records of a workflow's jobs. Returns how many records went."""
    keys = _keys((yield from tx.value("forgettable_tallies", now=tx.now, limit=WINDOW)))
    yield from lock(tx, keys)
    forgotten = 0
    for key in keys:
        count = tx.books.counts[key]
        if count is None or forgotten >= WINDOW:
            continue
        if count.kind == "workflow" and (yield from _kept_by_a_turn(tx, count.id)):
            count.forget_at = tx.now + POSTPONED
            yield from tx.post("put_tallies", tallies=text([count.row()]))
            continue
        forget_jobs = _forget_workflow if count.kind == "workflow" else _forget_callbacks
        forgotten += yield from forget_jobs(tx, count, WINDOW - forgotten)
        if forgotten < WINDOW:
            yield from tx.post("drop_tally", kind=count.kind, id=count.id)
    return forgotten


def _kept_by_a_turn(tx: Transaction, id: str) -> Work[bool]:
    extras = _extras((yield from tx.value("dead_members", id=id)))
    return any(extra.order_by is not None and extra.on_dead == "hold" for extra in map(read_extra, extras))


def _forget_workflow(tx: Transaction, count: Count, most: int) -> Work[int]:
    members = _members((yield from tx.value("workflow_members", id=count.id, after=0, limit=most)))
    ns = [n for n, _ in members]
    gone = _numbers((yield from tx.value("forget_done", ns=text(ns))))
    yield from forget(tx, gone)
    yield from forget_kin(tx, gone)
    return len(members)


def _forget_callbacks(tx: Transaction, count: Count, most: int) -> Work[int]:
    rows = [row for row in (yield from jobs_by_id(tx, count.callbacks.values())).values() if row.what == "batch"][:most]
    yield from _drop_callbacks(tx, rows)
    return len(rows)


# -- for people --------------------------------------------------------------------------------------------------------------


def tallies(tx: Transaction, kind: TallyKind, ids: Sequence[str] | None, limit: int, after: str | None) -> Work[list[Tally]]:
    """What people see of them; see `Store.tallies`."""
    yield from tx.post("plan_freely")
    if ids is None:
        place: tuple[int | None, int | None] = (None, None)
        if after is not None:
            place = (yield from tx.row("tally_place", kind=kind, id=after)) or (-1 << 62, 0)
        ids = _ids((yield from tx.value("tally_ids", kind=kind, at=place[0], after=place[1], limit=limit)))
    wanted = list(dict.fromkeys(ids))
    found = {
        count.id: tally(count, running) for count, running in _shown((yield from tx.value("tallies_by_id", kind=kind, ids=text(wanted))))
    }
    return [found[id] for id in wanted if id in found]


def tally(count: Count, running: int) -> Tally:
    """What people see of one."""
    return tally_of(count, moment(count.created_at), optional_moment(count.finished_at), running)
