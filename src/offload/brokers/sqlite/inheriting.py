"""What jobs with one key leave goes to the next of their keys, by a few statements and without a ledger: most keyed jobs end so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from offload.brokers.sqlite.rows import text
from offload.brokers.sqlite.transaction import Transaction
from offload.gates import Succession, Want, heirs
from offload.job import Limit

_successions = msgspec.json.Decoder(list[Succession]).decode
_rules = msgspec.json.Decoder(dict[str, Limit]).decode

Leaving = tuple[int, Want]
"""A job, and the one gate that it is to leave."""


def heirs_of(tx: Transaction, leaving: Sequence[Leaving]) -> list[int] | None:
    """Who passes when these jobs leave, in order. None where it takes more care."""
    gates = {want.gate: n for n, want in leaving}
    depth = 2 if len(gates) == len(leaving) else 1 + max(Counter(want.gate for _, want in leaving).values())
    rows, rules = tx.row("heirs", leaving=text(list(gates.items())), depth=depth)
    found = _successions(rows)
    if len(found) < len(gates):
        return None
    return heirs([want for _, want in leaving], dict(zip(gates, found, strict=True)), depth, _rules(rules))


def hand_over(tx: Transaction, now: int, leaving: Sequence[Leaving], passing: Sequence[int]) -> None:
    """Have jobs leave their gates, and those that pass come to hold them and go to the ends of their ready lines."""
    tx.do("leave_slots", gates=text([want.gate for _, want in leaving]), ns=text([n for n, _ in leaving]))
    if passing:
        ns, first = text(passing), tx.numbers(len(passing))
        tx.do("inherit_slots", ns=ns)
        tx.do("inherit_ready", ns=ns, first=first, now=now)
        tx.do("note_promoted", ns=ns, first=first)
        tx.do("drop_parked", ns=ns)
        tx.work = True
