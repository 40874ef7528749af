"""Records successes by a statement or two: where nothing else is to be done, or a key goes to the next of its jobs and no further."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from offload.broker import Work
from offload.brokers.postgres import families, locking
from offload.brokers.postgres.books import SPANS, Kin, related
from offload.brokers.postgres.endings import forget_succeeded_at, kept_if_succeeded
from offload.brokers.postgres.work import Transaction, text
from offload.gates import Succession, Want, depth_for, heirs, holds, lone_want, rules_of
from offload.job import Done, Lease, Limit, Outcome, State

Settlements = Sequence[tuple[Lease, Outcome]]
Success = tuple[Lease, Done]

_numbers = msgspec.json.Decoder(list[int]).decode
_successions = msgspec.json.Decoder(list[Succession]).decode
_rules = msgspec.json.Decoder(dict[str, Limit]).decode
_told = msgspec.json.Decoder(tuple[list[Kin], bool]).decode


def plain(lease: Lease, outcome: Outcome, marked: AbstractSet[int]) -> bool:
    """Whether there is nothing to be done but to record a success, or to forget the job and nothing else.

    `marked` are the jobs that this session gave steps or progress.
    """
    return not holds(lease.job) and _simple(lease, outcome, marked)


def all_plain(settlements: Settlements, marked: AbstractSet[int]) -> bool:
    """Whether one statement settles all, but for what children may ask for, and none of them is of a batch."""
    return all(plain(lease, outcome, marked) and lease.job.batch is None for lease, outcome in settlements) and distinct(settlements)


def any_in_workflows(settlements: Settlements) -> bool:
    """Whether any of these jobs may have children."""
    return any(lease.job.workflow is not None for lease, _ in settlements)


def distinct(settlements: Settlements) -> bool:
    """Whether no lease is settled twice."""
    return len({lease.ref for lease, _ in settlements}) == len(settlements)


def _simple(lease: Lease, outcome: Outcome, marked: AbstractSet[int]) -> bool:
    """Whether a success leaves nothing to be done but to record it, or to forget the job, and to leave the gates that it holds."""
    job = lease.job
    if type(outcome) is not Done or job.unique is not None or job.schedule is not None or type(lease.ref) is not int or outcome.added:
        return False
    return kept_if_succeeded(job) or (lease.claim == 1 and lease.ref not in marked)


def succeed(tx: Transaction, session: str, settlements: Settlements) -> Work[list[Lease]]:
    """Settle plain successes by one statement. Returns those that were lost."""
    held = yield from tx.value("succeed", **_values(tx, session, _successes(settlements)))
    settled = _numbers(held)
    left = set(settled)
    for lease, _ in settlements:
        if related(lease.job) and lease.ref in left:
            tx.books.ended(lease.ref, lease.job, State.SUCCEEDED)
    return [] if len(settled) == len(settlements) else [lease for lease, _ in settlements if lease.ref not in left]


def succeed_in_workflows(tx: Transaction, session: str, settlements: Settlements, *, alone: bool = False) -> Work[bool]:
    """Settle what is all plain, and tell children. False, and nothing done, where it takes more care.

    Where the caller is `alone`, outside of a transaction, it does so when something is to be done for a child.
    """
    successes = _successes(settlements)
    parents: dict[str, list[str]] = {}
    for lease, _ in successes:
        if lease.job.workflow is not None:
            parents.setdefault(lease.job.workflow.id, []).append(lease.job.id)
    changes = {id: [len(ended), 0, 0, 0] for id, ended in parents.items()}
    values = {"parents": text(parents), "changes": text(changes), "alone": alone, "most": families.MOST_LINKS}
    told = yield from tx.value("succeed_in_workflows", **values, **_values(tx, session, successes), **SPANS)
    if told is None:
        return False
    asking, tx.books.stopping = _told(told)
    if asking:
        tx.books.told = asking
        tx.books.succeeded(lease.job for lease, _ in successes if lease.job.workflow is not None)
    return True


def succeed_in_turn(tx: Transaction, session: str, settlements: Settlements, marked: AbstractSet[int]) -> Work[bool]:
    """Settle successes of which some leave one gate each to the next who waits there. False, and nothing done, where it takes more care."""
    leaving: dict[int, Want] = {}
    for lease, outcome in settlements:
        if related(lease.job) or not _simple(lease, outcome, marked):
            return False
        if holds(lease.job):
            want = lone_want(lease.job)
            if want is None or lease.job.fair_by is not None:
                return False
            leaving[lease.ref] = want
    if not distinct(settlements):
        return False
    passing = yield from _heirs_of(tx, leaving)
    if passing is None:
        return False
    successes = _successes(settlements)
    wants = [leaving.get(lease.ref) for lease, _ in successes]
    gates = text([None if want is None else want.gate for want in wants])
    values = _values(tx, session, successes)
    return (yield from tx.value("succeed_in_turn", gates=gates, heirs=_array(map(str, passing)), count=len(wants), **values))


def _heirs_of(tx: Transaction, leaving: dict[int, Want]) -> Work[list[int] | None]:
    """Who passes when these jobs leave their gates, in order. None where it takes more care."""
    gates = {want.gate: n for n, want in leaving.items()}
    depth = depth_for(list(leaving.values()))
    yield from locking.lock(tx, gates)
    ns, names = _array(map(str, gates.values())), rules_of(leaving.values())
    rows, rules, arrivals = yield from tx.row("heirs", gates=text(list(gates)), ns=ns, depth=depth, rules=text(names))
    found = _successions(rows)
    if arrivals or len(found) < len(gates):
        return None  # who waits to be let in comes first, and a job that is gone was lost
    return heirs(leaving.values(), dict(zip(gates, found, strict=True)), depth, _rules(rules))


def _successes(settlements: Settlements) -> list[Success]:
    """In the order in which their rows are locked."""
    return sorted([(lease, outcome) for lease, outcome in settlements if type(outcome) is Done], key=lambda each: each[0].ref)


def _values(tx: Transaction, session: str, successes: Sequence[Success]) -> dict[str, Any]:
    forget = [str(forget_succeeded_at(lease.job, tx.now)) if kept_if_succeeded(lease.job) else "null" for lease, _ in successes]
    results = [None if done.result is None or not kept_if_succeeded(lease.job) else done.result.decode() for lease, done in successes]
    return {
        "ns": _array(str(lease.ref) for lease, _ in successes),
        "claims": _array(str(lease.claim) for lease, _ in successes),
        "forget": _array(forget),
        "results": text(results) if any(results) else "[]",
        "session": session,
        "now": tx.now,
        "channel": tx.channel,
    }


def _array(items: Iterable[str]) -> str:
    """Numbers as PostgreSQL writes an array, which it reads much faster than JSON."""
    return "{" + ",".join(items) + "}"
