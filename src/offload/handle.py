"""A job that was enqueued, held by the one who wants to know what becomes of it."""

from __future__ import annotations

import asyncio
import math
import os
import re
import shlex
from typing import Any, Generic, TypeVar

import msgspec

from offload.broker import Store
from offload.errors import JobCancelled, JobExpired, JobFailed, JobNotFound, ResultTimeout
from offload.job import State
from offload.portal import sync
from offload.producer import Producer
from offload.records import Record

R = TypeVar("R", covariant=True)

_COMMAND = re.compile(r"`(offload (?!worker\b)[^`]+)`")
"""A command in a text that needs to be told the app or its broker, but for `offload worker`, which needs the app itself."""
LONGEST_WAIT = 60.0
"""Seconds that one call to the broker waits for a job to end; `result` repeats it."""


class Handle(Generic[R]):
    """One job, by its id. `R` is what its task returns."""

    __slots__ = ("_producer", "id")

    def __init__(self, id: str, producer: Producer) -> None:
        self.id = id
        self._producer = producer

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def aresult(self, timeout: float | None = None) -> R:
        """Wait until the job has ended and return what its task returned. None waits for ever; 0 only looks.

        Raises JobFailed (its text holds the last error), JobCancelled, JobExpired, ResultTimeout when `timeout` seconds were
        not enough (the job goes on), JobNotFound for an id that is unknown, or whose record is no longer kept, and
        BadPayload for a result that is not what the task's return annotation says.
        """
        clock = asyncio.get_running_loop().time  # how long the caller waits, whatever clock the jobs go by
        store = await self._producer.clients.store()
        deadline = math.inf if timeout is None else clock() + timeout
        alone = self._producer.clients.rehearsed and not await store.sessions()
        while True:
            left = 0.0 if alone else max(0.0, deadline - clock())
            record = (await store.finished([self.id], min(left, LONGEST_WAIT))).get(self.id)
            if record is not None:
                return self._value(record, await _cause(store, record) if record.state is State.CANCELLED else "")
            if not await store.get([self.id]):
                raise self._not_found()
            if alone:
                raise ResultTimeout(f"job {self.id} has not ended, and nothing runs it here: call drain() or advance() first")
            if clock() >= deadline:
                raise await self._timed_out(store, timeout)

    async def arecord(self) -> Record:
        """All that is known of the job. Raises JobNotFound."""
        records = await (await self._producer.clients.store()).get([self.id])
        if self.id not in records:
            raise self._not_found()
        return records[self.id]

    async def acancel(self) -> bool:
        """Cancel the job: at once where it has not started, else by asking its worker. False when it had ended already."""
        return self.id in await (await self._producer.changing()).cancel([self.id])

    result = sync(aresult)
    record = sync(arecord)
    cancel = sync(acancel)

    def _value(self, record: Record, cause: str) -> Any:
        what = f"job {self.id} ({record.task})"
        match record.state:
            case State.DEAD:
                raise JobFailed(f"{what} is dead: {_last_error(record)}", record)
            case State.CANCELLED:
                raise JobCancelled(f"{what} was cancelled{cause}", record)
            case State.EXPIRED:
                raise JobExpired(f"{what} expired: no worker started it before {record.expires_at}", record)
            case _:
                arguments = self._producer.signatures.get(record.task)
                return record.result if arguments is None else arguments.decode_result(msgspec.json.encode(record.result))

    async def _timed_out(self, store: Store, timeout: float | None) -> ResultTimeout:
        if not timeout:  # who only looks, looks often
            return ResultTimeout(f"job {self.id} has not ended yet; it goes on")
        from offload.diagnosis import why

        standing = await store.standing(self.id)
        said = "" if standing is None else f" {why(standing)}"
        option = self._option()
        if option is not None:
            said = f"{said} `offload why {self.id}` says how it stands later."
            said = _COMMAND.sub(lambda command: f"`{command[1]}{option}`", said)
        return ResultTimeout(f"job {self.id} has not ended within {timeout:g} seconds; it goes on.{said}")

    def _option(self) -> str | None:
        """What a command needs to find the job, as it can be typed here: nothing that is printed may hold a password.

        None where no other process sees the job.
        """
        clients = self._producer.clients
        if not clients.broker.durable:
            return None
        if os.environ.get("OFFLOAD_APP") or os.environ.get("OFFLOAD_URL") == clients.url:
            return ""
        return f" --url {shlex.quote(clients.url)}" if clients.place == clients.url else " --app MODULE:APP"

    def _not_found(self) -> JobNotFound:
        return JobNotFound(
            f"no job {self.id}: it was never enqueued, was deleted, or its record is forgotten"
            " (with keep=0 none is kept once the job has succeeded, and so no result)"
        )


async def _cause(store: Store, record: Record) -> str:
    """Why a job was cancelled: who failed first, where it fell with another."""
    from offload.roots import felled_by, roots_of

    if felled_by(record) is not None and (told := (await roots_of(store.get, record)).told):
        return f", for it comes after {told}"
    return "" if record.reason in (None, "cancelled") else f": {record.reason}"


def _last_error(record: Record) -> str:
    if not record.errors:
        return record.reason or "no reason was recorded"
    last = record.errors[-1]
    return f"{last.type}: {last.message}" + (f" ({record.reason})" if record.reason not in (None, "", last.message) else "")
