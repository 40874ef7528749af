"""The server that keeps the queue is killed and started again under load; nothing that it accepted is lost, and nobody needs to act."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from tests.chaos.accounts import accepted, each_ran_once, said_once_each_time
from tests.chaos.conftest import MANY, Stage
from tests.chaos.places import SERVERS, SOAK

from offload import BrokerError, Offload, State
from offload.worker import Worker

pytestmark = [pytest.mark.process, pytest.mark.parametrize("place", SERVERS, indirect=True)]

OUTAGES = 10 if SOAK else 3
PATIENCE = 1.0
"""Seconds after which these producers' calls fail."""
BUSY = 4.0
"""Seconds that a busy machine may add."""


@pytest.mark.timeout(600 if SOAK else 300)
def test_a_server_killed_under_load_loses_nothing_that_it_accepted(stage: Stage) -> None:
    chance = random.Random(3)
    impatient = f"{stage.url}{'&' if '?' in stage.url else '?'}timeout={PATIENCE:g}"
    stage.produce(2, chunk=5, pause=0.02, CHAOS_URL=impatient)
    for _ in range(2):
        stage.start("worker")
    stage.until(lambda: len({first // MANY for first, _, _ in stage.calls("accepted")}) == 2, 60, "both producers are at work")
    stage.until(lambda: len(stage.app.workers()) == 2, 60, "both workers are there")
    for outage in range(1, OUTAGES + 1):
        due = len(stage.ran()) + 100 + chance.randrange(100)
        stage.until(lambda due=due: len(stage.ran()) >= due, 60, f"enough jobs ran for outage {outage}")
        stage.server.kill()
        died, stored, refused = time.monotonic(), accepted(stage), len(stage.calls("refused"))
        # Longer than the two seconds after which a session that does not beat is dead.
        stage.until(lambda died=died: time.monotonic() - died > 2.5, 60, "the server was away for a while")
        assert len(stage.calls("refused")) > refused, "calls made while the server is away fail"
        before = len(stage.ran())
        stage.server.start()
        stage.until(lambda before=before: len(stage.ran()) > before + 40, 60, "workers go on by themselves")
        stage.until(lambda stored=stored: accepted(stage) > stored + 40, 60, "producers go on by themselves")
    jobs = stage.enough()

    each_ran_once(stage, jobs)
    said_once_each_time(stage, OUTAGES)
    refusals = [seconds for _, _, seconds in stage.calls("refused")]
    assert min(refusals) >= PATIENCE, [line for line in stage.log().splitlines() if "a call was refused" in line]
    assert max(refusals) < PATIENCE + BUSY
    print(f"{len(jobs)} jobs, {OUTAGES} outages, {len(refusals)} calls refused after {min(refusals):.2f} to {max(refusals):.2f} s")


def test_who_waits_for_a_result_waits_as_long_as_an_enqueue_would(stage: Stage) -> None:
    patient, impatient = (Offload(f"{stage.url}{'&' if '?' in stage.url else '?'}timeout={seconds}") for seconds in (60, 1))
    with closing(patient), closing(impatient), ThreadPoolExecutor() as pool:

        @patient.task(name="answer")
        async def answer() -> int:
            return 42

        handles = [answer.enqueue() for _ in range(2)]
        assert impatient.counts() == {"default": {State.READY: 2}}
        waiting = [pool.submit(handle.result, timeout=300) for handle in handles]
        given_up = pool.submit(impatient.handle(handles[0].id).result, timeout=300)
        died = time.monotonic()
        stage.server.kill()
        error = given_up.exception(60)
        assert isinstance(error, BrokerError)
        assert PATIENCE <= time.monotonic() - died < PATIENCE + BUSY
        assert not any(each.done() for each in waiting)
        stage.server.start()
        asyncio.run(Worker(patient).drain())
        assert [each.result(60) for each in waiting] == [42, 42]
