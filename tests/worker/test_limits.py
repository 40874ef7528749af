"""Keys at work: a task that holds back its key, and one that has none."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

import pytest
from tests.worker.running import ended

from offload import Offload, Rate, RetryLater, State, Worker

pytestmark = pytest.mark.anyio

engines = ["memory", "sqlite"]
WAIT = 0.4


async def test_a_service_that_asks_for_patience_gets_it_from_all_jobs_of_its_key(app: Offload) -> None:
    called: list[tuple[int, float]] = []

    @app.task(limits=[Rate("1000/s", key="api", burst=10)])
    async def call(number: int) -> None:
        called.append((number, monotonic()))
        if len(called) == 1:
            raise RetryLater(WAIT, whole_key=True)

    async with Worker(app, concurrency=1):
        handles = [await call.aenqueue(number) for number in range(4)]
        records = [await ended(handle) for handle in handles]
    (_, refused), *others = called
    assert [record.state for record in records] == [State.SUCCEEDED] * 4
    assert len(others) == 4
    assert all(at - refused >= WAIT for _, at in others)
    assert [record.attempt for record in records] == [2, 1, 1, 1]


async def test_without_a_key_only_the_job_waits_and_that_is_said_once(app: Offload, caplog: pytest.LogCaptureFixture) -> None:
    others = asyncio.Event()

    @app.task(name="keyless")
    async def call(number: int) -> None:
        if number == 0:
            others.set()
        elif not others.is_set():
            raise RetryLater(0.05, whole_key=True)

    with caplog.at_level(logging.WARNING, "offload.worker"):
        async with Worker(app):
            handles = [await call.aenqueue(number) for number in (1, 2, 0)]
            records = [await ended(handle) for handle in handles]
    assert [record.state for record in records] == [State.SUCCEEDED] * 3
    said = [record.getMessage() for record in caplog.records if "whole_key" in record.getMessage()]
    assert len(said) == 1
    assert "its job has no order and no limit whose key could be held back: only this job waits" in said[0]
