"""Workflows and batches: who joins them, when they are finished, which callbacks are due, and how one is stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from offload.brokers.sqlite.books import Count, Key
from offload.brokers.sqlite.cancelling import end
from offload.brokers.sqlite.counting import count_from, counts_from, known, of
from offload.brokers.sqlite.endings import drop_expiring, forget
from offload.brokers.sqlite.families import drop_kin, keep_fates, pay, take_up
from offload.brokers.sqlite.keys import ALL_KEYS, give_up
from offload.brokers.sqlite.moves import Moves, past_of
from offload.brokers.sqlite.rows import SECOND, jobs_by_number, moment, optional_moment, optional_stored, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.counting import is_complete, is_due, tally_of
from offload.errors import BatchClosed, ParentNotFound
from offload.gates import gated
from offload.job import TERMINAL, Job, State, TallyKind
from offload.records import Tally

POSTPONED = 86_400 * SECOND
"""How much longer a workflow is kept of which a dead job keeps its turn."""
PIECE = 1_000
"""The most jobs of one that are cancelled, or forgotten, at once."""
MOST_AT_ONCE = 10
"""The most that one round of upkeep abandons."""
ENDS = tuple((state, state.value.lower()) for state in TERMINAL)
"""How jobs end, and the columns in which that is counted."""
EVERYTHING = (1 << 62, 0)
"""Where the first page begins: after nobody."""
NOTHING = (-1 << 62, 0)

_keys = msgspec.json.Decoder(list[Key]).decode
_members = msgspec.json.Decoder(list[tuple[int, str]]).decode
_numbers = msgspec.json.Decoder(list[int]).decode
_running = msgspec.json.Decoder(dict[str, int]).decode


def _there(tx: Transaction, keys: Sequence[Key]) -> list[Count]:
    counts = known(tx, keys)
    return [count for key in keys if (count := counts[key]) is not None]


def _new(tx: Transaction, key: Key, now: int) -> Count:
    count = Count(tx.numbers(1), *key, created_at=now, name="", touched_at=now, is_new=True)
    tx.books.counts[key] = count
    tx.books.touch(count)
    return count


# -- who joins -----------------------------------------------------------------------------------------------------------------


def join(tx: Transaction, now: int, job: Job, adder: Job | None) -> str | None:
    """Count a new job where it belongs. Returns why it is cancelled at once, if it is. Raises BatchClosed.

    `adder` is the job that adds it, which may do so to its own batch when that is sealed.
    """
    counts, stopped = known(tx, of(job)), None
    if job.workflow is not None:
        key: Key = ("workflow", job.workflow.id)
        count = counts[key] or _new(tx, key, stored(job.enqueued_at))
        count.name, count.keep = count.name or job.workflow.name, max(count.keep, job.keep)
        if not count.stopped:
            count.size = max(count.size, job.workflow.size) + (adder is not None)  # whom a job adds its producer did not announce
        stopped = _add(tx, now, count)
    if job.batch is not None and job.callback is None:
        count = counts["batch", job.batch]
        if count is None:
            raise BatchClosed(f"there is no batch {job.batch}: open it first, or it is forgotten")
        if count.sealed and (adder is None or adder.batch != job.batch):
            raise BatchClosed(f"batch {job.batch} is sealed and takes no more jobs; add them before its block ends, or from its own jobs")
        stopped = _add(tx, now, count) or stopped
    return stopped


def _add(tx: Transaction, now: int, count: Count) -> str | None:
    count.total += 1
    count.touched_at = now
    tx.books.touch(count)
    return f"its {count.kind} was cancelled" if count.stopped else None


def incomplete(tx: Transaction, jobs: Sequence[Job]) -> dict[str, bool]:
    """The workflows of jobs that are to be stored, and whether more of each are to come than are there so far."""
    counts = known(tx, [key for job in jobs for key in of(job)])
    ids = {job.workflow.id: None for job in jobs if job.workflow is not None}
    return {id: (count := counts["workflow", id]) is None or not is_complete(count) for id in ids}


def check_parents(tx: Transaction, jobs: Sequence[Job], growing: Mapping[str, bool]) -> None:
    """Raise ParentNotFound where, now that these jobs were stored, one waits for a parent that never comes.

    Parents may come after those who wait for them, as long as more are to come: so a workflow that has just become complete is looked at
    as a whole.
    """
    given: str | None = None
    for id, grew in growing.items():
        count = tx.books.counts["workflow", id]
        if count is None or not is_complete(count):
            continue
        if grew:
            missing = tx.row("unknown_parent", workflow=id)
        else:
            given = given or text([job.id for job in jobs if job.parents])
            missing = tx.row("unknown_parent_of", workflow=id, ids=given)
        if missing is not None:
            raise ParentNotFound(*missing)


def open_batch(tx: Transaction, now: int, id: str, name: str, callbacks: Sequence[Job]) -> bool:
    """Begin a batch. False when there is one of this id; its callbacks are stored by the caller."""
    if known(tx, [("batch", id)])["batch", id] is not None:
        return False
    count = _new(tx, ("batch", id), now)
    count.name = name
    count.callbacks = {job.callback: job.id for job in callbacks if job.callback is not None}
    return True


def seal(tx: Transaction, id: str) -> bool:
    """Let no more jobs come from outside."""
    count = known(tx, [("batch", id)])["batch", id]
    if count is None or count.sealed:
        return False
    count.sealed = True
    tx.books.touch(count)
    return True


# -- at the end of each operation ----------------------------------------------------------------------------------------------


def settle_up(tx: Transaction, now: int) -> None:
    """What is to be done at the end of each operation: children learn how their parents ended, and callbacks that are due may go."""
    if not tx.books_kept:
        return
    counted = _count(tx)
    if tx.books.owed:
        pay(tx, now)
        counted |= _count(tx)
    due, gone = _close(tx, now, counted)
    if due or gone:
        _let_go(tx, now, due, gone)
    tx.close_books()


def _count(tx: Transaction) -> set[Key]:
    """Count what has ended: by one statement where the workflow or batch was not looked up before. Returns what was counted."""
    books = tx.books
    changes, books.changes = books.changes, {}
    for key, change in changes.items():
        if key in books.counts:
            count = books.counts[key]
            if count is not None:
                books.touch(count)
                for state, number in change.items():
                    count.add(state, number)
        else:
            row = tx.row("count", kind=key[0], id=key[1], **{name: change.get(state, 0) for state, name in ENDS})
            books.counts[key] = None if row is None else count_from(row[0])
    return set(changes)


def _close(tx: Transaction, now: int, counted: AbstractSet[Key]) -> tuple[list[str], list[str]]:
    """Write down what was counted. Returns the callbacks that are due, and those that never will be, if they still wait."""
    due: list[str] = []
    gone: list[str] = []
    touched: list[Count] = []
    for key, count in tx.books.counts.items():
        if count is None:
            continue
        is_touched = key in tx.books.touched
        if count.close(now, changed=is_touched or key in counted) or is_touched:
            touched.append(count)
        for which, id in count.callbacks.items():
            if is_due(count, which):
                due.append(id)
            elif is_due(count, "success"):  # nothing is left that could be retried, and fail
                gone.append(id)
    tx.add("add_tallies", [count.row() for count in touched if count.is_new])
    if old := [count for count in touched if not count.is_new]:
        tx.do("put_tallies", counts=text(old))
    return due, gone


def _let_go(tx: Transaction, now: int, due: Sequence[str], gone: Sequence[str]) -> None:
    """Have callbacks go that are due, in the order in which they were stored, and drop others, as far as they still wait."""
    rows = jobs_by_number(tx, pending) if (pending := _pending(tx, [*due, *gone])) else {}
    if not rows:
        return
    drop_callbacks(tx, now, [n for n, row in rows.items() if row.id in gone])
    going = sorted(n for n, row in rows.items() if row.id not in gone)
    tx.do("drop_waiting", ns=text(going))
    moves = Moves(tx, now)
    for n in going:
        job, seat = rows[n].job(), tx.numbers(1)
        moves.seated({n: seat})
        if gated(job):
            tx.do("note_seats", seats=text([(n, seat)]))
        moves.place(n, job, past_of(rows[n]), optional_stored(job.run_at))
    moves.write()


def _pending(tx: Transaction, ids: Sequence[str]) -> list[int]:
    return _numbers(tx.value("pending_callbacks", ids=text(ids)))


def drop_callbacks(tx: Transaction, now: int, ns: Sequence[int]) -> None:
    """Remove callbacks that wait, with the keys that they hold."""
    if not ns:
        return
    jobs = [(n, row.job()) for n, row in jobs_by_number(tx, ns).items()]
    drop_expiring(tx, jobs)
    tx.do("drop_waiting", ns=text(ns))
    forget(tx, ns)
    moves = Moves(tx, now)
    for n, job in jobs:
        give_up(tx, now, n, job, ALL_KEYS, moves)
    moves.write()


# -- the end of all ------------------------------------------------------------------------------------------------------------


def stop(tx: Transaction, now: int, kind: TallyKind, id: str) -> bool:
    """Cancel all jobs, those that are still to come too; of many the first piece."""
    _tell_all(tx, now)
    count = known(tx, [(kind, id)])[kind, id]
    if count is None or count.finished_at is not None:
        return False
    _stop(tx, now, count)
    return True


def _stop(tx: Transaction, now: int, count: Count) -> None:
    count.stopped, count.sealed = True, count.kind == "batch"
    count.size = min(count.size, count.total)
    count.stopping = 0
    _go_on_stopping(tx, now, count)


def _go_on_stopping(tx: Transaction, now: int, count: Count) -> bool:
    members = _members(tx.value(f"{count.kind}_members", id=count.id, after=count.stopping, limit=PIECE))
    count.stopping = members[-1][0] if len(members) == PIECE else None
    tx.books.touch(count)
    ended = end(tx, now, [id for _, id in members], State.CANCELLED, f"its {count.kind} was cancelled")
    if waited := [row.n for row in ended if row.what == "parents"]:
        tx.do("note_felled", ns=text(waited))  # so they come back with them
    return count.stopping is not None


def go_on_stopping(tx: Transaction, now: int, kind: TallyKind, id: str) -> bool:
    """Cancel the next of them. Returns whether there may be more."""
    count = known(tx, [(kind, id)])[kind, id]
    if count is None or count.stopping is None:
        return False
    return _go_on_stopping(tx, now, count)


def _tell_all(tx: Transaction, now: int) -> None:
    """Have all children know what upkeep has yet to tell them, before a stop, its end or a retry makes a difference."""
    while flows := take_up(tx):
        known(tx, [("workflow", id) for id in flows])
        settle_up(tx, now)


def anything_begun(tx: Transaction) -> bool:
    """Whether something was begun that upkeep is to go on with."""
    return bool(tx.value("anything_owed"))


def finish_stops(tx: Transaction, now: int, jobs: Sequence[Job]) -> None:
    """Have what stops workflows and batches of these jobs reach everybody at once: it must not meet whom a person revives meanwhile."""
    _tell_all(tx, now)
    for key in dict.fromkeys(key for job in jobs for key in of(job)):
        while (count := known(tx, [key])[key]) is not None and count.stopping is not None:
            _go_on_stopping(tx, now, count)
            settle_up(tx, now)
            _tell_all(tx, now)


def resume(tx: Transaction, job: Job) -> None:
    """Where a person revives a job nothing is stopped any more."""
    for count in _there(tx, of(job)):
        if count.stopped:
            count.stopped = False
            tx.books.touch(count)


def abandon(tx: Transaction, now: int) -> int:
    """Give up what its producer left incomplete. Returns how many."""
    keys = _keys(tx.value("tallies_to_abandon", now=now, limit=MOST_AT_ONCE))
    if keys:
        _tell_all(tx, now)
    for count in _there(tx, keys):
        count.abandoned = True
        if count.kind == "workflow":
            _stop(tx, now, count)
        else:
            count.sealed = True
            tx.books.touch(count)
    settle_up(tx, now)
    return len(keys)


def go_on(tx: Transaction, now: int) -> bool:
    """Do the next piece of what earlier operations have begun. Returns whether more is left."""
    if not anything_begun(tx):
        return False
    stopping = _there(tx, _keys(tx.value("tallies_stopping")))
    for count in stopping:
        _go_on_stopping(tx, now, count)
    if not stopping:
        known(tx, [("workflow", id) for id in take_up(tx)])
    settle_up(tx, now)
    return anything_begun(tx)


def forget_old(tx: Transaction, now: int) -> int:
    """Drop the finished ones whose time is over, with the records of a workflow's jobs. Returns how many records went."""
    forgotten = 0
    keys = _keys(tx.value("tallies_to_forget", now=now, limit=PIECE))
    for count in _there(tx, keys):
        if count.kind == "workflow" and tx.value("keeps_turn", id=count.id):
            count.forget_at = now + POSTPONED
            tx.do("put_tallies", counts=text([count]))
            continue
        forgotten += _forget(tx, now, count, PIECE - forgotten)
        if forgotten < PIECE:
            tx.do("drop_tally", n=count.n)
    tx.close_books()
    return forgotten


def _forget(tx: Transaction, now: int, count: Count, most: int) -> int:
    """Drop so many records that go with a workflow or batch. Returns how many there were."""
    if count.kind == "workflow":
        ns = [n for n, _ in _members(tx.value("workflow_members", id=count.id, after=0, limit=most))]
        if len(ns) == most:  # others are left, and may be retried
            keep_fates(tx, jobs_by_number(tx, ns).values())
        if ns:
            tx.do("drop_done", ns=text(ns))
            drop_kin(tx, ns)
            forget(tx, ns)
    else:
        ns = _pending(tx, list(count.callbacks.values()))[:most]
        drop_callbacks(tx, now, ns)
    return len(ns)


# -- what people see -----------------------------------------------------------------------------------------------------------


def tallies(tx: Transaction, kind: TallyKind, ids: Sequence[str] | None, limit: int, after: str | None) -> list[Tally]:
    """What people see of them; see `Store.tallies`."""
    if ids is not None:
        found = known(tx, [(kind, id) for id in ids])
        counts = [count for id in dict.fromkeys(ids) if (count := found[kind, id]) is not None]
    else:
        at, n = EVERYTHING if after is None else tx.row("tally_after", kind=kind, id=after) or NOTHING
        counts = counts_from(tx.value("tally_page", kind=kind, at=at, after=n, limit=limit))
    running = _running(tx.value(f"running_by_{kind}", ids=text([count.id for count in counts]))) if counts else {}
    return [_tally(count, running.get(count.id, 0)) for count in counts]


def _tally(count: Count, running: int) -> Tally:
    return tally_of(count, moment(count.created_at), optional_moment(count.finished_at), running)
