"""Batches: many jobs counted together, with callbacks."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from offload.broker import Feature
from offload.counted import Counted
from offload.drafts import athousands, refuse_stand_in, thousands
from offload.errors import BadDeclaration, BatchClosed
from offload.handle import Handle
from offload.ids import new_ids
from offload.job import Callback, Draft, Job
from offload.options import short
from offload.portal import portal, refuse_inside_loop, sync
from offload.producer import Producer

R = TypeVar("R")


class Batch(Counted):
    """Many jobs counted together; what `app.batch(...)` gives.

    In a `with` or `async with` block it is opened, and sealed at the end; an exception that leaves the block cancels it, but for its own
    BatchClosed: who comes late to a batch that others have sealed ends nothing of theirs. Jobs go out as they are added, and run at once.
    """

    kind = "batch"

    def __init__(self, producer: Producer, name: str, id: str | None, callbacks: Mapping[Callback, Draft[Any] | None]) -> None:
        producer.check([Feature.BATCH], "app.batch(...)")
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"app.batch takes a name, such as 'reports', not {name!r}")
        if id is not None and not (isinstance(id, str) and id):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"app.batch(id=...) takes a text that is not empty, such as 'reports-2030-01-01', not {id!r}")
        if id is not None:
            short(id, "app.batch(id=...)")
        now = producer.clients.clock.now()
        super().__init__(id or new_ids(1, now)[0], producer)
        self.name = name
        self._callbacks = {which: _checked(draft, which, producer) for which, draft in callbacks.items() if draft is not None}
        named = [draft.id for draft in self._callbacks.values() if draft.id is not None]
        if len(set(named)) < len(named):
            raise BadDeclaration(f"app.batch: two callbacks have the id {named[0]!r}; each is a job of its own")
        self._ids = new_ids(len(self._callbacks), now)
        self._closed: BatchClosed | None = None
        """What told that it takes no more jobs."""

    def __repr__(self) -> str:
        return f"Batch({self.id!r}, {self.name!r})"

    async def aopen(self) -> Self:
        """Begin it, so that jobs can be added until it is sealed. Opening one that is there already changes nothing."""
        store = await self._needed().changing()
        await store.open_batch(self.id, self.name, self._jobs())
        return self

    async def aseal(self) -> bool:
        """Let no more jobs be added from outside: it is finished once all have ended. False when it was sealed before."""
        return await (await self._needed().changing()).seal_batch(self.id)

    async def aadd(self, draft: Draft[R]) -> Handle[R]:
        """Add a job. Raises BatchClosed where the batch is sealed, or not open yet."""
        [handle] = await self.aadd_many([draft])
        return handle

    async def aadd_many(self, drafts: Iterable[Draft[R]] | AsyncIterable[Draft[R]]) -> list[Handle[R]]:
        """Add what an iterable gives, sync or async, a thousand at a time, as it comes. Raises BatchClosed."""
        handles: list[Handle[R]] = []
        async for chunk in athousands(drafts, "add_many"):
            handles += await self._send(chunk)
        return handles

    async def _send(self, drafts: Sequence[Draft[R]]) -> list[Handle[R]]:
        producer = self._needed()
        for draft in drafts:
            refuse_stand_in(draft, "the batch")
        try:
            ids = await producer.enqueue([msgspec.structs.replace(draft, batch=self.id) for draft in drafts])
        except BatchClosed as closed:
            self._closed = closed
            raise
        return [Handle(id, producer) for id in ids]

    def add_many(self, drafts: Iterable[Draft[R]]) -> list[Handle[R]]:
        """Add what an iterable gives, a thousand at a time, as it comes. Raises BatchClosed, LoopRunning on a running event loop."""
        refuse_inside_loop("add_many")
        return [handle for chunk in thousands(drafts, "add_many") for handle in portal.run(self._send, chunk)]

    open = sync(aopen)
    seal = sync(aseal)
    add = sync(aadd)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.seal()
        elif error is not self._closed:
            self.cancel()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            await self.aseal()
        elif error is not self._closed:
            await self.acancel()

    def _jobs(self) -> list[Job]:
        """The callbacks. They do not expire, for nobody knows when they will be due."""
        now = self._needed().clients.clock.now()
        return [
            msgspec.structs.replace(draft.stamped(id, now), batch=self.id, callback=which, expires_at=None)
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
    refuse_stand_in(draft, "the batch")
    if draft.delay is not None or draft.run_at is not None:
        raise BadDeclaration(f"{what}: the job of {draft.task} is due when its batch says so: leave out delay and run_at")
    return draft
