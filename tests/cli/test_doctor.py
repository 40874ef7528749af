"""`offload doctor` and `offload migrate`."""

from __future__ import annotations

import asyncio
import json

from click.testing import Result
from tests.cli.project import Project

from offload import Worker


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


def test_doctor_and_queues_list_the_workers(project: Project) -> None:
    async def looked_at() -> tuple[str, Result, Result]:
        async with Worker(project.app, "default,vip") as worker:
            doctor = await asyncio.to_thread(project.run, "doctor", "--url", "sqlite:///shop.db")
            return worker.name, doctor, await asyncio.to_thread(project.run, "queues", "--url", "sqlite:///shop.db", "--json")

    name, doctor, queues = asyncio.run(looked_at())
    assert name in doctor.stdout
    assert "default, vip" in doctor.stdout
    assert [(each["queue"], each["workers"]) for each in json.loads(queues.stdout)] == [("default", [name]), ("vip", [name])]


def test_migrate_says_from_where_to_where(project: Project) -> None:
    answer = project.json("migrate")
    assert answer["from"] == answer["to"]
    assert f"version {answer['to']} already" in project.ok("migrate")
