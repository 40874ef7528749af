"""What people see of a gate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from offload.gates.rules import Rules, allowed
from offload.gates.state import Gate
from offload.gates.wants import KINDS, Want, gate_of, key_of, kind_of
from offload.records import LimitRecord

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MOST_HOLDERS = 100
"""The most holders that a record of a gate names."""

MOST_STRIKING = 100
"""The most gates of which `doctor` is told."""


def limit_record(
    gate: Gate,
    want: Want | None,
    rules: Rules,
    now: int,
    holders: Sequence[str],
    held: int,
    waiting: int,
    *,
    dead: bool = False,
) -> LimitRecord:
    """What a gate allows, as people see it; `want` is of any job that has to do with it. `dead`: the holder of a turn is."""
    return LimitRecord(
        key=key_of(gate.id),
        kind=gate.kind,
        changed=gate.n is not None or gate.interval is not None or gate.burst is not None,
        paused=gate.paused,
        shut_until=_moment(gate.shut_until) if gate.shut_until > now else None,
        next_at=None if gate.wake_at is None else _moment(gate.wake_at),
        holders=tuple(holders),
        held=held,
        dead=dead,
        waiting=waiting,
        **allowed(gate, want, rules),
    )


def _moment(stored: int) -> datetime:
    return EPOCH + timedelta(microseconds=stored)


def is_known(limit: LimitRecord) -> bool:
    """Whether there is anything to tell of a gate: who holds it or waits for it, or what was changed."""
    return bool(limit.held or limit.waiting or limit.changed or limit.paused or limit.shut_until is not None)


def gates_of(key: str) -> list[str]:
    """All gates that a key may have."""
    return [gate_of(kind, key) for kind in KINDS]


def page_of(gates: Iterable[str], limit: int, after: str | None, key: str | None = None) -> list[str]:
    """The gates of the first `limit` keys after one, or those of one `key`, as people read them: by key, then by kind."""
    by_key: defaultdict[str, list[str]] = defaultdict(list)
    for gate in gates:
        by_key[key_of(gate)].append(gate)
    wanted = [each for each in sorted(by_key) if (after is None or each > after) and key in (None, each)]
    return [gate for each in wanted[:limit] for gate in sorted(by_key[each], key=kind_of)]
