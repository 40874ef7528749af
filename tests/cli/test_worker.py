"""`offload worker`, as real processes on one SQLite file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.cli.project import Project, eventually

from offload import State
from offload.clients import without_secrets
from offload.worker.greeting import some


class Running:
    """Starts workers of a project, and ends what a failed test leaves."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = self.project.start("worker", *args)
        self.processes.append(process)
        return process

    def pids(self) -> list[int]:
        """The processes that ran `whoami`, one a run."""
        file = self.project.folder / "pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def ran(self, count: int) -> None:
        """Wait until `whoami` ran so many times."""
        eventually(lambda: len(self.pids()) >= count, f"{count} runs: {self.project.log()}")

    def up(self, count: int = 1) -> set[int]:
        """Wait until so many workers have sessions. Returns their process ids."""

        def sessions() -> set[int] | None:
            found = {session.info.pid for session in self.project.app.workers()}
            return found if len(found) == count else None

        return eventually(sessions, f"{count} workers")


def ended(process: subprocess.Popen[str], code: int = 0) -> None:
    assert process.wait(30) == code


@pytest.fixture
def running(project: Project) -> Iterator[Running]:
    made = Running(project)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.process
def test_it_says_what_it_does_runs_jobs_and_ends_well_when_told(project: Project, running: Running) -> None:
    worker = running.start()
    id = project.ok("enqueue", "whoami").strip()
    eventually(lambda: project.succeeded(id), "the job ran")
    assert project.record(id).result == worker.pid
    worker.terminate()
    ended(worker)
    start = project.log().splitlines()[0]
    for said in (f":{worker.pid} ", "all queues", "shop:app", "sqlite:///shop.db", "6 tasks", "greet"):
        assert said in start


@pytest.mark.process
def test_burst_ends_when_nothing_is_left(project: Project, running: Running) -> None:
    ids = [project.ok("enqueue", "whoami").strip() for _ in range(3)]
    project.ok("enqueue", "boom")
    ended(running.start("--burst"))
    assert project.succeeded(*ids)
    assert len(project.json("dead")) == 1


@pytest.mark.process
def test_only_the_queues_asked_for_are_served(project: Project, running: Running) -> None:
    vip = project.ok("enqueue", "whoami", "--queue", "vip").strip()
    other = project.ok("enqueue", "whoami").strip()
    ended(running.start("-q", "vip", "-q", "gold", "--burst", "-c", "2", "--threads", "1", "--children", "1", "--grace", "5s"))
    assert project.succeeded(vip)
    assert project.record(other).state is State.READY
    assert "queues vip,gold of" in project.log()


@pytest.mark.process
def test_json_logs_are_one_object_a_line(project: Project, running: Running) -> None:
    id = project.ok("enqueue", "whoami").strip()
    ended(running.start("--burst", "--json-logs", "--log-level", "debug"))
    events = [json.loads(line) for line in project.log().splitlines()]
    [succeeded] = [event for event in events if "succeeded" in event["message"]]
    assert (succeeded["job_id"], succeeded["task"], succeeded["queue"], succeeded["attempt"]) == (id, "whoami", "default", 1)


@pytest.mark.process
def test_after_max_jobs_it_replaces_itself(project: Project, running: Running) -> None:
    worker = running.start("--max-jobs", "1", "-c", "1")
    for number in range(1, 4):
        project.ok("enqueue", "whoami")
        running.ran(number)
        eventually(lambda number=number: project.log().count("it knows") > number, "a fresh start")
    worker.terminate()
    ended(worker)
    assert set(running.pids()) == {worker.pid}
    assert project.log().count("due to be recycled: it has run 1 jobs") == 3


@pytest.mark.process
def test_above_max_memory_it_replaces_itself_and_still_ends_when_told(project: Project, running: Running) -> None:
    worker = running.start("--max-memory", "1KB")
    for number in (1, 2):
        project.ok("enqueue", "whoami")
        running.ran(number)
        eventually(lambda number=number: project.log().count("it knows") > number, "a fresh start")
    worker.terminate()
    ended(worker)
    assert "MiB" in project.log()


@pytest.mark.process
def test_a_supervised_worker_that_is_killed_is_replaced(project: Project, running: Running) -> None:
    supervisor = running.start("-p", "2")
    first = running.up(2)
    assert supervisor.pid not in first
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    replaced = eventually(
        lambda: (pids := {session.info.pid for session in project.app.workers()}) - first and victim not in pids and pids, "a new one"
    )
    assert len(replaced) == 2
    ids = [project.ok("enqueue", "whoami").strip() for _ in range(4)]
    eventually(lambda: project.succeeded(*ids), "the jobs ran")
    assert set(running.pids()) <= replaced
    supervisor.terminate()
    ended(supervisor)
    assert project.app.workers() == []


@pytest.mark.process
def test_ctrl_c_lets_supervised_workers_finish(project: Project, running: Running) -> None:
    supervisor = running.start("-p", "2")
    running.up(2)
    id = project.ok("enqueue", "slow").strip()
    eventually(lambda: project.record(id).state is State.RUNNING, "it runs")
    os.killpg(supervisor.pid, signal.SIGINT)  # as a terminal does
    eventually(lambda: project.log().count("told to stop") == 2, "both workers heard")
    project.write("go", "")
    ended(supervisor)
    assert project.succeeded(id)


@pytest.mark.process
def test_supervised_workers_that_ask_for_it_are_replaced_at_once(project: Project, running: Running) -> None:
    supervisor = running.start("-p", "2", "--max-jobs", "1", "-c", "1")
    for number in range(1, 4):
        project.ok("enqueue", "whoami")
        running.ran(number)
        eventually(lambda number=number: project.log().count("it knows") > 1 + number, "a fresh process")
    supervisor.terminate()
    ended(supervisor)
    assert len(set(running.pids())) == 3


@pytest.mark.process
def test_burst_ends_all_supervised_workers(project: Project, running: Running) -> None:
    ids = [project.ok("enqueue", "whoami").strip() for _ in range(4)]
    ended(running.start("-p", "2", "--burst"))
    assert project.succeeded(*ids)


@pytest.mark.process
def test_the_supervisor_does_not_import_the_app(project: Project, running: Running) -> None:
    project.write(
        "shop.py", (project.folder / "shop.py").read_text() + '\nwith Path("imported").open("a") as f: print(os.getpid(), file=f)\n'
    )
    supervisor = running.start("-p", "2", "--burst")
    ended(supervisor)
    imported = {int(line) for line in (project.folder / "imported").read_text().split()}
    assert len(imported) == 2
    assert supervisor.pid not in imported


@pytest.mark.process
def test_workers_leave_when_their_supervisor_is_killed(project: Project, running: Running) -> None:
    supervisor = running.start("-p", "1", "--reload")
    running.up(1)
    supervisor.kill()
    supervisor.wait()
    eventually(lambda: project.app.workers() == [], "the worker left")


@pytest.mark.process
def test_reload_restarts_when_a_python_file_changes(project: Project, running: Running) -> None:
    supervisor = running.start("--reload", "--grace", "1")
    first = running.up(1)
    shop = project.folder / "shop.py"
    code = shop.read_text().replace('name="whoami"', 'name="renamed"')

    def restarted() -> bool:
        shop.write_text(code + f"# {os.urandom(4).hex()}\n")  # again and again: the first may come before the watcher is up
        return "source files changed" in project.log()

    eventually(restarted, "the change was seen")
    eventually(lambda: "renamed" in project.log(), "the new code was loaded")
    assert eventually(lambda: {session.info.pid for session in project.app.workers()} - first, "a new session")
    supervisor.terminate()
    ended(supervisor)


@pytest.mark.process
def test_reload_without_its_package_names_the_extra(project: Project) -> None:
    code = "import sys; sys.modules['watchfiles'] = None; from offload.cli import main; main(['worker', '--reload'])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=project.folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "pip install '.[reload]'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.process
def test_a_module_that_cannot_be_imported_ends_it_with_its_traceback(project: Project, running: Running) -> None:
    project.write("broken.py", "1 / 0")
    ended(running.start("broken:app"), 1)
    assert "ZeroDivisionError" in project.log()


@pytest.mark.process
def test_an_app_that_is_not_there_ends_the_supervisor_too(project: Project, running: Running) -> None:
    ended(running.start("shop:ap", "-p", "2"), 2)
    assert "its apps are: app" in project.log()


@pytest.mark.process
def test_under_reload_a_broken_module_is_tried_again_as_soon_as_it_is_mended(project: Project, running: Running) -> None:
    project.write("broken.py", "app = None\n")
    supervisor = running.start("broken:app", "--reload")
    eventually(lambda: "a new one starts in" in project.log(), "it was tried twice")

    def mended() -> bool:
        project.write("broken.py", f"from shop import app\n# {os.urandom(4).hex()}\n")
        return "source files changed" in project.log()

    eventually(mended, "the change was seen")
    running.up(1)
    supervisor.terminate()
    ended(supervisor)


@pytest.mark.process
def test_a_memory_broker_is_warned_of(project: Project, running: Running) -> None:
    project.write("fleeting.py", "from offload import Offload\napp = Offload('memory://')\n")
    ended(running.start("fleeting:app", "--burst"))
    assert "in this process only" in project.log()
    assert "no task" in project.log()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("shop:app", "-q", "a,a"), "give each queue once"),
        (("shop:app", "-q", ""), "give each queue once"),
        (("shop:app", "-c", "0"), "0"),
        (("shop:app", "--max-memory", "huge"), "500MB"),
        (("shop:app", "--log-level", "loud"), "loud"),
        (("shp:app", "-p", "2"), "did you mean shop?"),
    ],
)
def test_what_cannot_work_exits_2_at_once(project: Project, args: tuple[str, ...], said: str) -> None:
    result = project.run("worker", *args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_of_many_names_some_are_said() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hush@db:5432/shop?x=1", "postgresql://me:***@db:5432/shop?x=1"),
        ("postgresql://db/shop?password=hush&schema=jobs", "postgresql://db/shop?password=***&schema=jobs"),
        ("postgresql://db/shop?pgbouncer=true&listen=postgresql://me:hush@db/shop", "postgresql://db/shop?pgbouncer=true&listen=***"),
        ("redis://:hush@db:6379/0", "redis://:***@db:6379/0"),
        ("redis+sentinel://db/main?sentinel_password=hush", "redis+sentinel://db/main?sentinel_password=***"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("postgresql:///shop?host=/run/postgresql", "postgresql:///shop?host=/run/postgresql"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
