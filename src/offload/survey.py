"""Looks around for `doctor`: at what a store's own account of itself leaves out. Each look returns no more than so much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from offload.broker import Feature, Store
from offload.diagnosis import MOST_DEAD
from offload.job import State
from offload.keys import NAMED
from offload.records import Filter, LimitRecord, Record, Standing, Survey

MOST_KEYS = 1_000
MOST_CROWDED = 20
"""Of so many keys, those for which most jobs wait, the first holders are looked at."""


async def surveyed(store: Store) -> Survey:
    """What there is to be seen."""
    limits, counts = await _limits(store), await store.counts()
    dead = {queue: states[State.DEAD] for queue, states in sorted(counts.items()) if states.get(State.DEAD)}
    return Survey(
        dead=dead,
        dead_tasks=await _tasks(store) if dead else (),
        limits=tuple(limits),
        holders=await _holders(store, limits),
        queues=frozenset(counts),
    )


async def holders_of(store: Store, standing: Standing) -> tuple[Standing, ...]:
    """The facts about those that hold what a job waits for and are READY: of the first few."""
    if standing.record.state is not State.WAITING or not standing.limits:
        return ()
    found = [await store.standing(id) for id in await _ready(store, standing.limits[0].holders[:NAMED])]
    return tuple(each for each in found if each is not None)


async def _holders(store: Store, limits: Iterable[LimitRecord]) -> dict[str, Record]:
    crowded = sorted((each for each in limits if each.waiting), key=lambda each: -each.waiting)[:MOST_CROWDED]
    return await _ready(store, list(dict.fromkeys(id for each in crowded for id in each.holders[:NAMED])))


async def _ready(store: Store, ids: Sequence[str]) -> dict[str, Record]:
    """Those that are READY, in the order given."""
    known = await store.get(ids) if ids else {}
    return {id: known[id] for id in ids if id in known and known[id].state is State.READY}


async def _tasks(store: Store) -> tuple[str, ...]:
    found = await store.find(Filter(state=State.DEAD), MOST_DEAD)
    return tuple(task for task, _ in Counter(record.task for record in found).most_common())


async def _limits(store: Store) -> list[LimitRecord]:
    return await store.limits(MOST_KEYS) if {Feature.ORDER, Feature.LIMITS} & store.features else []
