"""Orders, limits and rates by key over several real workers, killed and stopped with real signals; the jobs themselves measure."""

from __future__ import annotations

import random
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.chaos.conftest import Stage
from tests.chaos.places import SOAK

from offload import State
from offload.broker import Feature

pytestmark = [pytest.mark.process, pytest.mark.timeout(900 if SOAK else 300)]

LIMITED = Path(__file__).with_name("limited.py")


@pytest.fixture
def keyed(stage: Stage) -> Stage:
    """A stage whose engine keeps keys."""
    if Feature.LIMITS not in stage.app.broker.features:
        pytest.skip(f"{stage.place.engine} does not keep limits by key yet")
    return stage


def events(stage: Stage, *names: str) -> list[tuple[float, str, list[int]]]:
    """What jobs noted, in order of time: (time, name, numbers)."""
    found = [(float(words[-1]), words[0], [int(word) for word in words[1:-1]]) for _, words in stage.ledger() if words[0] in names]
    return sorted(found)


def enqueued(stage: Stage, task: str, jobs: int, keys: int) -> None:
    """Have a producer enqueue jobs, and wait for it."""
    producer = stage.start_other(LIMITED, "produce", task, jobs, keys)
    assert producer.wait(120) == 0, stage.log()[-4000:]


def done(stage: Stage, jobs: int) -> bool:
    """Whether all have succeeded."""
    return stage.counts() == {State.SUCCEEDED: jobs}


def test_jobs_of_a_key_keep_their_order_through_kills_and_failures(keyed: Stage) -> None:
    stage = keyed
    jobs, keys, kills = (20_000, 500, 10) if SOAK else (2_000, 50, 4)
    chance = random.Random(7)
    enqueued(stage, "ordered", jobs, keys)
    workers = [stage.start_other(LIMITED, "worker") for _ in range(3)]
    for kill in range(1, kills + 1):
        stage.until(lambda kill=kill: len(events(stage, "did")) >= jobs * kill // (kills + 2), 120, f"enough jobs ran for kill {kill}")
        stage.kill(workers.pop(chance.randrange(3)))
        workers.append(stage.start_other(LIMITED, "worker"))
    stage.until(lambda: done(stage, jobs), 400 if SOAK else 120, f"all {jobs} jobs succeed")

    by_key: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for _, name, (key, n) in events(stage, "began", "did"):
        by_key[key].append((name, n))
    for key, happened in by_key.items():
        assert [n for _, n in happened] == sorted(n for _, n in happened), f"key {key} out of order: {happened}"
        assert {n for name, n in happened if name == "did"} == set(range(jobs // keys))
    assert stage.app.limits() == []
    print(f"{jobs} jobs of {keys} keys in order, {kills} kills")


def peak(moments: Sequence[tuple[float, str]]) -> int:
    """The most that were in at one time."""
    inside = highest = 0
    for _, name in moments:
        inside += 1 if name == "in" else -1
        highest = max(highest, inside)
    return highest


def test_a_concurrency_limit_is_used_and_never_exceeded(keyed: Stage) -> None:
    stage = keyed
    jobs, keys = (5_000, 10) if SOAK else (600, 10)
    enqueued(stage, "together", jobs, keys)
    for _ in range(3):
        stage.start_other(LIMITED, "worker")
    stage.until(lambda: done(stage, jobs), 240, f"all {jobs} jobs succeed")

    by_key: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for at, name, (key,) in events(stage, "in", "out"):
        by_key[key].append((at, name))
    assert {key: peak(moments) for key, moments in by_key.items()} == dict.fromkeys(range(keys), 3)
    assert stage.app.limits() == []


def test_a_tenant_with_few_jobs_is_served_within_two_rounds(keyed: Stage) -> None:
    stage = keyed
    if Feature.FAIRNESS not in stage.app.broker.features:
        pytest.skip(f"{stage.place.engine} does not take turns by key yet")
    many, few, slots = (100_000, 10, 60) if SOAK else (20_000, 10, 60)
    enqueued(stage, "fairly", many, 1)
    for _ in range(3):
        stage.start_other(LIMITED, "worker")
    stage.until(lambda: len(events(stage, "served")) > slots, 60, "the first tenant is served")
    enqueued(stage, "fairly", few, 2)
    stage.until(lambda: sum(numbers == [2] for _, _, numbers in events(stage, "served")) == few, 60, "the second tenant is served")
    came = max(at for at, _, numbers in events(stage, "enqueued") if numbers == [2])
    last = max(at for at, _, numbers in events(stage, "served") if numbers == [2])
    others = sum(came < at < last for at, _, numbers in events(stage, "served") if numbers == [1])
    print(f"{others} jobs of the first tenant ran before the last of the second")
    assert others <= 2 * slots
    assert stage.counts().get(State.READY, 0) > 0, "the first tenant still stands in line"


def most_within(starts: Sequence[float], span: float) -> int:
    """The most starts in any `span` seconds."""
    first = most = 0
    for last, start in enumerate(starts):
        while starts[first] <= start - span:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_a_rate_is_kept_by_all_workers_together_and_makes_up_for_no_pause(keyed: Stage) -> None:
    stage = keyed
    rate, seconds, pause = 200, 20 if SOAK else 4, 5 if SOAK else 2
    jobs = rate * (seconds + 1)
    workers = [stage.start_other(LIMITED, "worker") for _ in range(3)]
    stage.until(lambda: len(stage.app.workers()) == 3, 60, "the workers are there")
    enqueued(stage, "paced", jobs, 1)
    stage.until(lambda: stage.counts().get(State.SUCCEEDED, 0) >= rate, 60, "the first second of jobs ran")
    for worker in workers:
        stage.freeze(worker)
    time.sleep(pause)  # what is tested is that nothing gathers meanwhile
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    stage.until(lambda: done(stage, jobs), 120, f"all {jobs} jobs succeed")

    starts = sorted(record.started_at.timestamp() for record in stage.app.find(limit=jobs) if record.started_at is not None)
    assert len(starts) == jobs
    gap = max(range(1, jobs), key=lambda i: starts[i] - starts[i - 1])
    assert starts[gap] - starts[gap - 1] >= pause / 2
    for span in (0.1, 1.0):
        allowed = rate * (span + 0.02) + 1
        assert most_within(starts, span) <= allowed, f"{most_within(starts, span)} in {span} s, of at most {allowed:g}"
    after = starts[gap:]
    reached = (len(after) - 1) / (after[-1] - after[0])
    print(f"{reached:.1f} starts a second of {rate}; most in a second {most_within(starts, 1.0)}")
    if SOAK:
        assert reached >= 0.98 * rate
