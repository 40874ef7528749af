"""Which app a command works with, and what it says when there is none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from tests.cli.project import SHOP, Project

from offload.brokers.sqlite.file import SCHEMA
from offload.testing.servers import PostgresServer


@pytest.mark.parametrize(
    "args",
    [
        ("jobs",),
        ("jobs", "show", "one"),
        ("jobs", "cancel", "one"),
        ("why", "one"),
        ("queues",),
        ("queues", "pause", "default"),
        ("dead",),
        ("schedules",),
        ("workers",),
        ("doctor",),
    ],
)
def test_commands_that_look_make_no_database(project: Project, args: tuple[str, ...]) -> None:
    (project.folder / "elsewhere").mkdir()
    for given, name in (((), "shop.db"), (("--url", "sqlite:///elsewhere/other.db"), "elsewhere/other.db")):
        result = project.run(*args, *given)
        assert (result.exit_code, result.stdout) == (1, "")
        said = f"Error: no such database: {project.folder / name} (nothing was enqueued there yet, or this is another folder)\n"
        assert result.stderr == said
    assert [path for path in project.folder.rglob("*") if ".db" in path.name] == []


@pytest.mark.parametrize("args", [("jobs",), ("doctor",), ("queues", "pause", "default")])
def test_commands_that_look_leave_an_older_schema_to_the_programs_that_use_it(project: Project, args: tuple[str, ...]) -> None:
    project.empty()
    with closing(sqlite3.connect(project.folder / "shop.db")) as connection:
        connection.execute("pragma user_version=1")
        result = project.run(*args)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"shop.db has schema 1 where {SCHEMA} is needed, and may not be changed here; `offload migrate`" in result.stderr
        assert connection.execute("pragma user_version").fetchone() == (1,)


@pytest.mark.parametrize("args", [("enqueue", "greet", "user_id=1"), ("migrate",)])
def test_others_make_it(project: Project, args: tuple[str, ...]) -> None:
    project.ok(*args)
    assert (project.folder / "shop.db").exists()


@pytest.mark.parametrize(
    "args", [("jobs",), ("why", "one"), ("queues",), ("dead",), ("schedules",), ("workers",), ("doctor",), ("queues", "pause", "default")]
)
def test_on_postgresql_too(
    project: Project, args: tuple[str, ...], shared_postgres: Callable[[int | None], PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = shared_postgres(None)
    url = server.database()
    monkeypatch.setenv("OFFLOAD_URL", url)
    project.write("on_server.py", "from offload import Offload\napp = Offload()\n")
    for given in (("--url", url), ("-A", "on_server:app")):
        result = project.run(*args, *given)
        assert (result.exit_code, result.stdout) == (1, "")
        [told] = result.stderr.splitlines()
        assert "nothing was ever enqueued here, and no worker ran: the schema 'offload' is not there" in told
        assert "offload migrate" in told
    assert server.ask("select nspname from pg_namespace where nspname = 'offload'", url.rpartition("/")[2]) == []


def test_the_app_comes_from_the_environment(project: Project) -> None:
    assert project.empty().json("jobs") == []


def test_the_app_comes_from_the_argument_before_the_environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLOAD_APP", "nowhere:app")
    project.empty()
    assert project.json("jobs", "list", "shop:app") == []
    assert project.json("jobs", "shop:app") == []
    assert project.json("jobs", "-A", "shop:app") == []


def test_the_app_comes_from_pyproject(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFLOAD_APP")
    project.write("pyproject.toml", '[tool.offload]\napp = "shop:app"\n')
    assert project.empty().json("jobs") == []


def test_the_app_may_stand_deep_in_a_package(project: Project) -> None:
    project.write("market/__init__.py", "")
    project.write("market/tasks.py", SHOP + "\nclass Holder:\n    inner = app\n")
    assert project.empty().json("jobs", "-A", "market.tasks:Holder.inner") == []


def test_a_broker_alone_is_enough_to_look_at(project: Project) -> None:
    project.ok("enqueue", "greet", "user_id=1")
    assert [job["task"] for job in project.json("jobs", "--url", "sqlite:///shop.db")] == ["greet"]


def test_the_url_may_come_from_the_environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFLOAD_APP")
    monkeypatch.setenv("OFFLOAD_URL", "sqlite:///other.db")
    id = project.ok("enqueue", "greet", "user_id=1").strip()
    assert [each["id"] for each in project.json("jobs")] == [id]
    assert (project.folder / "other.db").exists()


def test_no_app_at_all_is_told_with_the_ways_to_name_one(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFLOAD_APP")
    for command in ("jobs", "worker"):
        result = project.run(command)
        assert result.exit_code == 2
        assert "MODULE:APP" in result.stderr
        assert "OFFLOAD_APP" in result.stderr
        assert "pyproject.toml" in result.stderr


def test_app_and_url_together_are_refused(project: Project) -> None:
    result = project.run("jobs", "-A", "shop:app", "--url", "memory://")
    assert result.exit_code == 2
    assert "not both" in result.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shp:app", ("no module 'shp'", "did you mean shop?")),
        ("market.taks:app", ("no module 'market.taks'", "did you mean tasks?")),
        ("shop:ap", ("no 'ap'", "its apps are: app")),
        ("shop:greet", ("Task, not an Offload", "its apps are: app")),
        ("empty:app", ("no 'app'", "makes no Offload")),
        ("shop", ("say which one: shop:app",)),
        ("shop.py:app", ("as a file", "as a module: shop:app")),
        ("market/tasks.py", ("as a file", "as a module: market.tasks:app")),
        ("./market/tasks.py", ("as a module: market.tasks:app",)),
        ("shop/app", ("as a module: shop:app",)),
        ("jobs/app", ("no such file in", "such as shop.tasks:app")),
        ("shop:asynchronous", ("is an AsyncTask, not an Offload",)),
        ("sh op:app", ("not of the form MODULE:APP",)),
    ],
)
def test_a_name_that_leads_nowhere_is_told_with_what_is_near(project: Project, name: str, said: tuple[str, ...]) -> None:
    project.write("market/__init__.py", "")
    project.write("market/tasks.py", "")
    project.write("empty.py", "")
    project.write("shop.py", SHOP + "\n@app.task\nasync def asynchronous() -> None: ...\n")
    result = project.run("jobs", "-A", name)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    for words in said:
        assert words in result.stderr


def test_who_named_a_missing_app_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLOAD_APP", "shp:app")
    assert "OFFLOAD_APP says shp:app" in project.run("jobs").stderr


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import does_not_exist_anywhere", "ModuleNotFoundError: No module named 'does_not_exist_anywhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_the_module_itself_raises_is_shown_from_its_own_line_on(project: Project, code: str, error: str) -> None:
    project.write("broken.py", code)
    result = project.run("jobs", "-A", "broken:app")
    assert result.exit_code == 1
    assert error in result.stderr
    assert f'File "{project.folder / "broken.py"}"' in result.stderr
    assert "offload/cli/" not in result.stderr


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        ("app = Offload('nonsense://')", 2, "no broker serves 'nonsense'"),
        ("app = Offload()\n@app.task(queue='')\ndef f(): ...", 3, "queue"),
        ("app = Offload('amqp://x')", 2, "does not contain the engine of amqp://"),
    ],
)
def test_what_offload_refuses_in_the_module_is_told_in_one_line_with_its_place(project: Project, code: str, line: int, said: str) -> None:
    file = project.write("refused.py", f"from offload import Offload\n{code}\n")
    for command in (("jobs", "-A", "refused:app"), ("worker", "refused:app")):
        result = project.run(*command)
        assert result.exit_code == (1 if "amqp" in code else 2)
        [told] = result.stderr.splitlines()
        assert said in told
        assert told.startswith("Error: ")
        assert told.endswith(f"({file}, line {line})")


@pytest.mark.parametrize("url", ["mysql://me:hush@db/shop", "postgresql+psycopg://db/shop", "sqlite:///shop.db?journal=off"])
def test_a_mistake_in_the_url_of_the_environment_is_told_in_one_line(project: Project, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OFFLOAD_URL", url)
    project.write("plain.py", "from offload import Offload\napp = Offload()\n")
    result = project.run("doctor", "-A", "plain:app")
    assert result.exit_code == 2
    [told] = result.stderr.splitlines()
    assert told.endswith("plain.py, line 2; OFFLOAD_URL says so)")
    assert "hush" not in told


def test_a_module_that_is_no_python_is_shown_with_its_line(project: Project) -> None:
    project.write("broken.py", "def (:\n")
    result = project.run("jobs", "-A", "broken:app")
    assert result.exit_code == 1
    assert "SyntaxError" in result.stderr
    assert "broken.py" in result.stderr


def test_a_pyproject_that_cannot_be_read_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFLOAD_APP")
    project.write("pyproject.toml", "[tool.offload\n")
    result = project.run("jobs")
    assert result.exit_code == 2
    assert "pyproject.toml cannot be read" in result.stderr
    project.write("pyproject.toml", "[tool.offload]\napp = 7\n")
    assert "must be text" in project.run("jobs").stderr


def test_a_url_that_no_broker_serves_is_a_mistake_of_the_caller(project: Project) -> None:
    result = project.run("jobs", "--url", "nonsense://x")
    assert result.exit_code == 2
    assert "known are memory://, postgres://" in result.stderr
