"""What `doctor` says of a PostgreSQL server: its clock, its settings, and what keeps dead rows from being removed."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, NamedTuple, TypeAlias

from offload.broker import Work
from offload.brokers.postgres.work import Transaction
from offload.keys import few

Note: TypeAlias = tuple[Literal["error", "warning", "info"], str, str]

MOST_SKEW = timedelta(seconds=2)
LONG = 60.0
"""Seconds from which on an open transaction is worth a note."""
MANY_DEAD_ROWS = 200_000
"""From how many dead rows of a table `doctor` speaks of them."""


class Holder(NamedTuple):
    """What keeps an old snapshot."""

    kind: Literal["transaction", "prepared", "slot"]
    name: str
    seconds: float | None
    what: str

    def note(self) -> Note:
        """What to say of it."""
        why = "As long as it is there no dead row is removed, and workers get slower."
        match self.kind:
            case "transaction":
                text = f"a transaction is open for {_span(self.seconds)}: process {self.name} ({self.what})"
                return ("warning", text, f"{why} End it, or `select pg_terminate_backend({self.name})`.")
            case "prepared":
                text = f"a prepared transaction is open for {_span(self.seconds)}: {self.name!r} ({self.what})"
                return ("warning", text, f"{why} `commit prepared` or `rollback prepared` it.")
            case "slot":
                text = f"the replication slot {self.name!r} keeps an old snapshot ({self.what})"
                return ("warning", text, f"{why} Bring its standby back, or `select pg_drop_replication_slot({self.name!r})`.")


def health(tx: Transaction, skew: timedelta | None) -> Work[tuple[Note, ...]]:
    """Notes for `doctor`. `skew` is how far this machine's clock is ahead of the server's."""
    notes: list[Note] = []
    if skew is not None and abs(skew) > MOST_SKEW:
        text = f"this machine's clock is {abs(skew).total_seconds():.1f} s {'ahead of' if skew > timedelta(0) else 'behind'} the server's"
        notes.append(("warning", text, "Workers go by the server's clock; correct this machine's (chrony, ntpd), for logs to agree."))
    _, _, synchronous, fsync, vacuums = yield from tx.row("server")
    if not fsync:
        notes.append(("warning", "the server runs with fsync = off", "When its machine fails it may lose everything; turn fsync on."))
    elif synchronous == "off":
        advice = "A crash of the server loses the last jobs that were accepted. `alter role ... set synchronous_commit = on` prevents it."
        notes.append(("warning", "commits do not wait for the disk (synchronous_commit = off)", advice))
    else:
        notes.append(("info", f"commits wait for the disk (synchronous_commit = {synchronous})", ""))
    if not vacuums:
        notes.append(("warning", "the server runs with autovacuum = off", "Tables of jobs grow without end, and workers get slower."))
    notes += [Holder(*row).note() for row in (yield from tx.rows("held_snapshots", longer=LONG))]
    hidden = [name for (name,) in (yield from tx.rows("hidden_roles"))]
    if hidden:
        there = f"{few(hidden)} {'is' if len(hidden) == 1 else 'are'} connected"
        text = f"whether transactions of other roles are open for long cannot be seen: {there}"
        notes.append(("info", text, "`grant pg_read_all_stats` to the role that runs `offload doctor`, or run it as another."))
    for name, dead, live, vacuumed in (yield from tx.rows("tables", many=MANY_DEAD_ROWS)):
        if not vacuumed:
            notes.append(("warning", f"autovacuum is off for the table {name}", f"`alter table {name} reset (autovacuum_enabled)`."))
        if dead >= max(MANY_DEAD_ROWS, live):
            advice = "Autovacuum cannot keep up, or an old snapshot keeps them; workers get slower. `vacuum` it once what holds it is gone."
            notes.append(("warning", f"the table {name} holds {dead:,} dead rows beside {live:,} live ones", advice))
    return tuple(notes)


def _span(seconds: float | None) -> str:
    """A duration in words, such as 3 min."""
    seconds = seconds or 0.0
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.0f} h"
