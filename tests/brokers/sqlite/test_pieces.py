"""Workflows and batches so wide that they are worked off in pieces come to the same as in the reference, which does all at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from offload.broker import Session, Store
from offload.brokers.memory import MemoryBroker
from offload.job import Dead, Done, Job, Lease, State
from offload.testing.clock import TestClock
from offload.testing.contract.families import node, states, takes
from offload.testing.contract.fixtures import claim, claim_one, ids, info, job, settle

pytestmark = pytest.mark.anyio

WIDTH = 2_500
LAST = f"c{WIDTH - 1}"
Story: TypeAlias = Callable[[Store, Session, TestClock], Awaitable[None]]
Shown: TypeAlias = list[tuple[str, State, str | None]]


async def stopped_and_revived_at_once(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), *_fan(clock)])
    assert await store.stop("workflow", "flow")
    assert await store.retry(["a"]) == {"a"}
    await store.enqueue([node(clock, "late", "a")])
    await _rest(session)
    assert await states(store, "a", LAST, "late") == [State.READY, State.WAITING, State.WAITING]


async def stopped_and_revived_later(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), *_fan(clock, fails="run")])
    assert await store.stop("workflow", "flow")
    assert await claim(session) == []
    await _rest(session)
    assert await states(store, "a", "c0", LAST) == [State.CANCELLED] * 3
    assert await store.retry(["a"]) == {"a"}
    await _rest(session)
    assert await states(store, "a", "c0", LAST) == [State.READY, State.WAITING, State.WAITING]


async def ended_well_while_stopped(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a")])
    lease = await claim_one(session)
    await store.enqueue([*_fan(clock), node(clock, "x")])
    assert await store.stop("workflow", "flow")
    await settle(session, lease, Done())
    assert await store.retry(["x"]) == {"x"}
    await _rest(session)
    assert await states(store, "x", "c0", LAST) == [State.READY, State.CANCELLED, State.CANCELLED]


async def stopped_before_all_had_heard(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), *_fan(clock), node(clock, "x")])
    await settle(session, (await claim(session, 1))[0], Done())
    assert await store.stop("workflow", "flow")
    assert await store.retry(["x"]) == {"x"}
    await _rest(session)
    assert await states(store, "x", "c0", LAST) == [State.READY, State.CANCELLED, State.CANCELLED]


async def revived_and_stopped_before_all_had_heard(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), *_fan(clock), node(clock, "x")])
    lease = (await claim(session, 1))[0]
    await settle(session, lease, Dead("no"))
    assert await store.retry(["a"]) == {"a"}
    assert await store.stop("workflow", "flow")
    await _rest(session)
    assert await store.retry(["x"]) == {"x"}
    await _rest(session)


async def given_up_before_all_had_heard(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a", size=WIDTH + 9), *_fan(clock, fails="run")])
    await settle(session, (await claim(session, 1))[0], Dead("no"))
    clock.advance(3_600)
    await _rest(session)
    assert await store.retry(["a"]) == {"a"}
    await _rest(session)
    assert await states(store, "a", "c0", LAST) == [State.READY, State.CANCELLED, State.CANCELLED]


async def a_batch_stopped_whose_jobs_are_of_a_workflow(store: Store, session: Session, clock: TestClock) -> None:
    await store.open_batch("b", "", [job(clock, "called", batch="b", callback="complete")])
    await store.enqueue([node(clock, "a", batch="b"), *_fan(clock, batch="b")])
    assert await store.stop("batch", "b")
    assert await store.retry(["a"]) == {"a"}
    await _rest(session)
    assert await states(store, "a", LAST, "called") == [State.READY, State.WAITING, State.READY]


async def a_batch_stopped_before_all_had_heard(store: Store, session: Session, clock: TestClock) -> None:
    await store.open_batch("b", "", [])
    await store.enqueue([node(clock, "a"), *_fan(clock, batch="b")])
    await settle(session, await claim_one(session), Done())
    assert await store.stop("batch", "b")
    assert await store.retry(["c0"]) == {"c0"}
    await _rest(session)
    assert await states(store, "c0", "c1", LAST) == [State.READY, State.CANCELLED, State.CANCELLED]


async def a_batch_stopped_before_all_had_heard_of_a_failure(store: Store, session: Session, clock: TestClock) -> None:
    await store.open_batch("b", "", [])
    await store.enqueue([node(clock, "a"), *_fan(clock, batch="b")])
    await settle(session, await claim_one(session), Dead("no"))
    assert await store.stop("batch", "b")
    await _rest(session)
    assert (await store.get([LAST]))[LAST].reason == "parent a ended DEAD"


async def stopped_and_one_revived_before_anybody_looks(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), *_fan(clock)])
    await settle(session, await claim_one(session), Done())
    await _rest(session)
    assert await store.stop("workflow", "flow")
    assert await store.retry([LAST]) == {LAST}
    assert ids(await claim(session, WIDTH)) == [LAST]


async def one_of_a_stopped_batch_revived_before_anybody_looks(store: Store, session: Session, clock: TestClock) -> None:
    await store.open_batch("b", "", [])
    await store.enqueue([job(clock, f"c{n}", batch="b") for n in range(WIDTH)])
    assert await store.stop("batch", "b")
    assert await store.retry(["c0"]) == {"c0"}
    assert ids(await claim(session, WIDTH)) == ["c0"]


async def a_child_revived_before_it_had_heard(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), *_fan(clock)])
    assert await store.cancel([LAST]) == {LAST}
    await settle(session, await claim_one(session), Dead("no"))
    await _rest(session)
    assert await store.retry(["a"]) == {"a"}
    assert await store.retry([LAST]) == {LAST}
    await _rest(session)
    assert await states(store, "c0", LAST) == [State.WAITING, State.WAITING]


async def deleted_before_all_had_heard(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), node(clock, "x"), node(clock, "last", queue="last"), *_joins(clock)])
    await session.settle([(lease, Done(f'"{lease.job.id}"'.encode())) for lease in await claim(session, queues=["default"])])
    assert await store.delete(["x"]) == {"x"}
    await _rest(session)
    await settle(session, await claim_one(session), Done(b"1"))
    await _rest(session)
    assert {lease.inputs for lease in await _all(session)} == {(b'"a"', b'"x"', b"1")}


async def deleted_before_all_had_heard_and_added_again(store: Store, session: Session, clock: TestClock) -> None:
    await store.enqueue([node(clock, "a"), node(clock, "x"), node(clock, "last", queue="last"), *_joins(clock)])
    await session.settle([(lease, Done()) for lease in await claim(session, queues=["default"])])
    assert await store.delete(["x"]) == {"x"}
    await _rest(session)
    await store.enqueue([node(clock, "x")])
    await session.settle([(lease, Done()) for lease in await claim(session, queues=["default"])])
    await _rest(session)
    assert ids(await claim(session)) == ["last"]


def _joins(clock: TestClock) -> list[Job]:
    return [node(clock, f"c{n}", takes("a", "x"), takes("x", "y"), takes("last", "z"), queue="late") for n in range(WIDTH)]


async def _all(session: Session) -> list[Lease]:
    leases: list[Lease] = []
    while more := await claim(session):
        leases += more
    return leases


def _fan(clock: TestClock, **fields: Any) -> list[Job]:
    return [node(clock, f"c{n}", "a", **fields) for n in range(WIDTH)]


async def _rest(session: Session) -> None:
    """Do all that upkeep has to do."""
    while (await session.maintain()).wait == 0:
        pass


async def _killed(*_: str) -> None:
    """Whoever stops something wide dies when the first are cancelled."""


async def _shown(store: Store) -> Shown:
    known = await store.get(["a", "x", "late", "called", *(f"c{n}" for n in range(WIDTH))])
    return [(id, each.state, each.reason) for id, each in sorted(known.items())]


@pytest.mark.parametrize(
    "story",
    [
        stopped_and_revived_at_once,
        stopped_and_revived_later,
        ended_well_while_stopped,
        stopped_before_all_had_heard,
        revived_and_stopped_before_all_had_heard,
        given_up_before_all_had_heard,
        a_batch_stopped_whose_jobs_are_of_a_workflow,
        a_batch_stopped_before_all_had_heard,
        a_batch_stopped_before_all_had_heard_of_a_failure,
        stopped_and_one_revived_before_anybody_looks,
        one_of_a_stopped_batch_revived_before_anybody_looks,
        a_child_revived_before_it_had_heard,
        deleted_before_all_had_heard,
        deleted_before_all_had_heard_and_added_again,
    ],
)
async def test_it_comes_to_the_same_as_all_at_once(broker: Store, clock: TestClock, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_finish_stop", _killed)
    other = TestClock()
    model = MemoryBroker.connect("memory://", other)
    await model.open()
    for store, time in ((model, other), (broker, clock)):
        async with store.session(info()) as session:
            await story(store, session, time)
            await _rest(session)
    assert await _shown(broker) == await _shown(model)
    for kind in ("workflow", "batch"):
        assert await broker.tallies(kind) == await model.tallies(kind)
    await model.close()
