"""Decides who of a key may go: its turn, its slot, its token. Pure: the moment is handed in, and what is stored is asked for.

A job with `order_by` or `limits` passes a **gate** for each of its keys, all of them or none, to become READY:

    turn of K    one job at a time, held until it is terminal
    slot of K    n jobs at a time, held while READY or RUNNING
    token of K   as many READY jobs as tokens are there; the claim takes the token

Who cannot pass waits in a **lane**: that of its order key, or else that of all its keys together, so that whoever stands first in a lane
stands for all behind it. A lane is parked at the one gate that stops its first job. So a slot that comes free looks at one lane, whatever
waits elsewhere, and nothing is ever taken while something else is waited for.

Read on in this order:

    wants        what a job needs of which gates, and in which lane it waits
    rules        what a limit allows: declared numbers go before those of jobs
    rates        when tokens are there
    state        what is known of gates and lanes, and what was changed
    ledger       the algorithm
    succession   what most ends come to, without a ledger
    rows         gates as SQL stores write them down
    records      gates as people see them
    rounds       turns among the keys of a line, for `fair_by`
"""

from __future__ import annotations

from offload.gates.ledger import MOST_PASSED, MOST_WOKEN, Ledger
from offload.gates.rates import LATENESS, settled, taken, token_at, tokens
from offload.gates.records import MOST_HOLDERS, MOST_STRIKING, gates_of, is_known, limit_record, page_of
from offload.gates.rounds import round_of
from offload.gates.rules import Rules, by_rule, changed_gates, changes, new_rules, rule_id, rules_of
from offload.gates.state import Changes, Gate, Lane, Need, Place, Steps, answered
from offload.gates.succession import Succession, depth_for, heirs
from offload.gates.wants import (
    KINDS,
    Keyed,
    Member,
    Want,
    changed_by,
    gate_of,
    gated,
    held_back_by,
    holds,
    holds_on,
    key_of,
    kind_of,
    left_when_put_off,
    lone_want,
    member_of,
    straight,
    wants_of,
)

__all__ = [
    "KINDS",
    "LATENESS",
    "MOST_HOLDERS",
    "MOST_PASSED",
    "MOST_STRIKING",
    "MOST_WOKEN",
    "Changes",
    "Gate",
    "Keyed",
    "Lane",
    "Ledger",
    "Member",
    "Need",
    "Place",
    "Rules",
    "Steps",
    "Succession",
    "Want",
    "answered",
    "by_rule",
    "changed_by",
    "changed_gates",
    "changes",
    "depth_for",
    "gate_of",
    "gated",
    "gates_of",
    "heirs",
    "held_back_by",
    "holds",
    "holds_on",
    "is_known",
    "key_of",
    "kind_of",
    "left_when_put_off",
    "limit_record",
    "lone_want",
    "member_of",
    "new_rules",
    "page_of",
    "round_of",
    "rule_id",
    "rules_of",
    "settled",
    "straight",
    "taken",
    "token_at",
    "tokens",
    "wants_of",
]
