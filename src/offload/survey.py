"""Looks around for `doctor`: at what a store's own account of itself leaves out. Every look is bounded, however full the store is."""

from __future__ import annotations

from offload.broker import Feature, Store
from offload.records import LimitRecord, Survey

MOST_KEYS = 1_000


async def surveyed(store: Store) -> Survey:
    """What there is to be seen."""
    return Survey(limits=tuple(await _limits(store)), queues=frozenset(await store.counts()))


async def _limits(store: Store) -> list[LimitRecord]:
    return await store.limits(MOST_KEYS) if {Feature.ORDER, Feature.LIMITS} & store.features else []
