"""What a claim reads of the file."""

from __future__ import annotations

from typing import Any

import pytest

from offload.brokers.sqlite import SqliteBroker, claiming
from offload.job import LimitChange, SlotLimit
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, ids, info, job

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("why", ["paused", "expired"])
async def test_a_fetch_reads_each_candidate_that_does_not_start_once(
    broker: SqliteBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    await broker.enqueue([job(clock, f"j{n}", limits=(SlotLimit("k", 1_000),), expires_in=60) for n in range(60)])
    await broker.enqueue([job(clock, "free")])
    if why == "paused":
        await broker.set_limit("k", LimitChange(paused=True))
    else:
        clock.advance(60)
    decode, read = claiming._rows, list[Any]()

    def counted(rows: str) -> list[Any]:
        read.extend(found := decode(rows))
        return found

    monkeypatch.setattr(claiming, "_rows", counted)
    async with broker.session(info()) as session:
        assert ids(await claim(session, 10)) == ["free"]
    assert len(read) == 61
