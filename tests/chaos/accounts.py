"""What became of every job, and what the workers said meanwhile."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.chaos.conftest import Stage

from offload import State

SAID = re.compile(r"^\S+ \S+ (\d+) offload\.worker ([a-z ]+): the broker (does not answer|answers again)", re.MULTILINE)


def each_ran_once(stage: Stage, jobs: set[int]) -> None:
    """Every job ran once and succeeded at its first attempt; none was rescued, and no worker was taken for dead."""
    stage.until(lambda: stage.counts() == {State.SUCCEEDED: len(jobs)}, 60, f"all {len(jobs)} jobs succeed")
    runs = stage.ran()
    assert set(runs) == jobs, f"never ran: {sorted(jobs - set(runs))[:20]}; not known: {sorted(set(runs) - jobs)[:20]}"
    assert {n: pids for n, pids in runs.items() if len(pids) > 1} == {}, "no job runs twice"
    records = stage.app.find(limit=len(jobs) + 1)
    assert {record.id for record in records} == {f"short-{n}" for n in jobs}
    assert {(record.attempt, record.crashes) for record in records} == {(1, 0)}
    said = "\n".join(line for line in stage.log().splitlines() if " succeeded in " not in line)
    for trouble in (" rescued", "lost its session", "its lease was lost", "Traceback"):
        assert trouble not in said, said[max(said.index(trouble) - 3_000, 0) : said.index(trouble) + 3_000]


def accepted(stage: Stage) -> int:
    """How many jobs the producers know to be stored."""
    return sum(jobs for _, jobs, _ in stage.calls("accepted"))


def said_once_each_time(stage: Stage, outages: int) -> None:
    """Each worker says that the broker is away, and then that it is back, at most once an outage; somebody does say it."""
    stage.until(lambda: all(len(words) % 2 == 0 for words in sayings(stage).values()), 60, "whoever missed the broker says that it is back")
    said = sayings(stage)
    assert said, "no worker noticed anything"
    for who, sentences in said.items():
        words = [what for _, what in sentences]
        assert words[::2] == ["does not answer"] * (len(words) // 2), (who, sentences)
        assert words[1::2] == ["answers again"] * (len(words) // 2), (who, sentences)
        assert len(words) <= 2 * outages, (who, sentences)


def sayings(stage: Stage) -> dict[str, list[tuple[str, str]]]:
    """What each worker, by process id, said of the broker, and which part of it said so."""
    said: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pid, part, what in SAID.findall(stage.log()):
        said[pid].append((part, what))
    return said
