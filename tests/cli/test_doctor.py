"""`offload doctor` and `offload migrate`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import closing

import pytest
from click.testing import Result
from tests.cli.project import SHOP, Project

from offload import BrokerUnusable, Offload, Worker
from offload.brokers.postgres import migrating
from offload.brokers.sqlite.file import SCHEMA
from offload.testing.servers import PostgresServer


def test_doctor_exits_1_when_something_is_wrong(project: Project) -> None:
    project.ok("enqueue", "greet", "user_id=1")
    result = project.run("doctor")
    assert result.exit_code == 1
    assert "error: no worker is alive while jobs are ready" in result.stdout
    assert "offload worker" in result.stdout


def test_doctor_exits_0_when_nothing_is_and_says_what_is_worth_knowing(project: Project) -> None:
    project.ok("enqueue", "greet", "user_id=1")
    big = project.ok("enqueue", "greet", "user_id=1", f"note={'x' * 20_000}").strip()
    project.drain()
    answer = project.json("doctor")
    assert answer["engine"] == "SQLite"
    by_title = {finding["title"]: finding for finding in answer["findings"]}
    assert "greet:" in by_title["the slowest tasks"]["detail"]
    assert big in by_title["payloads over 16 KiB"]["detail"]
    assert "Pass ids" in by_title["payloads over 16 KiB"]["advice"]
    assert {finding["severity"] for finding in answer["findings"]} <= {"warning", "info"}


def test_dead_jobs_are_to_be_looked_at_and_no_fault_of_the_set_up(project: Project) -> None:
    project.write("shop.py", SHOP.partition("@app.cron")[0])  # without a schedule, which would miss a worker
    for task in ("boom", "boom", "crash"):
        project.ok("enqueue", task)
    project.drain()
    said = project.ok("doctor")
    assert "All is well with the set-up; look at the dead jobs.\n\ninfo: 3 jobs are dead\n" in said
    assert "By queue: bad (3). Tasks: boom and crash." in said
    assert "`offload jobs list --state DEAD` lists them" in said
    assert "3 jobs are dead" in [finding.title for finding in project.app.doctor()]


def test_doctor_names_the_file(project: Project) -> None:
    assert str(project.folder / "shop.db") in project.empty().ok("doctor").splitlines()[0]


def test_of_jobs_in_memory_doctor_says_that_no_worker_elsewhere_sees_them(project: Project) -> None:
    said = project.ok("doctor", "--url", "memory://")
    assert said.splitlines()[:3] == ["memory", "", "All is well."]
    assert "in this process only" in said
    assert "offload worker" not in said


def test_no_worker_says_so(project: Project) -> None:
    assert "start one with `offload worker`" in project.empty().run("workers").stderr


def test_doctor_and_workers_and_queues_list_the_workers(project: Project) -> None:
    async def look(*args: str) -> Result:
        return await asyncio.to_thread(project.run, *args, "--url", "sqlite:///shop.db")

    async def looked_at() -> tuple[str, Result, Result, Result, Result]:
        async with Worker(project.app, "default,vip") as worker:
            return worker.name, await look("doctor"), await look("queues", "--json"), await look("workers"), await look("workers", "--json")

    name, doctor, queues, workers, plain = asyncio.run(looked_at())
    assert "All is well." in doctor.stdout
    assert "1 worker with 0 running jobs; see `offload workers`." in doctor.stdout
    assert workers.stdout.splitlines()[0].split()[:4] == ["worker", "queues", "tasks", "running"]
    assert workers.stdout.splitlines()[1].split()[:5] == [name, "default,", "vip", "6", "0"]
    [worker] = json.loads(plain.stdout)
    assert (worker["name"], worker["queues"], worker["running"], worker["silent"]) == (name, ["default", "vip"], 0, False)
    assert [(each["queue"], each["workers"]) for each in json.loads(queues.stdout)] == [("default", [name]), ("vip", [name])]


def test_migrate_says_from_where_to_where(project: Project) -> None:
    assert project.ok("migrate") == f"The schema was made, in version {SCHEMA}.\n"
    assert project.ok("migrate") == f"The schema has version {SCHEMA} already.\n"
    assert project.json("migrate") == {"from": SCHEMA, "to": SCHEMA}


def test_migrate_finds_nothing_in_an_empty_file(project: Project) -> None:
    project.write("empty.db", "")
    assert project.json("migrate", "--url", "sqlite:///empty.db") == {"from": 0, "to": SCHEMA}


def test_on_postgresql_migrate_says_so_too(project: Project, shared_postgres: Callable[[int | None], PostgresServer]) -> None:
    url = shared_postgres(None).database()
    assert [project.json("migrate", "--url", given) for given in (url, f"{url}?migrate=false", url)] == [
        {"from": 0, "to": migrating.SCHEMA},
        {"from": migrating.SCHEMA, "to": migrating.SCHEMA},
        {"from": migrating.SCHEMA, "to": migrating.SCHEMA},
    ]


def test_an_app_that_may_not_make_its_schema_can_be_used_once_it_was_migrated(
    shared_postgres: Callable[[int | None], PostgresServer],
) -> None:
    with closing(Offload(f"{shared_postgres(None).database()}?migrate=false")) as app:
        with pytest.raises(BrokerUnusable):
            app.enqueue("greet")
        assert app.migrate() == (0, migrating.SCHEMA)
        app.enqueue("greet")


def test_on_postgresql_doctor_names_the_schema_apart_from_its_version(
    project: Project, shared_postgres: Callable[[int | None], PostgresServer]
) -> None:
    url = f"{shared_postgres(None).database()}?schema=jobs"
    project.ok("migrate", "--url", url)
    head = project.ok("doctor", "--url", url).splitlines()[0]
    assert f", schema version {migrating.SCHEMA}, postgresql://" in head
    assert head.endswith(" in the schema 'jobs'")
