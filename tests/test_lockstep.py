"""Stores in lockstep with the reference, and proof that lockstep sees what is broken."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
from tests.conftest import Schemas

from offload.brokers.memory import MemoryBroker, gating
from offload.brokers.memory.session import MemorySession
from offload.brokers.postgres import PostgresBroker, families
from offload.brokers.postgres.connections import Link
from offload.brokers.postgres.work import Operation
from offload.brokers.redis import RedisBroker
from offload.brokers.sqlite import SqliteBroker
from offload.gates import Ledger, Member, Steps, Want
from offload.gates.rules import slots_at
from offload.job import Isolation, Job, Lease, Outcome, SlotLimit, State, WorkerInfo
from offload.records import Filter, LimitRecord, Record
from offload.testing.clock import START, TestClock
from offload.testing.contract.fixtures import job
from offload.testing.contract.keyed import slot
from offload.testing.gatekeeping import prove, prove_shut
from offload.testing.lockstep import RUNS, Opener, lockstep
from offload.testing.servers import PostgresServer, RedisServer

T = TypeVar("T")

ENOUGH = 300
"""Programs of which one shows what is broken; mostly one of the first does."""


def memory(kind: type[MemoryBroker] = MemoryBroker) -> Opener:
    @asynccontextmanager
    async def opened(clock: TestClock) -> AsyncGenerator[MemoryBroker]:
        broker = kind.connect("memory://", clock)
        await broker.open()
        yield broker
        await broker.close()

    return opened


@asynccontextmanager
async def sqlite(clock: TestClock) -> AsyncGenerator[SqliteBroker]:
    with TemporaryDirectory() as folder:
        broker = SqliteBroker.connect(f"sqlite:///{folder}/offload.db?synchronous=normal", clock)
        await broker.open()
        yield broker
        await broker.close()


@pytest.fixture
def postgres(shared_postgres: Callable[[int | None], PostgresServer], schemas: Schemas) -> Opener:
    """Each run in a schema of its own."""

    @asynccontextmanager
    async def opened(clock: TestClock) -> AsyncGenerator[PostgresBroker]:
        server = shared_postgres(None)
        with schemas.lent(server) as schema:
            broker = PostgresBroker.connect(f"{server.url}?schema={schema}", clock)
            await broker.open()
            yield broker
            await broker.close()

    return opened


@pytest.fixture
def redis(each_redis: RedisServer, fresh_name: str) -> Opener:
    """Each run under a prefix of its own."""
    numbers = itertools.count(1)

    @asynccontextmanager
    async def opened(clock: TestClock) -> AsyncGenerator[RedisBroker]:
        broker = RedisBroker.connect(f"{each_redis.url}?prefix=lockstep_{fresh_name}_{next(numbers)}", clock)
        await broker.open()
        yield broker
        await broker.close()

    return opened


@pytest.mark.timeout(0)  # as long as OFFLOAD_LOCKSTEP_RUNS asks for, and until the shortest program that fails is found
def test_sqlite_is_indistinguishable_from_memory() -> None:
    lockstep(memory(), sqlite)


@pytest.mark.timeout(0)
def test_postgresql_is_indistinguishable_from_memory(postgres: Opener) -> None:
    lockstep(memory(), postgres)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("most", [1, 3])
def test_postgresql_that_tells_few_children_at_once_is_so_too(postgres: Opener, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What an operation leaves to upkeep is done right after it."""
    run = Link.run

    async def run_and_pay(link: Link, operation: Operation[T]) -> T:
        result = await run(link, operation)
        while await run(link, families.pay_owed):
            pass
        return result

    monkeypatch.setattr(families, "MOST_LINKS", most)
    monkeypatch.setattr(Link, "run", run_and_pay)
    lockstep(memory(), postgres, runs=max(RUNS // 20, 1))


@pytest.mark.timeout(0)
def test_redis_is_indistinguishable_from_memory(redis: Opener) -> None:
    lockstep(memory(), redis)


def test_memory_is_indistinguishable_from_itself() -> None:
    lockstep(memory(), memory(), runs=20)


class ForgetsPriority(MemoryBroker):
    async def find(self, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
        return [record for record in await super().find(filter, limit, after) if record.priority == 0]


class StoresHalfABatch(MemoryBroker):
    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        return [id for job in jobs for id in await super(StoresHalfABatch, self).enqueue([job])]


class CancelsOnlyOne(MemoryBroker):
    async def cancel(self, ids: Sequence[str]) -> set[str]:
        return await super().cancel(ids[:1])


class _Altered(MemoryBroker):
    """Its sessions are of the class that `altered` names."""

    altered: type[MemorySession]

    @asynccontextmanager
    async def session(self, worker: WorkerInfo) -> AsyncGenerator[MemorySession]:
        async with super().session(worker) as session:
            session.__class__ = self.altered
            yield session


class _IgnoresRoom(MemorySession):
    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        return await super().fetch(queues, limit, dict.fromkeys(room, limit))


class IgnoresRoom(_Altered):
    altered = _IgnoresRoom


class _ReportsNothingLost(MemorySession):
    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        await super().settle(settlements)
        return []


class ReportsNothingLost(_Altered):
    altered = _ReportsNothingLost


@pytest.mark.parametrize("broken", [ForgetsPriority, StoresHalfABatch, CancelsOnlyOne, IgnoresRoom, ReportsNothingLost])
def test_a_broken_store_is_caught(broken: type[MemoryBroker]) -> None:
    with pytest.raises(AssertionError, match=r"differ\s+model: .*\s+subject: "):
        lockstep(memory(), memory(broken), runs=ENOUGH, shrink=False)


class LeavesASlotFree(Ledger):
    """Of several slots one is never given."""

    def _open(self, member: Member, want: Want) -> bool:
        gate = self.gates[want.gate]
        last = gate.kind == "slot" and len(gate.holders) == slots_at(gate, want, self.rules) - 1 > 0
        return not last and super()._open(member, want)


class LetsTooManyPass(Ledger):
    """One more holds a slot than may."""

    def _open(self, member: Member, want: Want) -> bool:
        gate = self.gates[want.gate]
        spare = gate.kind == "slot" and not gate.paused and len(gate.holders) == slots_at(gate, want, self.rules)
        return spare or super()._open(member, want)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (LeavesASlotFree, r"of which \d of \d are held|keeps j\d+ waiting for nothing"),
        (LetsTooManyPass, r"\d hold the \d slots of [xy], newly"),
    ],
)
def test_gates_that_both_stores_get_wrong_are_seen(monkeypatch: pytest.MonkeyPatch, broken: type[Ledger], says: str) -> None:
    monkeypatch.setattr(gating, "Ledger", broken)
    with pytest.raises(AssertionError, match=says):
        lockstep(memory(), memory(), runs=ENOUGH, shrink=False)


class LooksTooLate(Ledger):
    """A gate where a slot is free is looked at only when nobody holds one any more."""

    def pump(self, id: str) -> Steps[None]:
        yield from self._known_gates([id])
        if not self.gates[id].holders:
            yield from super().pump(id)


class ForgetsWhoStandsBehind(Ledger):
    """Who held up others at a gate and goes to wait elsewhere has nobody looked at there."""

    def withdraw(self, member: Member) -> Steps[None]:
        yield from self._known(member)
        at = self.lanes[member.lane].gate
        self._deaf = at
        yield from super().withdraw(member)
        self._deaf = None

    _deaf: str | None = None

    def pump(self, id: str) -> Steps[None]:
        if id != self._deaf:
            yield from super().pump(id)


@pytest.mark.parametrize("broken", [LooksTooLate, ForgetsWhoStandsBehind])
def test_the_algorithm_itself_sees_whoever_is_kept_waiting_for_nothing(monkeypatch: pytest.MonkeyPatch, broken: type[Ledger]) -> None:
    asyncio.run(_see_who_is_kept_waiting(monkeypatch, broken))


async def _see_who_is_kept_waiting(monkeypatch: pytest.MonkeyPatch, broken: type[Ledger]) -> None:
    clock = TestClock()
    async with memory()(clock) as store:
        assert isinstance(store, MemoryBroker)
        await store.enqueue([slot(clock, "a", 2), slot(clock, "a2", 2)])
        await store.enqueue([job(clock, "b", limits=(SlotLimit("k", 2), SlotLimit("y", 1))), slot(clock, "c", 3)])
        prove_shut(store.shelf.gating, store.shelf.moment(), store.shelf.moment())
        with monkeypatch.context() as patched:
            patched.setattr(gating, "Ledger", broken)
            await store.cancel(["b"])
        with pytest.raises(AssertionError, match="the slot of k keeps c waiting for nothing"):
            prove_shut(store.shelf.gating, store.shelf.moment(), store.shelf.moment())


def waiter(id: str, n: int, state: State = State.WAITING) -> Record:
    reason = "waits for a slot of k" if state is State.WAITING else None
    return Record(id=id, task="t", enqueued_at=START, limits=(SlotLimit("k", n),), state=state, reason=reason)


def told(n: int, *holders: str, changed: bool = False) -> LimitRecord:
    return LimitRecord(key="k", kind="slot", n=n, changed=changed, holders=holders, held=len(holders))


class TestProof:
    def test_sees_that_one_waits_while_slots_are_free(self) -> None:
        with pytest.raises(AssertionError, match="b waits for a slot of k, of which 1 of 5 are held"):
            prove([waiter("a", 5, State.READY), waiter("b", 5)], [told(5, "a")])

    def test_goes_by_what_those_need_who_wait(self) -> None:
        prove([waiter("a", 5, State.READY), waiter("b", 5), waiter("c", 1)], [told(5, "a")])

    def test_goes_by_what_a_person_has_set(self) -> None:
        prove([waiter("a", 5, State.READY), waiter("b", 5)], [told(1, "a", changed=True)])
        with pytest.raises(AssertionError, match="1 of 2 are held"):
            prove([waiter("a", 1, State.READY), waiter("b", 1)], [told(2, "a", changed=True)])

    def test_sees_that_more_hold_a_slot_than_may(self) -> None:
        running = [waiter("a", 1, State.RUNNING), waiter("b", 1, State.RUNNING)]
        with pytest.raises(AssertionError, match=r"2 hold the 1 slots of k, newly \['b'\]"):
            prove(running, [told(1, "a", "b")], before=[told(1, "a")])

    def test_those_may_hold_on_who_held_before_n_was_lowered(self) -> None:
        running = [waiter("a", 2, State.RUNNING), waiter("b", 2, State.RUNNING)]
        prove(running, [told(1, "a", "b", changed=True)], before=[told(2, "a", "b")])
