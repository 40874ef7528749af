"""Batches: many jobs counted together, with callbacks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from offload.broker import Feature
from offload.errors import BadDeclaration, BatchClosed, JobNotFound, ResultTimeout
from offload.handle import Handle
from offload.ids import new_ids
from offload.job import MOST_ATOMIC, Callback, Draft, Job
from offload.options import short
from offload.portal import portal, refuse_inside_loop, sync
from offload.producer import Producer
from offload.records import Tally

R = TypeVar("R")

LOOK_EVERY = 0.25
"""Seconds between looks whether a batch is finished."""


class Batch:
    """Many jobs counted together; what `app.batch(...)` gives.

    In a `with` or `async with` block it is opened, and sealed at the end; an exception that leaves the block cancels it, but for
    BatchClosed: who comes late to a batch that others have sealed ends nothing of theirs. Jobs go out as they are added, and run at once.
    """

    def __init__(self, producer: Producer, name: str, id: str | None, callbacks: Mapping[Callback, Draft[Any] | None]) -> None:
        producer.check([Feature.BATCH], "app.batch(...)")
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"app.batch takes a name, such as 'reports', not {name!r}")
        if id is not None:
            short(id, "app.batch(id=...)")
        self._producer = producer
        self.name = name
        now = producer.clients.clock.now()
        self.id = id or new_ids(1, now)[0]
        self._callbacks = {which: _checked(draft, which, producer) for which, draft in callbacks.items() if draft is not None}
        self._ids = new_ids(len(self._callbacks), now)

    def __repr__(self) -> str:
        return f"Batch({self.id!r}, {self.name!r})"

    async def aopen(self) -> Self:
        """Begin it, so that jobs can be added until it is sealed. Opening one that is there already changes nothing."""
        store = await self._producer.changing()
        await store.open_batch(self.id, self.name, self._jobs())
        return self

    async def aseal(self) -> bool:
        """Let no more jobs be added from outside: it is finished once all have ended. False when it was sealed before."""
        return await (await self._producer.changing()).seal_batch(self.id)

    async def aadd(self, draft: Draft[R]) -> Handle[R]:
        """Add a job. Raises BatchClosed where the batch is sealed, or not open yet."""
        [handle] = await self.aadd_many([draft])
        return handle

    async def aadd_many(self, drafts: Iterable[Draft[R]] | AsyncIterable[Draft[R]]) -> list[Handle[R]]:
        """Add what an iterable gives, sync or async, a thousand at a time, as it comes. Raises BatchClosed."""
        handles: list[Handle[R]] = []
        async for chunk in _thousands(drafts):
            handles += await self._send(chunk)
        return handles

    async def _send(self, drafts: Sequence[Draft[R]]) -> list[Handle[R]]:
        ids = await self._producer.enqueue([msgspec.structs.replace(draft, batch=self.id) for draft in drafts])
        return [Handle(id, self._producer) for id in ids]

    def add_many(self, drafts: Iterable[Draft[R]]) -> list[Handle[R]]:
        """Add what an iterable gives, a thousand at a time, as it comes. Raises BatchClosed, LoopRunning on a running event loop."""
        refuse_inside_loop("add_many")
        return [handle for chunk in _chunks(drafts) for handle in portal.run(self._send, chunk)]

    async def aprogress(self) -> Tally:
        """Its numbers: total, waiting, running, succeeded, dead, cancelled, expired. Raises JobNotFound once its record is forgotten."""
        store = await self._producer.clients.store()
        found = await store.tallies("batch", [self.id])
        if not found:
            raise JobNotFound(f"no batch {self.id}: it was never opened, or its record is forgotten")
        return found[0]

    async def await_(self, timeout: float | None = None) -> Tally:
        """Wait until it is sealed and all its jobs have ended, however they did. Returns its numbers; `state` tells how it went.

        None waits for ever. Raises ResultTimeout when `timeout` seconds were not enough, JobNotFound once its record is forgotten.
        """
        clock = asyncio.get_running_loop().time
        deadline = math.inf if timeout is None else clock() + timeout
        while (found := await self.aprogress()).finished_at is None:
            left = deadline - clock()
            if left <= 0:
                open = "" if found.sealed else ", and it is not sealed"
                raise ResultTimeout(f"batch {self.id} has not ended within {timeout:g} seconds; it goes on: {found.told}{open}")
            await asyncio.sleep(min(left, LOOK_EVERY))
        return found

    async def acancel(self) -> bool:
        """Cancel all its jobs, and seal it. False when it was finished already. `on_complete` is called once all have ended."""
        return await (await self._producer.changing()).stop("batch", self.id)

    open = sync(aopen)
    seal = sync(aseal)
    add = sync(aadd)
    progress = sync(aprogress)
    wait = sync(await_)
    cancel = sync(acancel)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.seal()
        elif kind is not BatchClosed:
            self.cancel()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            await self.aseal()
        elif kind is not BatchClosed:
            await self.acancel()

    def _jobs(self) -> list[Job]:
        """The callbacks. They do not expire, and have no time: they are due when their batch says so."""
        now = self._producer.clients.clock.now()
        return [
            msgspec.structs.replace(draft.stamped(id, now), batch=self.id, callback=which, run_at=None, expires_at=None)
            for id, (which, draft) in zip(self._ids, self._callbacks.items(), strict=True)
        ]


def _checked(draft: Draft[Any], which: Callback, producer: Producer) -> Draft[Any]:
    what = f"app.batch(on_{which}=...)"
    if not isinstance(draft, Draft):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise BadDeclaration(f"{what} takes what task.job(...) gives, not {draft!r}")
    if draft.producer is not producer:
        raise BadDeclaration(f"{what} takes a job of this app, and {draft.task} belongs to another")
    if draft.outputs:
        raise BadDeclaration(f"{what}: the job of {draft.task} takes the output of another one, and there is none")
    if draft.unique is not None and draft.unique.on_conflict != "raise":
        raise BadDeclaration(f"{what}: another job might stand for the one of {draft.task}; use on_conflict='raise'")
    return draft


def _chunks(drafts: Iterable[Draft[R]]) -> Iterator[list[Draft[R]]]:
    each = iter(drafts)
    while chunk := list(islice(each, MOST_ATOMIC)):
        yield chunk


async def _thousands(drafts: Iterable[Draft[R]] | AsyncIterable[Draft[R]]) -> AsyncIterable[list[Draft[R]]]:
    if not isinstance(drafts, AsyncIterable):
        for chunk in _chunks(drafts):
            yield chunk
        return
    chunk: list[Draft[R]] = []
    async for draft in drafts:
        chunk.append(draft)
        if len(chunk) == MOST_ATOMIC:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
