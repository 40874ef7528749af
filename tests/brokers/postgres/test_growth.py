"""What an operation reads and does grows with the jobs that it is about, and not with their square. Rows are counted, not time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from offload.brokers.postgres import PostgresBroker, claiming, rows, upkeep
from offload.job import LimitChange, SlotLimit, State
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


@pytest.mark.parametrize("what", ["cancel", "delete", "retry", "expire"])
async def test_what_is_done_to_jobs_of_one_key_reads_each_of_them_twice_at_most(
    broker: PostgresBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    names = [f"j{n}" for n in range(60)]
    await broker.enqueue([job(clock, name, order_by="k", expires_in=60) for name in names])
    if what == "retry":
        await broker.cancel(names)
    async with broker.session(info()) as session:
        read = counting(monkeypatch, rows, "_columns")
        match what:
            case "cancel":
                assert await broker.cancel(names) == set(names)
            case "delete":
                assert await broker.delete(names) == set(names)
            case "retry":
                assert await broker.retry(names) == set(names)
            case _:
                clock.advance(60)
                assert [each.id for each in (await session.maintain()).touched] == names
        assert read() <= 2 * len(names)


async def test_a_round_of_upkeep_expires_so_many_jobs_of_one_key_and_the_next_goes_on(
    broker: PostgresBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MOST_TURNS", 10)
    await broker.enqueue([job(clock, f"j{n}", order_by="k", expires_in=60) for n in range(25)])
    await broker.enqueue([job(clock, f"free{n}", expires_in=61) for n in range(25)])
    clock.advance(61)
    async with broker.session(info()) as session:
        rounds = [await session.maintain() for _ in range(3)]
    assert [len(each.touched) for each in rounds] == [10, 10, 5 + 25]
    assert [each.wait for each in rounds[:2]] == [0.0, 0.0]
    assert await broker.counts() == {"default": {State.EXPIRED: 50}}
