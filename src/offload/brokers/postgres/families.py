"""What jobs wait for of their parents, and what becomes of them when those have ended.

Whatever ends, or is revived, is noted in the books of the operation, and its children are told at the end: all at once, generation after
generation, so that it does not matter in which order one operation ended its jobs. What is too much for one operation stays owed.

A child's links are changed, and gone by, under the lock of its row in `children`. Locks are taken in one order: jobs where they stand,
then children by their numbers, then tallies. A new child holds its parents where they stand until it is there to be told of their end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from offload.broker import Work
from offload.brokers.postgres.books import Fate, Kin, News
from offload.brokers.postgres.endings import Ending, let_go, record_ends
from offload.brokers.postgres.gating import Past
from offload.brokers.postgres.keys import Keys, taken_back
from offload.brokers.postgres.moves import Moves, take_out
from offload.brokers.postgres.rows import JobColumns, jobs_by_number, optional_stored, stored
from offload.brokers.postgres.work import Doubt, Transaction, text
from offload.gates import gated, holds_on
from offload.job import Job, Lease, State

MOST_LINKS = 1_000
"""The most children that one operation tells of their parents."""
MOST_OWED = 100
"""The most parents that one operation pays for whom others have left to it."""
MOST_PARENTS = 10
"""The most parents that are named of those for whom a job waits."""

_numbers = msgspec.json.Decoder(list[int]).decode
_whys = msgspec.json.Decoder(list[tuple[int, str]]).decode
_owed = msgspec.json.Decoder(list[tuple[str, str, Fate]]).decode
_news = msgspec.json.Decoder(list[News]).decode
_inputs = msgspec.json.Decoder(list[tuple[int, list[str | None]]]).decode
_names = msgspec.json.Decoder(list[str]).decode


Mate = tuple[str, str]
"""A workflow, and the id of a job of it."""


class Told(NamedTuple):
    """How far children were told of their parents."""

    children: str
    """JSON of those who may ask something."""
    number: int
    last: int
    """The place of the last parent among all, counted from 1."""
    child: int
    """The last of that one's children who was told."""
    stopping: bool
    """Whether any workflow or batch is being stopped."""


_kin = msgspec.json.Decoder(list[Kin]).decode


def pay(tx: Transaction) -> Work[None]:
    """Tell children how their parents ended; generation after generation, and in each in the order in which they were stored."""
    left = MOST_LINKS
    if tx.books.told:
        children, tx.books.told = tx.books.told, []
        yield from _reconsider(tx, children)
    while tx.books.owed:
        news, tx.books.owed = list(tx.books.owed.values()), {}
        if left <= 0:
            yield from _owe(tx, news)
            return
        children, told = yield from _tell(tx, news, left)
        left -= told
        if children:
            yield from _reconsider(tx, children)


def _tell(tx: Transaction, news: Sequence[News], most: int) -> Work[tuple[list[Kin], int]]:
    """Tell children what became of their parents. Returns those who may ask something, and how many were told."""
    if all(each.plain for each in news):
        told = yield from _tell_plainly(tx, news, most)
        if told is not None:
            return told
    owed = yield from _owed_of(tx, news)
    news = [each._replace(was=owed.get(key_of(each), each.was)) for each in news]
    told = Told(*(yield from tx.row("tell_with_care", news=text(news), most=most)))
    tx.books.stopping |= told.stopping
    left = [news[told.last - 1]._replace(after=told.child), *news[told.last :]] if told.number >= most else []
    yield from _leave(tx, left, owed.keys() - map(key_of, left))
    return _kin(told.children), told.number


def _tell_plainly(tx: Transaction, news: Sequence[News], most: int) -> Work[tuple[list[Kin], int] | None]:
    """The same by what their records say alone. None, and nothing done, where that is not enough."""
    values = {
        "workflows": text([each.workflow for each in news]),
        "parents": text([each.parent for each in news]),
        "opens": _array((each.fate == "open") - (each.was == "open") for each in news),
        "fails": _array((each.fate == "failed") - (each.was == "failed") for each in news),
    }
    simple, number, children, stopping = yield from tx.row("tell", most=most, **values)
    tx.books.stopping |= stopping
    return (_kin(children), number) if simple else None


def _owe(tx: Transaction, news: Sequence[News]) -> Work[None]:
    """Leave all of it to upkeep."""
    owed = yield from _owed_of(tx, news)
    yield from _leave(tx, [each._replace(was=owed.get(key_of(each), each.was)) for each in news], ())


def _owed_of(tx: Transaction, news: Sequence[News]) -> Work[dict[Mate, Fate]]:
    """Of parents of whom anything is owed, what those go by who do not know it yet."""
    parents = text([key_of(each) for each in news])
    return {(workflow, parent): was for workflow, parent, was in _owed((yield from tx.value("lock_owed", parents=parents)))}


def _leave(tx: Transaction, news: Sequence[News], paid: Iterable[Mate]) -> Work[None]:
    if news:
        yield from tx.post("owe", news=text(news))
    if done := sorted(paid):
        yield from tx.post("drop_owed", parents=text(done))


def key_of(news: News) -> Mate:
    """Whom it is about."""
    return news.workflow, news.parent


def _array(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def pay_owed(tx: Transaction, *, waits: bool = False) -> Work[bool]:
    """Tell more children of those whom an operation has left to upkeep. Returns whether there were any.

    With `waits` of those, too, of whom another transaction tells just now, once it has.
    """
    if waits:
        yield from tx.post("lock_all_owed", limit=MOST_OWED)
    owed = _news((yield from tx.value("take_owed", limit=MOST_OWED)))
    tx.books.owed |= {(each.workflow, each.parent): each for each in owed}
    return bool(owed)


# -- children ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Generation:
    """What becomes of children that were told of their parents."""

    keys: Keys
    moves: Moves
    endings: list[Ending] = field(default_factory=list[Ending])
    revived: list[JobColumns] = field(default_factory=list[JobColumns])
    pending: list[tuple[int, Past]] = field(default_factory=list[tuple[int, Past]])


def _reconsider(tx: Transaction, children: Sequence[Kin]) -> Work[None]:
    """Do what the fates of their parents ask for of jobs that still wait for them, or fell with them."""
    rows = yield from jobs_by_number(tx, [child.n for child in children])
    concerned = {child.n: child for child in children if child.n in rows and _concerned(rows[child.n], child)}
    if not concerned:
        return
    whys = yield from _failures(tx, [n for n, child in concerned.items() if child.falls])
    if wrong := [n for n, child in concerned.items() if child.falls and n not in whys]:
        yield from _recount(tx, rows, concerned, wrong)
    yield from _tell_again(tx, rows, concerned, whys)
    rising = [n for n, child in concerned.items() if not rows[n].what and not child.falls]
    staying = yield from waiting_in_vain(tx, rising, unless_stopped=True)
    doomed = yield from _about_to_stop(tx, [n for n, child in concerned.items() if rows[n].what and not child.falls])
    concerned = {n: child for n, child in concerned.items() if n not in doomed}
    turning = [rows[n] for n, child in concerned.items() if rows[n].what or (not child.falls and n not in staying)]
    generation = _Generation(Keys(tx), Moves(tx.now))
    yield from generation.keys.lock(row.job() for row in turning if not row.what or concerned[row.n].falls)
    generation.moves.seated({row.n: row.seat for row in turning})
    out = yield from take_out(tx, [row for row in turning if row.what])
    for row in turning:
        child, job = concerned[row.n], row.job()
        if not row.what:
            yield from _revive(tx, generation, row, child)
        elif row.n in out and child.falls:
            ending = Ending(row.n, job, out[row.n], State.CANCELLED, whys[row.n])
            generation.endings.append(ending)
            yield from let_go(generation.keys, ending, generation.moves)
        elif row.n in out:
            generation.moves.place(row.n, job, out[row.n], optional_stored(job.run_at), joins=True)
    yield from _write(tx, generation)


def _concerned(row: JobColumns, child: Kin) -> bool:
    """Whether something is to be done: it waits, and no parent is open or one takes it down; or it fell with one."""
    if row.what == "parents":
        return child.falls or child.open == 0
    return child.felled and row.state is State.CANCELLED


def _failures(tx: Transaction, ns: Sequence[int]) -> Work[dict[int, str]]:
    return dict(_whys((yield from tx.value("failures", ns=text(ns))))) if ns else {}


def _recount(tx: Transaction, rows: Mapping[int, JobColumns], concerned: dict[int, Kin], ns: Sequence[int]) -> Work[None]:
    """Set right what is noted of children by their links. It should never be wrong, but if it is, all others must not suffer."""
    for child in _kin((yield from tx.value("recount", ns=text(ns)))):
        if _concerned(rows[child.n], child):
            concerned[child.n] = child
        else:
            del concerned[child.n]


def _tell_again(tx: Transaction, rows: Mapping[int, JobColumns], concerned: Mapping[int, Kin], whys: Mapping[int, str]) -> Work[None]:
    """Those that have fallen already may have done so for another reason now."""
    reasons = {n: whys[n] for n, child in concerned.items() if child.falls and not rows[n].what and rows[n].reason != whys[n]}
    if reasons:
        yield from tx.post("set_reasons", reasons=text(reasons))


def waiting_in_vain(tx: Transaction, ns: Sequence[int], *, unless_stopped: bool = False) -> Work[set[int]]:
    """Those of which a parent is not there, while no more jobs are to come: so it is after a workflow was given up, or stopped.

    Where jobs are to go on only `unless_stopped`, also those whose workflow or batch is.
    """
    if not ns:
        return set()
    freed = text([f"{kind} {id}" for kind, id in tx.books.freed])
    return set(_numbers((yield from tx.value("in_vain", ns=text(ns), stopped=unless_stopped, freed=freed))))


def _about_to_stop(tx: Transaction, ns: Sequence[int]) -> Work[set[int]]:
    """Those of jobs that could start now whom a stop is about to reach: it does all at once, as far as anybody can see."""
    stopping = [f"{kind} {id}" for (kind, id), count in tx.books.counts.items() if count is not None and count.stopping is not None]
    if not ns or not (tx.books.stopping or stopping):
        return set()
    return set(_numbers((yield from tx.value("about_to_stop", ns=text(ns), stopping=text(stopping)))))


def _revive(tx: Transaction, generation: _Generation, row: JobColumns, child: Kin) -> Work[None]:
    """A job that fell goes on as if it had not, unless one of its keys is another's by now."""
    job, keys, moves = row.job(), generation.keys, generation.moves
    wanted = taken_back(job)
    if keys.any_held(wanted):
        return
    keys.take(row.n, job, wanted)
    past = Past(row.claim, row.attempt, row.crashes, row.started_at, row.worker)
    generation.revived.append(row)
    if gated(job):
        moves.seated({row.n: (yield from new_seat(tx, row.n))})
    if child.open:
        generation.pending.append((row.n, past))
    else:
        moves.place(row.n, job, past, optional_stored(job.run_at))


def _write(tx: Transaction, generation: _Generation) -> Work[None]:
    out = yield from take_out(tx, generation.revived)
    if len(out) < len(generation.revived):
        raise Doubt
    yield from record_ends(tx, generation.endings)
    yield from note_fallen(tx, [ending.n for ending in generation.endings])
    yield from note_fallen(tx, [row.n for row in generation.revived], felled=False)
    for row in generation.revived:
        tx.books.revived(row.job(), State.CANCELLED)
    expiring = [(stored(job.expires_at), row.n) for row in generation.revived if row.claim == 0 for job in [row.job()] if job.expires_at]
    if expiring:
        yield from tx.post("add_expiring", pairs=text(expiring))
    yield from wait(tx, generation.pending)
    yield from generation.keys.write()
    yield from generation.moves.write(tx)


def note_fallen(tx: Transaction, ns: Sequence[int], *, felled: bool = True) -> Work[None]:
    """Note of jobs that they fell with their parents, or do not lie there any more."""
    if ns:
        yield from tx.post("set_felled", ns=text(ns), felled=felled)


def new_seat(tx: Transaction, n: int) -> Work[int]:
    """The place in lanes of a job that begins anew."""
    (seat,) = _numbers((yield from tx.value("take_numbers", count=1)))
    yield from tx.post("note_seats", seats=text({n: seat}))
    return seat


def seat_of_revived(tx: Transaction, row: JobColumns, job: Job) -> Work[int]:
    """The same of one that a person revives; who kept its turn keeps its place as well."""
    if row.state is State.DEAD and holds_on(job):
        return row.seat
    return (yield from new_seat(tx, row.n))


def wait(tx: Transaction, jobs: Sequence[tuple[int, Past]], what: str = "parents") -> Work[None]:
    """Have jobs wait for their parents."""
    if jobs:
        yield from tx.post("add_pending", jobs=text([(n, what, *past) for n, past in jobs]))


def kin_of(tx: Transaction, rows: Iterable[JobColumns]) -> Work[dict[int, Kin]]:
    """What the links of jobs come to, which does not change before this transaction ends."""
    ns = [row.n for row in rows if row.workflow is not None]
    return {each.n: each for each in _kin((yield from tx.value("lock_kin", ns=text(ns))))} if ns else {}


def lock_children(tx: Transaction, jobs: Iterable[Job]) -> Work[None]:
    """Lock the children of jobs that end, before anything is locked that comes after."""
    if parents := mates_of(jobs):
        yield from tx.rows("lock_children", parents=text(parents), most=MOST_LINKS)


def try_children(tx: Transaction, jobs: Iterable[Job]) -> Work[set[str]]:
    """The same without waiting. Returns the ids of those of whom another transaction has a child."""
    parents = mates_of(jobs)
    return set(_names((yield from tx.value("try_children", parents=text(parents), most=MOST_LINKS)))) if parents else set()


def mates_of(jobs: Iterable[Job]) -> list[Mate]:
    """By what their children know them."""
    return [(job.workflow.id, job.id) for job in jobs if job.workflow is not None]


def keep_fates(tx: Transaction, rows: Iterable[JobColumns]) -> Work[None]:
    """The records of jobs that have ended are about to go: their children keep what they know of them."""
    jobs = [(row.workflow, row.id, row.n) for row in rows if row.workflow is not None and row.state.terminal]
    if jobs:
        yield from tx.post("lock_ended", jobs=text(jobs))  # by itself, so that links of those for whom it waits are seen
        yield from tx.post("keep_fates", jobs=text(jobs))


def forget_kin(tx: Transaction, ns: Sequence[int]) -> Work[None]:
    """Drop what is known of the parents of jobs that are gone."""
    if ns:
        yield from tx.post("drop_kin", ns=text(ns))


# -- for claims, and for people ----------------------------------------------------------------------------------------------


def takes_inputs(lease: Lease) -> bool:
    """Whether a job asks for the result of any parent."""
    return any(parent.at for parent in lease.job.parents)


def with_inputs(tx: Transaction, leases: list[Lease]) -> Work[list[Lease]]:
    """Leases with the results of parents that their jobs ask for."""
    asking = [lease.ref for lease in leases if lease.job.parents and takes_inputs(lease)]
    if not asking:
        return leases
    found = {
        n: tuple(None if each is None else each.encode() for each in results)
        for n, results in _inputs((yield from tx.value("inputs", ns=text(asking))))
    }
    return [msgspec.structs.replace(lease, inputs=found[lease.ref]) if lease.ref in found else lease for lease in leases]


def open_parents(tx: Transaction, row: JobColumns) -> Work[tuple[tuple[str, ...], int]]:
    """The first parents that a job waits for, and how many they are."""
    if row.what != "parents":
        return (), 0
    named, number = yield from tx.row("open_parents", n=row.n, most=MOST_PARENTS)
    return tuple(_names(named)), number
