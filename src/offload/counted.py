"""What workflows and batches have in common for those who look after them: how far they are, waiting for their end, cancelling."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime

from offload.errors import BadDeclaration, JobNotFound, ResultTimeout
from offload.job import State, TallyKind
from offload.portal import sync
from offload.producer import Producer
from offload.records import Filter, Tally

LOOK_EVERY = 0.25
"""Seconds between looks whether all have ended, where nobody can say that they have."""


class Counted:
    """Jobs that are counted together."""

    kind: TallyKind

    def __init__(self, id: str, producer: Producer | None) -> None:
        self.id = id
        self._producer = producer

    async def aprogress(self) -> Tally:
        """Its numbers: total, waiting, running, succeeded, dead, cancelled, expired. Raises JobNotFound once its record is forgotten."""
        if self._producer is None:
            return _nothing(self.kind, self.id)
        return await progress_of(self._producer, self.kind, self.id)

    async def await_(self, timeout: float | None = None) -> Tally:
        """Wait until all its jobs have ended, however they did, and no more can come. Returns their numbers; `state` tells how it went.

        None waits for ever. Raises ResultTimeout when `timeout` seconds were not enough, JobNotFound once its record is forgotten.
        """
        if timeout is not None and not isinstance(timeout, int | float):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"timeout is a number of seconds, not {timeout!r}")
        clock = asyncio.get_running_loop().time
        deadline = math.inf if timeout is None else clock() + timeout
        while (found := await self.aprogress()).finished_at is None:
            left = deadline - clock()
            if left <= 0:
                open = ", and it is not sealed" if self.kind == "batch" and not found.sealed else ""
                said = f"{self.kind} {self.id} has not ended within {timeout:g} seconds; it goes on: {found.told}{open}"
                raise ResultTimeout(f"{said}{await self._held_up()}")
            await self._rest(left)
        return found

    async def acancel(self) -> bool:
        """Cancel all its jobs: at once where they have not begun, else by asking their workers; those still to come, too.

        A batch is sealed by it, and its `on_complete` called once all have ended. False when all had ended already.
        """
        return self._producer is not None and await (await self._producer.changing()).stop(self.kind, self.id)

    progress = sync(aprogress)
    wait = sync(await_)
    cancel = sync(acancel)

    async def _held_up(self) -> str:
        """Why the newest of its jobs that could run does not, if there is one."""
        from offload.diagnosis import why

        store = await self._needed().clients.store()
        found = await store.find(Filter(state=State.READY, **{self.kind: self.id}), 1)
        standing = await store.standing(found[0].id) if found else None
        return "" if standing is None else f". Job {standing.record.id} of it is READY: {why(standing)}"

    async def _rest(self, seconds: float) -> None:
        """Wait until another look is worth it, for `seconds` at most."""
        await asyncio.sleep(min(seconds, LOOK_EVERY))

    def _needed(self) -> Producer:
        assert self._producer is not None, "only a workflow without jobs has none"
        return self._producer


def _nothing(kind: TallyKind, id: str) -> Tally:
    """The numbers of a workflow without jobs, which nobody stores: it has ended well."""
    now = datetime.now(UTC)
    return Tally(kind=kind, id=id, created_at=now, finished_at=now)


async def progress_of(producer: Producer, kind: TallyKind, id: str) -> Tally:
    """The numbers of a workflow or batch. Raises JobNotFound where there are none."""
    found = await (await producer.clients.store()).tallies(kind, [id])
    if not found:
        raise JobNotFound(f"no {kind} {id}: there never was one, or its record is forgotten")
    return found[0]
