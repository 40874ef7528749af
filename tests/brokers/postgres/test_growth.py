"""What an operation reads and does grows with the jobs that it is about, and not with their square. Rows are counted, not time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from offload.brokers.postgres import PostgresBroker, claiming
from offload.job import LimitChange, SlotLimit
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim, ids, info, job

pytestmark = pytest.mark.anyio


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, decoder: str) -> Callable[[], int]:
    """Have the rows counted that a module decodes."""
    decode = getattr(module, decoder)
    numbers: list[int] = []

    def counted(rows: str) -> list[Any]:
        found = decode(rows)
        numbers.append(len(found))
        return found

    monkeypatch.setattr(module, decoder, counted)
    return lambda: sum(numbers)


@pytest.mark.parametrize("why", ["paused", "expired"])
async def test_a_fetch_reads_each_candidate_that_does_not_start_once(
    broker: PostgresBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    await broker.enqueue([job(clock, f"j{n}", limits=(SlotLimit("k", 1_000),), expires_in=60) for n in range(60)])
    await broker.enqueue([job(clock, "free")])
    if why == "paused":
        await broker.set_limit("k", LimitChange(paused=True))
    else:
        clock.advance(60)
    async with broker.session(info()) as session:
        read = counting(monkeypatch, claiming, "_rows")
        assert ids(await claim(session, 10)) == ["free"]
        assert read() == 61
