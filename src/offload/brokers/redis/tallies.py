"""Reads what is counted of workflows and batches."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from offload.brokers.redis.rows import moment, optional_moment
from offload.brokers.redis.script import Script
from offload.job import Callback, TallyKind
from offload.records import Tally

PAGE = 500
"""Tallies that one call reads."""


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """A tally as the script keeps it."""

    kind: TallyKind
    id: str
    name: str
    created_at: int
    finished_at: int | None = None
    total: int
    running: int
    succeeded: int = msgspec.field(name="SUCCEEDED")
    dead: int = msgspec.field(name="DEAD")
    cancelled: int = msgspec.field(name="CANCELLED")
    expired: int = msgspec.field(name="EXPIRED")
    size: int
    sealed: bool
    stopped: bool
    abandoned: bool
    callbacks: tuple[tuple[Callback, str], ...]

    def tally(self) -> Tally:
        """The same as people see it."""
        return Tally(
            kind=self.kind,
            id=self.id,
            name=self.name,
            created_at=moment(self.created_at),
            finished_at=optional_moment(self.finished_at),
            total=self.total,
            running=self.running,
            succeeded=self.succeeded,
            dead=self.dead,
            cancelled=self.cancelled,
            expired=self.expired,
            size=self.size,
            sealed=self.sealed,
            stopped=self.stopped,
            abandoned=self.abandoned,
            callbacks=self.callbacks,
        )


_count = msgspec.msgpack.Decoder(Count).decode


def name_of(kind: TallyKind, id: str) -> str:
    """What the script calls a tally."""
    return f"{kind} {id}"


async def some(script: Script, kind: TallyKind, ids: Sequence[str]) -> list[Tally]:
    """Those of `ids` that exist, in the order asked for."""
    names = [name_of(kind, id) for id in dict.fromkeys(ids)]
    found: list[Tally] = []
    for start in range(0, len(names), PAGE):
        rows = await script.ask("tallies", *names[start : start + PAGE])
        found += [_count(row).tally() for row in rows if row is not None]
    return found


async def newest(script: Script, kind: TallyKind, limit: int, after: str | None) -> list[Tally]:
    """Up to `limit` of all that come after one of that id, newest first."""
    found: list[Tally] = []
    while len(found) < limit:
        most = min(limit - len(found), PAGE)
        ids = [id.decode() for id in await script.ask("tally_page", kind, most, after or "")]
        found += await some(script, kind, ids)
        if len(ids) < most:
            break
        after = ids[-1]
    return found
