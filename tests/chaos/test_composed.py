"""Workflows and batches over several real workers that are killed: every graph comes to its one end, every callback comes once."""

from __future__ import annotations

import importlib
import os
import random
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest
from tests.chaos.conftest import Stage
from tests.chaos.places import SOAK

from offload import Record, State
from offload.broker import Feature

pytestmark = [pytest.mark.process, pytest.mark.timeout(1_800 if SOAK else 300)]

COMPOSED = Path(__file__).with_name("composed.py")
EVERYTHING = 1_000_000


@pytest.fixture
def composed(stage: Stage) -> Stage:
    """A stage whose engine keeps workflows and batches."""
    if not {Feature.PARENTS, Feature.BATCH} <= stage.app.broker.features:
        pytest.skip(f"{stage.place.engine} keeps no workflows")
    return stage


@pytest.fixture
def program(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> object:
    """The program as a module, for what it says of its graphs."""
    monkeypatch.setenv("CHAOS_FOLDER", str(stage.folder))
    monkeypatch.setenv("CHAOS_URL", os.environ.get("CHAOS_URL", "memory://"))
    monkeypatch.syspath_prepend(str(COMPOSED.parent))
    return importlib.import_module("composed")


def kill_now_and_then(stage: Stage, kills: int, progress: str, total: int) -> None:
    """Keep three workers at work, and kill one of them at each of several moments."""
    chance = random.Random(7)
    workers = [stage.start_other(COMPOSED, "worker") for _ in range(3)]
    for kill in range(1, kills + 1):
        wanted = total * kill // (kills + 2)
        stage.until(
            lambda wanted=wanted: sum(words[0] == progress for _, words in stage.ledger()) >= wanted, 300, f"enough for kill {kill}"
        )
        stage.kill(workers.pop(chance.randrange(3)))
        workers.append(stage.start_other(COMPOSED, "worker"))


def moments(stage: Stage, name: str) -> dict[tuple[int, int], list[float]]:
    """When the nodes began, or ended, by flow and number."""
    found: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for _, words in stage.ledger():
        if words[0] == name:
            found[int(words[1]), int(words[2])].append(float(words[3]))
    return found


def test_every_graph_comes_to_its_one_end_though_workers_are_killed(composed: Stage, program: object) -> None:
    stage, known = composed, vars(program)
    flows, nodes, kills = (200, 30, 20) if SOAK else (20, 30, 4)
    assert stage.start_other(COMPOSED, "flows", flows, nodes).wait(120) == 0, stage.log()[-4_000:]
    kill_now_and_then(stage, kills, "ended", flows * nodes // 2)

    def over() -> bool:
        tallies = stage.app.workflows(limit=flows + 1)
        return len(tallies) == flows and all(tally.finished_at is not None for tally in tallies)

    stage.until(over, 600 if SOAK else 120, f"all {flows} workflows end")
    records: defaultdict[int, dict[int, Record]] = defaultdict(dict)
    for record in stage.app.find(task="composed.node", limit=EVERYTHING):
        payload = msgspec.json.decode(record.payload)
        records[payload["flow"]][payload["n"]] = record
    began, ended = moments(stage, "began"), moments(stage, "ended")
    for flow in range(flows):
        graph, wanted = known["plans"](flow, nodes), known["expected"](flow, nodes)
        assert [(records[flow][n].state, records[flow][n].result) for n in range(nodes)] == wanted
        for n, plan in enumerate(graph):
            assert ((flow, n) in began) == (wanted[n][0] is not State.CANCELLED)
            for parent in (*plan.takes, *plan.after):
                if (flow, n) in began and (flow, parent) in ended:
                    assert min(began[flow, n]) >= min(ended[flow, parent]), f"{flow}: {n} began before its parent {parent} ended"
    for tally in stage.app.workflows(limit=flows + 1):
        states = [state for state, _ in known["expected"](int(tally.name), nodes)]
        counted = (tally.total, tally.succeeded, tally.dead, tally.cancelled, tally.expired, tally.running)
        assert counted == (nodes, states.count(State.SUCCEEDED), states.count(State.DEAD), states.count(State.CANCELLED), 0, 0)
    print(f"{flows} workflows of {nodes} nodes, {kills} kills, {sum(map(len, began.values()))} attempts")


def test_a_batch_is_counted_exactly_and_calls_back_once_though_workers_are_killed(composed: Stage) -> None:
    stage = composed
    jobs, kills = (100_000, 10) if SOAK else (10_000, 3)
    producer = stage.start_other(COMPOSED, "batch", jobs)
    kill_now_and_then(stage, kills, "ran", jobs)
    assert producer.wait(300) == 0, stage.log()[-4_000:]
    stage.until(lambda: stage.app.batches()[0].finished_at is not None, 900 if SOAK else 120, f"all {jobs} jobs end")
    stage.until(lambda: sum(words[0] == "called" for _, words in stage.ledger()) >= 2, 60, "the callbacks run")
    [tally] = stage.app.batches()
    assert (tally.total, tally.succeeded, tally.state) == (jobs, jobs, "succeeded")
    assert set(stage.ran()) == set(range(jobs))
    assert {record.payload: record.state for record in stage.app.find(task="composed.called")} == {
        b'{"which":"success"}': State.SUCCEEDED,
        b'{"which":"complete"}': State.SUCCEEDED,
    }
    assert sum(state is not State.SUCCEEDED for state in stage.counts()) == 0
    print(f"a batch of {jobs} jobs, {kills} kills")
