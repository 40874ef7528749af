"""What jobs wait for of their parents, and what becomes of them when those have ended.

Whatever ends, or is revived, is noted as owed to its children (see `books`), and paid at the end of the operation: all at once, so that
it does not matter in which order one operation ended its jobs. What is owed to very many children is paid in pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from offload.brokers.sqlite.books import Debts, Fate
from offload.brokers.sqlite.counting import known, of
from offload.brokers.sqlite.endings import NEVER, Ending, let_go, record_ends
from offload.brokers.sqlite.gating import Past
from offload.brokers.sqlite.keys import any_held, take
from offload.brokers.sqlite.moves import NO_PAST, Moves, past_of
from offload.brokers.sqlite.rows import JobColumns, jobs_by_number, optional_stored, stored, text
from offload.brokers.sqlite.transaction import Transaction
from offload.counting import is_complete
from offload.gates import gated, straight
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
    straight: int
    """Whether it needs no more than a place in its ready line."""

    @property
    def goes(self) -> bool:
        """Whether there is nothing to be done for it but that."""
        return bool(self.straight and self.waits and not self.open) and self.why is None


class Ties(NamedTuple):
    """What a new job knows of its parents."""

    open: bool = False
    why: str | None = None


_pairs = msgspec.json.Decoder(list[tuple[str, int]]).decode
_names = msgspec.json.Decoder(list[str]).decode
_numbers = msgspec.json.Decoder(list[int]).decode
_children = msgspec.json.Decoder(list[Child]).decode
_ends = msgspec.json.Decoder(list[tuple[str, str, State, str | None]]).decode
_debts = msgspec.json.Decoder(list[tuple[int, str, str, Fate, str | None, int]]).decode

LinkRow = tuple[int, int, str, int, bool, bool, int, str | None, str | None]
End = tuple[Fate, str | None, str | None]
"""How a parent ended: its result, or how it failed."""


def connect(tx: Transaction, jobs: Sequence[tuple[int, Job]]) -> dict[int, Ties]:
    """Tie new jobs to their parents, also those that have ended already, or are yet to come; by number, what those know that have any.

    Their workflows are known to the books.
    """
    having = [(n, job, job.workflow.id) for n, job in jobs if job.parents and job.workflow is not None]
    if not having:
        return {}
    new = {job.id for _, job in jobs}
    ends = _ends_of(tx, {parent.id for _, job, _ in having for parent in job.parents if parent.id not in new})
    rows: list[LinkRow] = []
    opens: list[tuple[int, int, bool]] = []
    ties: dict[int, Ties] = {}
    for n, job, id in having:
        count, fells = tx.books.counts["workflow", id], job.if_parent_fails == "cancel"
        flow = 0 if count is None else count.n
        links = [ends.get((parent.id, id), (Fate.OPEN, None, None)) for parent in job.parents]
        failed = [why for fate, _, why in links if fate is Fate.FAILED] if fells else []
        open = sum(fate is Fate.OPEN for fate, _, _ in links)
        ties[n] = Ties(open > 0, failed[0] if failed else None)
        opens.append((n, open, straight(job)))
        rows += [
            (n, place, parent.id, flow, bool(parent.at), fells, fate.value, result if parent.at else None, why)
            for place, (parent, (fate, result, why)) in enumerate(zip(job.parents, links, strict=True))
        ]
    tx.add("add_links", rows)
    tx.add("add_children", opens)
    return ties


def _ends_of(tx: Transaction, ids: Iterable[str]) -> Mapping[tuple[str, str], End]:
    """How those of these ids have ended that have, by id and workflow."""
    wanted = sorted(ids)
    ends: dict[tuple[str, str], End] = {}
    for id, flow, state, result in _ends(tx.value("ends_of", ids=text(wanted))) if wanted else ():
        done = state is State.SUCCEEDED
        ends[id, flow] = (Fate.DONE, result, None) if done else (Fate.FAILED, None, f"parent {id} ended {state}")
    return ends


def wait(tx: Transaction, what: str, jobs: Sequence[tuple[int, Past]]) -> None:
    """Have jobs wait for their `parents`, or for their `batch`."""
    if jobs:
        tx.add("add_pending", [(n, "", what, *past) for n, past in jobs])


def children(tx: Transaction, ns: Sequence[int]) -> dict[int, Child]:
    """What jobs know of their parents, by their numbers."""
    return {child.n: child for child in _children(tx.value("children", ns=text(ns)))}


def waiting_in_vain(tx: Transaction, rows: Iterable[JobColumns]) -> set[int]:
    """Those of which a parent is not there, while no more jobs are to come: so it is after a workflow was given up, or stopped."""
    flows = {row.n: flow.id for row in rows if (flow := row.job().workflow) is not None}
    counts = known(tx, [("workflow", id) for id in flows.values()])
    ns = [n for n, id in flows.items() if (count := counts["workflow", id]) is not None and is_complete(count)]
    return set(_numbers(tx.value("in_vain", ns=text(ns)))) if ns else set()


def _stopped(tx: Transaction, rows: Iterable[JobColumns]) -> set[int]:
    """Those whose workflow or batch is stopped: also such as the stop has yet to reach, and they stay where they are until it does."""
    keys = {row.n: of(row.job()) for row in rows}
    counts = known(tx, [key for each in keys.values() for key in each])
    return {n for n, each in keys.items() if any((count := counts[key]) is not None and count.stopped for key in each)}


def pay(tx: Transaction, now: int) -> None:
    """Tell children how their parents ended; generation after generation, and in each in the order in which they were stored.

    The workflows are known to the books.
    """
    left = MOST_LINKS
    while tx.books.owed:
        owed, tx.books.owed = tx.books.owed, {}
        concerned: set[int] = set()
        for debts, parents in owed.items():
            count = tx.books.counts["workflow", debts.flow]
            if not parents or count is None:
                continue
            if left <= 0:
                having = _names(tx.value("having_children", owed=text(parents), flow=count.n))
                _put_off(tx, debts, {id: parents[id] for id in having})
                continue
            told = _tell(tx, count.n, debts, parents, left)
            left -= len(told)
            concerned.update(told)
        if concerned:
            _reconsider(tx, now, sorted(concerned))


def _tell(tx: Transaction, flow: int, debts: Debts, parents: Mapping[str, str | None], most: int) -> list[int]:
    """Have the children of parents know what became of these, at most so many. Returns whom, once for each link."""
    owed = text(parents)
    older, fated, found = tx.row("concerned", owed=owed, flow=flow, after=debts.after, limit=most + 1)
    if older:
        tx.do("drop_owed", parents=text(list(parents)), flow=debts.flow)
    ns = _numbers(found)
    if len(ns) <= most and debts.fate is Fate.DONE and not debts.put_off and not older and not fated:
        if ns:  # their records say the rest
            tx.do("count_down", changes=text(list(Counter(ns).items())))
        return ns
    if len(ns) <= most:
        _mark(tx, flow, debts, parents)
        return ns
    pairs = _pairs(tx.value("concerned_first", owed=owed, flow=flow, after=debts.after, limit=most))
    last, upto = pairs[-1]
    ids = list(parents)
    place = ids.index(last)
    _mark(tx, flow, debts, {id: parents[id] for id in ids[:place]})
    _mark(tx, flow, debts, {last: parents[last]}, upto)
    _put_off(tx, debts._replace(after=upto), {last: parents[last]})
    _put_off(tx, debts, {id: parents[id] for id in ids[place + 1 :]})
    return [n for _, n in pairs]


def _mark(tx: Transaction, flow: int, debts: Debts, parents: Mapping[str, str | None], upto: int = NEVER) -> None:
    """Write what became of parents to the links of their children."""
    owed = text(parents)
    for each in ("recount", "tell"):
        tx.do(each, owed=owed, flow=flow, fate=debts.fate.value, after=debts.after, upto=upto)


def keep_fates(tx: Transaction, rows: Iterable[JobColumns]) -> None:
    """Have children of jobs that are about to be deleted keep what came of their success."""
    ended: dict[str, dict[str, str | None]] = {}
    for row in rows:
        if row.state is State.SUCCEEDED and (flow := row.job().workflow) is not None:
            ended.setdefault(flow.id, {})[row.id] = row.result
    counts = known(tx, [("workflow", id) for id in ended])
    for id, results in ended.items():
        if (count := counts["workflow", id]) is not None:
            tx.do("keep_fates", ended=text(results), flow=count.n, workflow=id)


def drop_kin(tx: Transaction, ns: Sequence[int]) -> None:
    """Forget whom jobs wait for."""
    for each in ("drop_links", "drop_children"):
        tx.do(each, ns=text(ns))


def _put_off(tx: Transaction, debts: Debts, parents: Mapping[str, str | None]) -> None:
    """Leave debts to upkeep."""
    if parents:
        tx.do("drop_owed", parents=text(list(parents)), flow=debts.flow)
        first = tx.numbers(len(parents))
        rows = enumerate(parents.items(), start=first)
        tx.add("add_owed", [(n, id, debts.flow, debts.fate.value, told, debts.after) for n, (id, told) in rows])


def take_up(tx: Transaction) -> list[str]:
    """Owe again what was put off, as much as one operation may pay. Returns the workflows."""
    rows = _debts(tx.value("owed", limit=MOST_LINKS))
    if rows:
        tx.do("drop_owed_rows", ns=text([row[0] for row in rows]))
    for _, parent, flow, fate, told, after in rows:
        tx.books.owe(parent, Debts(flow, fate, after, put_off=True), told)
    return [row[2] for row in rows]


def _reconsider(tx: Transaction, now: int, ns: Sequence[int]) -> None:
    """Do what the fates of their parents ask for with jobs that still wait for them, or fell with them; in order."""
    acting = {n: each for n, each in children(tx, ns).items() if each.felled or (each.waits and (each.why is not None or not each.open))}
    if not acting:
        return
    if all(each.goes for each in acting.values()) and not any(count is not None and count.stopped for count in tx.books.counts.values()):
        _go_straight(tx, now, sorted(acting))
        return
    rows = jobs_by_number(tx, list(acting))
    stopped = _stopped(tx, rows.values())
    acting = {n: each for n, each in acting.items() if each.why is not None or n not in stopped}
    moves = Moves(tx, now)
    moves.seated({row.n: row.seat for row in rows.values()})
    waiting = [n for n in acting if acting[n].waits]
    if waiting:
        tx.do("drop_waiting", ns=text(waiting))
    vain = waiting_in_vain(tx, [rows[n] for n, each in acting.items() if each.felled and each.why is None and each.open])
    falls: list[Ending] = []
    reasons: list[tuple[int, str]] = []
    for n in sorted(acting):
        row, why = rows[n], acting[n].why
        if acting[n].felled:
            if why is not None:
                reasons.append((n, why))
            elif n not in vain:
                _revive(tx, now, row, moves, open=bool(acting[n].open))
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


def _go_straight(tx: Transaction, now: int, ns: Sequence[int]) -> None:
    numbers, first = text(ns), tx.numbers(len(ns))
    tx.do("go_straight", ns=numbers, first=first, now=now)
    tx.do("note_straight", ns=numbers, first=first)
    tx.do("drop_waiting", ns=numbers)
    tx.work = True


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
