"""The program of workflows and batches under chaos. What each graph must come to can be reckoned from its number alone.

python composed.py worker
python composed.py flows COUNT NODES
python composed.py batch JOBS
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from dataclasses import dataclass

from program import app, note

from offload import Discard, Retry, State, Workflow, current
from offload.job import IfParentFails
from offload.worker import Worker
from offload.worker.process import leave, work


@dataclass(frozen=True)
class Plan:
    """What one node of a graph waits for, and how it ends once it runs."""

    takes: tuple[int, ...]
    after: tuple[int, ...]
    policy: IfParentFails
    fate: str


def plans(flow: int, nodes: int) -> list[Plan]:
    """The graph of that number."""
    chance = random.Random(flow)
    made: list[Plan] = []
    for n in range(nodes):
        parents = chance.sample(range(n), min(n, chance.choice([0, 1, 1, 2, 2, 3])))
        taken = tuple(parent for parent in parents if chance.random() < 0.6)
        policy: IfParentFails = "run" if chance.random() < 0.3 else "cancel"
        fate = chance.choices(["returns", "fails once", "is discarded"], [85, 10, 5])[0]
        made.append(Plan(taken, tuple(parent for parent in parents if parent not in taken), policy, fate))
    return made


def expected(flow: int, nodes: int) -> list[tuple[State, int | None]]:
    """How each node of a graph must end, and what it returns."""
    ends: list[tuple[State, int | None]] = []
    for plan in plans(flow, nodes):
        if plan.policy == "cancel" and any(ends[parent][0] is not State.SUCCEEDED for parent in (*plan.takes, *plan.after)):
            ends.append((State.CANCELLED, None))
        elif plan.fate == "is discarded":
            ends.append((State.DEAD, None))
        else:
            ends.append((State.SUCCEEDED, 1 + sum(ends[parent][1] or 0 for parent in plan.takes)))
    return ends


@app.task(retry=Retry(max_retries=3, initial=0.05, jitter=0))
async def node(flow: int, n: int, fate: str, given: list[int | None]) -> int:
    """Adds up what it was given."""
    note("began", flow, n, time.monotonic())
    await asyncio.sleep(0.002 * (n % 3))
    if fate == "fails once" and current.attempt == 1:
        raise ValueError(n)
    note("ended", flow, n, time.monotonic())
    if fate == "is discarded":
        raise Discard
    return 1 + sum(number or 0 for number in given)


@app.task
async def part(n: int) -> None:
    """One of a batch."""
    note("ran", n)


@app.task
async def called(which: str) -> None:
    """A callback."""
    note("called", which)


def flows(count: int, nodes: int) -> None:
    """Enqueue graphs."""
    for flow in range(count):
        graph = Workflow(str(flow))
        added = []
        for n, plan in enumerate(plans(flow, nodes)):
            job = node.job(flow, n, plan.fate, [added[parent].output for parent in plan.takes])
            added.append(graph.add(job, after=[added[parent] for parent in plan.after], if_parent_fails=plan.policy))
        graph.enqueue()
    note("enqueued", count)


def batch(jobs: int) -> None:
    """Enqueue a batch with all its callbacks."""
    ends = {f"on_{which}": called.job(which) for which in ("success", "failure", "complete")}
    with app.batch("all", id="all", **ends) as made:
        made.add_many(part.job(n) for n in range(jobs))
    note("enqueued", jobs)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(name)s %(message)s")
    match sys.argv[1]:
        case "worker":
            leave(work(lambda: Worker(app, concurrency=50)))
        case "flows":
            flows(int(sys.argv[2]), int(sys.argv[3]))
        case _:
            batch(int(sys.argv[2]))
