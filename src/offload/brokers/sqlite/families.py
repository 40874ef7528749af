"""What jobs wait for of their parents, and what becomes of them when those have ended.

Whatever ends, or is revived, is noted as owed to its children (see `books`), and paid at the end of the operation: all at once, so that
it does not matter in which order one operation ended its jobs. What is owed to very many children is paid in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from offload.brokers.sqlite.books import Debt, Fate
from offload.brokers.sqlite.endings import NEVER, Ending, let_go, record_ends
from offload.brokers.sqlite.gating import Past
from offload.brokers.sqlite.keys import any_held, take
from offload.brokers.sqlite.moves import NO_PAST, Moves, past_of
from offload.brokers.sqlite.rows import JobColumns, jobs_by_number, optional_stored, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.gates import gated
from offload.job import Job, State, UniqueKey, keys_of

MOST_LINKS = 1_000
"""The most links that one operation follows; upkeep goes on with the others."""


class Child(NamedTuple):
    """What a job waits for, or fell with."""

    n: int
    waits: int
    """Whether it stands among those that wait for their parents."""
    felled: int
    """Whether it ended because a parent did."""
    open: int
    """Whether a parent has not ended."""
    why: str | None
    """Why it is to fall."""


class Ties(NamedTuple):
    """What a new job knows of its parents."""

    open: bool = False
    why: str | None = None


_pairs = msgspec.json.Decoder(list[tuple[int, int]]).decode
_children = msgspec.json.Decoder(list[Child]).decode
_ends = msgspec.json.Decoder(list[tuple[str, str, State, str | None]]).decode
_debts = msgspec.json.Decoder(list[tuple[int, str, str, Fate, str | None, str | None, int]]).decode

LinkRow = tuple[int, int, str, str, bool, bool, int, str | None, str | None]


def connect(tx: Transaction, jobs: Sequence[tuple[int, Job]]) -> dict[int, Ties]:
    """Tie new jobs to their parents, also those that have ended already, or are yet to come; by number, what those know that have any."""
    having = [(n, job, job.workflow.id) for n, job in jobs if job.parents and job.workflow is not None]
    if not having:
        return {}
    new = {job.id for _, job in jobs}
    ends = _ends_of(tx, {parent.id for _, job, _ in having for parent in job.parents if len(jobs) == 1 or parent.id not in new})
    rows: list[LinkRow] = []
    ties: dict[int, Ties] = {}
    for n, job, flow in having:
        fells = job.if_parent_fails == "cancel"
        links = [ends.get((parent.id, flow), Debt(parent.id, flow, Fate.OPEN)) for parent in job.parents]
        ties[n] = Ties(
            any(link.fate is Fate.OPEN for link in links),
            next((link.why for link in links if link.fate is Fate.FAILED), None) if fells else None,
        )
        rows += [
            (n, place, parent.id, flow, bool(parent.at), fells, link.fate.value, link.result if parent.at else None, link.why)
            for place, (parent, link) in enumerate(zip(job.parents, links, strict=True))
        ]
    tx.add("add_links", rows)
    return ties


def _ends_of(tx: Transaction, ids: Iterable[str]) -> Mapping[tuple[str, str], Debt]:
    """How those of these ids have ended that have, by id and workflow."""
    wanted = sorted(ids)
    ends: dict[tuple[str, str], Debt] = {}
    for id, flow, state, result in _ends(tx.value("ends_of", ids=text(wanted))) if wanted else ():
        if state is State.SUCCEEDED:
            ends[id, flow] = Debt(id, flow, Fate.DONE, result)
        else:
            ends[id, flow] = Debt(id, flow, Fate.FAILED, None, f"parent {id} ended {state}")
    return ends


def wait(tx: Transaction, what: str, jobs: Sequence[tuple[int, Past]]) -> None:
    """Have jobs wait for their `parents`, or for their `batch`."""
    if jobs:
        tx.add("add_pending", [(n, "", what, *past) for n, past in jobs])


def children(tx: Transaction, ns: Sequence[int]) -> dict[int, Child]:
    """What jobs know of their parents, by their numbers."""
    return {child.n: child for child in _children(tx.value("children", ns=text(ns)))}


def pay(tx: Transaction, now: int) -> None:
    """Tell children how their parents ended; generation after generation, and in each in the order in which they were stored."""
    left = MOST_LINKS
    while tx.books.owed:
        owed, tx.books.owed = list(tx.books.owed.values()), {}
        if left > 0:
            left -= _tell(tx, now, owed, left)
        else:
            _put_off(tx, owed)


def _tell(tx: Transaction, now: int, owed: Sequence[Debt], most: int) -> int:
    """Pay debts, to at most so many children. Returns to how many."""
    known = [(debt.parent, debt.flow, debt.after) for debt in owed]
    older, found = tx.row("concerned", debts=text(known), limit=most + 1)
    pairs = _pairs(found)
    if older:
        tx.do("drop_owed", pairs=text([each[:2] for each in known]))
    if not pairs:
        return 0
    last, upto = pairs[most - 1] if len(pairs) > most else (len(owed), NEVER)
    del pairs[most:]
    concerned = {which for which, _ in pairs}
    told = [(*each[:3], upto if i == last else NEVER, *each[3:]) for i, each in enumerate(map(_told, owed)) if i in concerned]
    tx.do("tell", debts=text(told))
    if last < len(owed):
        _put_off(tx, [owed[last]._replace(after=upto), *owed[last + 1 :]])
    _reconsider(tx, now, sorted({n for _, n in pairs}))
    return len(pairs)


def _told(debt: Debt) -> tuple[str, str, int, int, str | None, str | None]:
    return (debt.parent, debt.flow, debt.after, debt.fate.value, debt.result, debt.why)


def _put_off(tx: Transaction, owed: Sequence[Debt]) -> None:
    """Leave debts to upkeep."""
    tx.do("drop_owed", pairs=text([(debt.parent, debt.flow) for debt in owed]))
    first = tx.numbers(len(owed))
    tx.add("add_owed", [(n, *debt) for n, debt in enumerate(owed, start=first)])


def take_up(tx: Transaction) -> None:
    """Owe again what was put off, as much as one operation may pay."""
    rows = _debts(tx.value("owed", limit=MOST_LINKS))
    if rows:
        tx.do("drop_owed_rows", ns=text([row[0] for row in rows]))
    for row in rows:
        debt = Debt(*row[1:])
        tx.books.owed[debt.parent, debt.flow] = debt


def _reconsider(tx: Transaction, now: int, ns: Sequence[int]) -> None:
    """Do what the fates of their parents ask for with jobs that still wait for them, or fell with them; in order."""
    acting = {n: each for n, each in children(tx, ns).items() if each.felled or (each.waits and (each.why is not None or not each.open))}
    if not acting:
        return
    rows = jobs_by_number(tx, list(acting))
    moves = Moves(tx, now)
    moves.seated({row.n: row.seat for row in rows.values()})
    waiting = [n for n in acting if acting[n].waits]
    if waiting:
        tx.do("drop_waiting", ns=text(waiting))
    falls: list[Ending] = []
    reasons: list[tuple[int, str]] = []
    for n in sorted(acting):
        row, why = rows[n], acting[n].why
        if acting[n].felled:
            if why is None:
                _revive(tx, now, row, moves, open=bool(acting[n].open))
            else:
                reasons.append((n, why))
        elif why is not None:
            falls.append(Ending(n, row.job(), past_of(row), State.CANCELLED, why))
            let_go(tx, now, falls[-1], moves)
        else:
            job = row.job()
            moves.join(n, job, past_of(row))
            moves.place(n, job, past_of(row), optional_stored(job.run_at))
    if reasons:
        tx.do("note_reasons", reasons=text(reasons))
    fell(tx, now, falls)
    moves.write()


def fell(tx: Transaction, now: int, falls: Sequence[Ending]) -> None:
    """Record the ends of jobs that fall with their parents, to be revived with them; what they held is let go by the caller."""
    if falls:
        record_ends(tx, now, falls)
        tx.do("note_felled", ns=text([fall.n for fall in falls]))


def _revive(tx: Transaction, now: int, row: JobColumns, moves: Moves, *, open: bool) -> None:
    """Have a job go on that fell with its parents, unless its key is taken."""
    job, past = row.job(), past_of(row)
    wanted = to_take_again(job)
    if any_held(tx, now, wanted):
        return
    take(tx, row.n, job, wanted)
    tx.do("drop_done", ns=text([row.n]))
    if past.claim == 0 and job.expires_at is not None:
        tx.add("add_expiring", [(stored(job.expires_at), row.n)])
    tx.books.revived(job, State.CANCELLED)
    seat = tx.numbers(1)
    moves.seated({row.n: seat})
    if gated(job):
        tx.do("note_seats", seats=text([(row.n, seat)]))
    if open:
        wait(tx, "parents", [(row.n, past)])
    else:
        moves.place(row.n, job, past, optional_stored(job.run_at))


def to_take_again(job: Job) -> list[UniqueKey]:
    """The keys that a job gave up at its end, and takes again when it is revived."""
    return [unique for unique in keys_of(job) if unique.until in ("started", "finished")]


def arrive(tx: Transaction, now: int, n: int, job: Job, ties: Ties) -> bool:
    """Have a new job wait for its parents, or fall with them. False where neither is to be: then it takes its place."""
    if ties.why is not None:
        moves = Moves(tx, now)
        fall = Ending(n, job, NO_PAST, State.CANCELLED, ties.why)
        let_go(tx, now, fall, moves)
        fell(tx, now, [fall])
        moves.write()
    elif ties.open:
        wait(tx, "parents", [(n, NO_PAST)])
    return ties.why is not None or ties.open
