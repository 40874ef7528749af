"""Workers are killed while they end jobs in transactions: each job leaves its row and its receipt once, and no more."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from tests.chaos.conftest import Stage
from tests.chaos.places import SOAK

from offload import State

pytestmark = [pytest.mark.process, pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)]

JOBS = 3_000 if SOAK else 300
KILLS = 80 if SOAK else 8


@contextmanager
def connected(stage: Stage) -> Iterator[Any]:
    if stage.place.engine == "sqlite":
        with closing(sqlite3.connect(stage.folder / "queue.db", timeout=30)) as connection:
            yield connection
    else:
        import psycopg

        with closing(psycopg.connect(stage.url)) as connection:
            yield connection


def create(stage: Stage) -> None:
    """The user's table beside the jobs. Nothing keeps a row from being there twice."""
    stage.app.migrate()
    with connected(stage) as connection:
        connection.execute("create table entries (n integer)")
        connection.commit()


def entries(stage: Stage) -> list[int]:
    with connected(stage) as connection:
        return sorted(row[0] for row in connection.execute("select n from entries").fetchall())


def work(stage: Stage) -> Any:
    return stage.command("worker", "shop:app", "--children", "2")


def ended(stage: Stage) -> bool:
    return not set(stage.counts()) - {State.SUCCEEDED}


@pytest.mark.timeout(1_200 if SOAK else 240)
@pytest.mark.parametrize("task", ["entry", "aentry", "child_entry"])
def test_rows_written_by_killed_workers_are_there_once(stage: Stage, task: str) -> None:
    create(stage)
    stage.app.enqueue_many(stage.app.using().job(f"shop.{task}", n=n) for n in range(JOBS))
    chance = random.Random(7)
    workers = [work(stage) for _ in range(2)]
    for kill in range(1, KILLS + 1):
        stage.until(lambda kill=kill: len(entries(stage)) >= JOBS * kill // (KILLS + 2), 60, f"enough rows for kill {kill}")
        stage.kill(workers.pop(chance.randrange(2)))
        workers.append(work(stage))
    stage.until(lambda: ended(stage), 300 if SOAK else 90, "all jobs have ended")
    assert entries(stage) == list(range(JOBS))
    records = stage.app.find(limit=2 * JOBS + 1)
    receipts = sorted(record.result for record in records if record.task == "shop.receipt")
    assert receipts == list(range(JOBS))
    assert sorted(record.result for record in records if record.task == f"shop.{task}") == list(range(JOBS))
    assert len(stage.killed) == KILLS
    crashes = sum(record.crashes for record in records)
    assert crashes, "no kill met a job at work; the test shows nothing"
    print(f"{JOBS} jobs, {KILLS} kills, {crashes} crashes of jobs")


@pytest.mark.timeout(1_200 if SOAK else 240)
def test_of_transactional_enqueues_exactly_the_committed_ones_run(stage: Stage) -> None:
    create(stage)
    workers = [work(stage) for _ in range(2)]
    with connected(stage) as connection:
        for n in range(JOBS):
            connection.execute(f"insert into entries (n) values ({-n - 1})")
            stage.app.using(connection=connection).enqueue("shop.entry", n=n)
            connection.rollback() if n % 3 == 0 else connection.commit()
            if n % (JOBS // 4) == JOBS // 8:
                stage.kill(workers.pop(0))
                workers.append(work(stage))
        committed = [n for n in range(JOBS) if n % 3]
        stage.until(lambda: len(entries(stage)) >= 2 * len(committed) and ended(stage), 300 if SOAK else 90, "what was committed has run")
    assert entries(stage) == sorted([*(-n - 1 for n in committed), *committed])
    assert stage.counts() == {State.SUCCEEDED: 2 * len(committed)}
