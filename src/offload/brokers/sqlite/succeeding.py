"""Records successes by a few statements: where nothing else is to be done, or a key goes to the next of its jobs and no further."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import msgspec

from offload.brokers.sqlite.endings import NEVER
from offload.brokers.sqlite.rows import seconds, text
from offload.brokers.sqlite.transaction import Doubt, Transaction
from offload.gates import Succession, Want, depth_for, heirs, rules_of
from offload.job import Done, Job, Lease, Limit

_successions = msgspec.json.Decoder(list[Succession]).decode
_rules = msgspec.json.Decoder(dict[str, Limit]).decode

MOST_GROUPS = 4
"""The most sets of plain successes that are recorded set by set before the careful way is cheaper."""

WITH_WORKFLOW = float("inf")
"""In place of the time to keep: the record goes with those of its workflow."""

Leaving = tuple[int, Want]
"""A job, and the one gate that it is to leave."""


def simple(lease: Lease, marked: AbstractSet[int]) -> bool:
    """Whether success leaves nothing to be done but to record it, or to forget the job and nothing else, and to leave its gates."""
    job = lease.job
    if job.unique is not None or job.schedule is not None or type(lease.ref) is not int:
        return False
    return job.keep > 0 or job.workflow is not None or (lease.claim == 1 and lease.ref not in marked)


def succeeded(tx: Transaction, now: int, session: str, successes: Sequence[tuple[Lease, Done]], leaving: Sequence[Leaving]) -> bool:
    """Record successes, of which some leave gates. False, and nothing done, where it takes more care. Raises Doubt when some are lost."""
    groups: dict[tuple[int, float], list[tuple[int, str | None]]] = {}
    members: list[tuple[Job, str | None]] = []
    for lease, outcome in successes:
        job, result = lease.job, None if outcome.result is None else outcome.result.decode()
        groups.setdefault((lease.claim, job.keep if job.workflow is None else WITH_WORKFLOW), []).append((lease.ref, result))
        if job.workflow is not None or job.batch is not None:
            members.append((job, result))
    if len(groups) > MOST_GROUPS:
        return False
    passing = _heirs_of(tx, leaving) if leaving else []
    if passing is None:
        return False
    for (claim, keep), results in groups.items():
        _end(tx, now, session, claim, keep, results)
    if members:
        tx.books.succeeded(members)
    if leaving:
        _hand_over(tx, now, leaving, passing)
    return True


def _end(tx: Transaction, now: int, session: str, claim: int, keep: float, results: Sequence[tuple[int, str | None]]) -> None:
    """End leases of one claim number and one time to keep. Raises Doubt when some are lost."""
    numbers = text([n for n, _ in results])
    if keep > 0:
        forgotten = NEVER if keep == WITH_WORKFLOW else now + seconds(keep)
        told = [each for each in results if each[1] is not None]
        if told:
            tx.do("keep_results", results=text(told), session=session, claim=claim, now=now, forget_at=forgotten)
        if len(told) < len(results):
            untold = text([n for n, result in results if result is None])
            tx.do("keep_done", ns=untold, session=session, claim=claim, now=now, forget_at=forgotten)
    if tx.do("settle_plain", ns=numbers, session=session, claim=claim) != len(results):
        raise Doubt
    if keep <= 0:
        tx.do("drop_jobs", ns=numbers)
    tx.ended = True


def _heirs_of(tx: Transaction, leaving: Sequence[Leaving]) -> list[int] | None:
    """Who passes when these jobs leave, in order. None where it takes more care."""
    gates = {want.gate: n for n, want in leaving}
    depth = depth_for([want for _, want in leaving])
    rows, rules = tx.row("heirs", leaving=text(list(gates.items())), depth=depth, rules=text(rules_of(want for _, want in leaving)))
    found = _successions(rows)
    if len(found) < len(gates):
        return None
    return heirs([want for _, want in leaving], dict(zip(gates, found, strict=True)), depth, _rules(rules))


def _hand_over(tx: Transaction, now: int, leaving: Sequence[Leaving], passing: Sequence[int]) -> None:
    """Have jobs leave their gates, and those that pass come to hold them and go to the ends of their ready lines."""
    tx.do("leave_slots", gates=text([want.gate for _, want in leaving]), ns=text([n for n, _ in leaving]))
    if passing:
        ns, first = text(passing), tx.numbers(len(passing))
        tx.do("inherit_slots", ns=ns)
        tx.do("inherit_ready", ns=ns, first=first, now=now)
        tx.do("note_promoted", ns=ns, first=first)
        tx.do("drop_parked", ns=ns)
        tx.work = True
