"""Workflows and batches so wide that they are worked off in pieces come to the same as in the reference, which does all at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from offload.broker import Session, Store
from offload.brokers.memory import MemoryBroker
from offload.brokers.sqlite import SqliteBroker
from offload.job import Dead, Done, Job, State
from offload.testing.clock import TestClock
from offload.testing.contract.families import node, states
from offload.testing.contract.fixtures import claim, claim_one, info, job, settle

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


def _fan(clock: TestClock, **fields: Any) -> list[Job]:
    return [node(clock, f"c{n}", "a", **fields) for n in range(WIDTH)]


async def _rest(session: Session) -> None:
    """Do all that upkeep has to do."""
    while (await session.maintain()).wait == 0:
        pass


async def _shown(store: Store) -> Shown:
    ids = ["a", "x", "late", "called", *(f"c{n}" for n in range(WIDTH))]
    return [(id, each.state, each.reason) for id, each in sorted((await store.get(ids)).items())]


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
    ],
)
async def test_it_comes_to_the_same_as_all_at_once(broker: SqliteBroker, clock: TestClock, story: Story) -> None:
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
