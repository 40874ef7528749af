"""What a person asks of an app's jobs, queues and workers, and tells them to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import UNSET, UnsetType

from offload.broker import Feature, Store
from offload.codec import HoldsOutputs, encode_plain
from offload.errors import BadDeclaration, BadPayload, JobNotFound
from offload.job import State
from offload.limits import change_of, given_key
from offload.portal import sync
from offload.producer import Producer
from offload.records import Filter, LimitRecord, Record, SessionRecord, Tally

if TYPE_CHECKING:
    from offload.diagnosis import Finding

Ids: TypeAlias = str | Sequence[str]
"""One job id, or several."""


class Control:
    """The control functions of an app. All of them raise Unsupported when the broker only carries jobs, BrokerError when it is away."""

    producer: Producer

    async def afind(
        self,
        *,
        state: State | str | None = None,
        task: str | None = None,
        queue: str | None = None,
        key: str | None = None,
        text: str | None = None,
        workflow: str | None = None,
        batch: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Record]:
        """Up to `limit` records, newest enqueued first, of jobs that match all that is given.

        `state` is a State or its name, in any case; `key` is a unique key, or the key of its order, limits or fair turn; `text` is sought
        in id, task name, payload and errors; `workflow` and `batch` are ids; `after` is the last id of the page before. Raises
        BadDeclaration for a limit below 1, or a state that there is not.
        """
        _check_limit("find", limit)
        try:
            wanted = None if state is None else State(str(state).upper())
        except ValueError:
            raise BadDeclaration(f"there is no state {state!r}; known are {', '.join(State)}") from None
        store = await self.producer.clients.store()
        return await store.find(
            Filter(state=wanted, task=task, queue=queue, key=key, text=text, workflow=workflow, batch=batch), limit, after
        )

    async def acounts(self) -> dict[str, dict[State, int]]:
        """By queue and state, the number of jobs; zeros are left out."""
        return await (await self.producer.clients.store()).counts()

    async def acancel(self, ids: Ids) -> set[str]:
        """Cancel jobs: at once where not started, else by asking their worker. Returns the ids that had not ended yet."""
        return await (await self.producer.changing()).cancel(_listed(ids))

    async def aretry(self, ids: Ids, payload: Mapping[str, Any] | None = None) -> set[str]:
        """Make dead, cancelled and expired jobs READY again, with fresh attempts and, where given, other arguments by name.

        Returns the ids that were revived: others are unknown, in another state, or their unique key is taken. Raises BadPayload
        when `payload` does not fit the task of one of them, where that task is known here; nothing is changed then.
        """
        store = await self.producer.changing()
        if payload is None:
            return await store.retry(_listed(ids))
        try:
            encoded = encode_plain(payload, "retry(payload=...)")
        except HoldsOutputs:
            raise BadPayload("retry(payload=...) holds the output of a job: give the value itself") from None
        for record in (await store.get(_listed(ids))).values():
            if (arguments := self.producer.signatures.get(record.task)) is not None:
                arguments.prove(encoded)
        return await store.retry(_listed(ids), encoded)

    async def adelete(self, ids: Ids) -> set[str]:
        """Delete jobs and their records, but for running ones. Returns the ids that were deleted."""
        return await (await self.producer.changing()).delete(_listed(ids))

    async def apause(self, queue: str) -> None:
        """Let no job of `queue` start until `resume`; running ones go on, and jobs can still be enqueued."""
        await (await self.producer.changing()).pause(queue)

    async def aresume(self, queue: str) -> None:
        """Undo `pause`."""
        await (await self.producer.changing()).resume(queue)

    async def apaused(self) -> set[str]:
        """The queues that are paused."""
        return await (await self.producer.clients.store()).paused()

    async def alimits(self, *, key: str | None = None, limit: int = 1_000, after: str | None = None) -> list[LimitRecord]:
        """What keys allow, and who holds them or waits for them: those of orders and limits that are held, waited for, or were changed.

        Of the first `limit` keys by name, a record for each kind of use; `after` is the last key of the page before. Or of one `key` alone.
        Raises BadDeclaration for a limit below 1, or what can be no key.
        """
        _check_limit("limits", limit)
        for name, given in (("key", key), ("after", after)):
            if given is not None:
                given_key(given, f"limits({name}=...)")
        return await (await self.producer.clients.store()).limits(limit, after, key)

    async def aworkflows(self, *, limit: int = 100, after: str | None = None) -> list[Tally]:
        """Workflows, newest first, with their numbers; `after` is the last id of the page before. `app.workflow(id)` tells more of one.

        Raises BadDeclaration for a limit below 1.
        """
        _check_limit("workflows", limit)
        return await (await self.producer.clients.store()).tallies("workflow", None, limit, after)

    async def abatches(self, *, limit: int = 100, after: str | None = None) -> list[Tally]:
        """Batches, newest first, with their numbers; `after` is the last id of the page before. `app.batch(id=...)` finds one again.

        Raises BadDeclaration for a limit below 1.
        """
        _check_limit("batches", limit)
        return await (await self.producer.clients.store()).tallies("batch", None, limit, after)

    async def aset_limit(
        self,
        key: str,
        *,
        concurrency: int | UnsetType | None = UNSET,
        rate: str | UnsetType | None = UNSET,
        burst: int | UnsetType | None = UNSET,
        paused: bool | UnsetType = UNSET,
    ) -> None:
        """Change what a key allows, for all workers and until it is changed again; what is not given stays.

        `concurrency`, `rate` (such as "100/s") and `burst` go before what tasks declare; None goes back to that. `paused` lets no job of
        the key start, whatever its limits or order, until it is False, which also ends what a task holds back. Jobs that run go on.
        Raises BadDeclaration for what cannot work.
        """
        change = change_of(key, concurrency, rate, burst, paused)
        await (await self.producer.changing()).set_limit(key, change)

    async def awhy(self, id: str) -> str:
        """Why the job is not running, in words. Raises JobNotFound."""
        from offload.diagnosis import why
        from offload.roots import roots_of
        from offload.survey import holders_of

        store = await self.producer.clients.store()
        standing = await store.standing(id)
        if standing is None:
            raise JobNotFound(f"no job {id}: it was never enqueued, was deleted, or its record is forgotten{await _whole_of(store, id)}")
        return why(standing, await roots_of(store.get, standing.record), await holders_of(store, standing))

    async def aworkers(self) -> list[SessionRecord]:
        """The workers' sessions that are not known to be dead."""
        return await (await self.producer.clients.store()).sessions()

    async def adoctor(self) -> list[Finding]:
        """What is wrong or could be better with the store, the workers, the queues and the tasks, with advice."""
        from offload.diagnosis import diagnose
        from offload.survey import surveyed

        store = await self.producer.clients.store()
        return diagnose(await store.inspect(), await surveyed(store))

    find = sync(afind)
    counts = sync(acounts)
    cancel = sync(acancel)
    retry = sync(aretry)
    delete = sync(adelete)
    pause = sync(apause)
    resume = sync(aresume)
    paused = sync(apaused)
    set_limit = sync(aset_limit)
    why = sync(awhy)
    limits = sync(alimits)
    workflows = sync(aworkflows)
    batches = sync(abatches)
    workers = sync(aworkers)
    doctor = sync(adoctor)


def _listed(ids: Ids) -> list[str]:
    return [ids] if isinstance(ids, str) else list(ids)


def _check_limit(what: str, limit: int) -> None:
    if not isinstance(limit, int) or limit < 1:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise BadDeclaration(f"{what}(limit=...) is how many there may be, at least 1, not {limit!r}")


async def _whole_of(store: Store, id: str) -> str:
    """Of a workflow's or batch's id, where to look instead."""
    if Feature.PARENTS in store.features and await store.tallies("workflow", [id]):
        return f"; it is the id of a workflow: see `offload workflows show {id}`"
    if Feature.BATCH in store.features and await store.tallies("batch", [id]):
        return f"; it is the id of a batch: see `offload batches show {id}`"
    return ""
