"""Real processes on one queue, killed, frozen and stopped with real signals; then every job is accounted for."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import pytest
from tests.chaos.conftest import MANY, Stage
from tests.chaos.places import ENGINES, SOAK

from offload import Handle, State

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


@pytest.mark.timeout(900 if SOAK else 300)
def test_killed_workers_lose_nothing_and_only_their_own_jobs_run_again(stage: Stage) -> None:
    jobs, kills = (20_000, 20) if SOAK else (3_000, 8)
    chance = random.Random(5)
    for first in (0, jobs // 2):
        stage.start("produce", first, jobs // 2, 50, 0)
    workers = [stage.start("worker") for _ in range(3)]
    stage.until(lambda: len(stage.ran()) > 20, 60, "the first jobs run")
    for kill in range(1, kills + 1):
        stage.until(lambda kill=kill: len(stage.ran()) >= jobs * kill // (kills + 2), 60, f"enough jobs ran for kill {kill}")
        victim = workers.pop(chance.randrange(3))
        stage.kill(victim)
        workers.append(stage.start("worker"))
    stage.until(lambda: stage.counts() == {State.SUCCEEDED: jobs}, 240 if SOAK else 60, f"all {jobs} jobs succeed")

    runs = stage.ran()
    assert set(runs) == set(range(jobs))
    repeated = {n: pids for n, pids in runs.items() if len(pids) > 1}
    for n, pids in repeated.items():
        survivors = [pid for pid in pids if pid not in stage.killed]
        assert len(survivors) <= 1, f"job {n} ran in {pids}, of which only {stage.killed} were killed"
    assert len(stage.killed) == kills
    assert repeated, "no kill met a job at work; the test shows nothing"
    print(f"{jobs} jobs, {kills} kills, {len(repeated)} jobs ran again")


def started(stage: Stage, handle: Handle[Any]) -> list[int]:
    """The processes in which a long job started."""
    return [pid for pid, words in stage.ledger() if words == ["started", handle.id]]


@pytest.mark.parametrize("place", ENGINES if SOAK else ["sqlite", "postgresql", "redis"], indirect=True)
def test_a_crash_is_run_again_within_twenty_seconds_at_the_defaults(stage_at_defaults: Stage) -> None:
    stage = stage_at_defaults
    handle = stage.app.enqueue("program.long", seconds=60.0)
    victim = stage.start("worker")
    stage.until(lambda: started(stage, handle), 60, "the job starts")
    other = stage.start("worker")
    stage.until(lambda: len(stage.app.workers()) == 2, 60, "another worker is there")
    stage.kill(victim)
    died = time.monotonic()
    stage.until(lambda: len(started(stage, handle)) == 2, 25, "the job starts again")
    took = time.monotonic() - died
    assert took < 20
    assert set(started(stage, handle)) == {victim.pid, other.pid}
    assert (handle.record().attempt, handle.record().crashes) == (1, 1)
    print(f"run again {took:.1f} s after the crash")


def test_a_frozen_worker_cannot_record_its_late_outcome(stage: Stage) -> None:
    frozen = stage.start("worker")
    handle = stage.app.enqueue("program.long", seconds=1.0)
    stage.until(lambda: started(stage, handle) == [frozen.pid], 60, "the job starts")
    stage.freeze(frozen)
    other = stage.start("worker")
    stage.until(lambda: handle.record().state is State.SUCCEEDED, 60, "another worker runs the job")
    before = handle.record()
    frozen.send_signal(signal.SIGCONT)
    stage.until(lambda: f"{frozen.pid} lost its session" in stage.log(), 60, "the frozen worker learns that it lost its session")
    after = stage.app.enqueue("program.long", seconds=0.0)
    stage.until(lambda: after.record().state is State.SUCCEEDED, 60, "work goes on")
    stage.until(lambda: len(stage.app.workers()) == 2, 60, "the frozen worker has opened a new session")
    assert handle.record() == before
    assert before.result == other.pid
    assert before.crashes == 1


def test_sigterm_hands_back_what_does_not_end_in_time(stage: Stage) -> None:
    worker = stage.start("worker", CHAOS_GRACE="0.3")
    handles = [stage.app.enqueue("program.long", seconds=60) for _ in range(3)]
    stage.until(lambda: all(started(stage, handle) for handle in handles), 60, "the jobs start")
    told = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=10) == 0
    left = time.monotonic() - told
    records = [handle.record() for handle in handles]
    assert [(record.state, record.attempt, record.crashes) for record in records] == [(State.READY, 0, 0)] * 3
    assert left < 8, f"a grace of 0.3 s took {left:.1f} s"
    assert stage.app.workers() == []


def test_a_killed_producer_leaves_all_of_a_thousand_or_none(stage: Stage) -> None:
    chance = random.Random(11)
    seen: set[int] = set()
    before = 0
    for round in range(5 if stage.place.server else 12):
        producer = stage.start("produce", round * MANY, MANY, 1_000, 0)
        ready = lambda pid=producer.pid: any(at == pid for at, _ in stage.ledger())
        stage.until(ready, 60, "the producer starts")
        time.sleep(chance.random() * 0.3)  # the very moment of the kill is what the test varies
        stage.kill(producer)
        total = sum(stage.counts().values())
        assert total % 1_000 == 0, f"round {round}: {total % 1_000} of a thousand were stored"
        seen.add(total - before)
        before = total
    assert len(seen) > 1, "every kill came at the same point; the test shows nothing"
