"""Tasks in child processes: their death harms no one else, and what keeps crashing workers ends up there."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.conftest import Eventually
from tests.worker import program as tasks
from tests.worker.program import Marks
from tests.worker.running import ended

from offload import BadDeclaration, Offload, State, Worker
from offload.job import Pulse, WorkerInfo
from offload.testing.clock import TestClock
from offload.worker.source import Home, Source, source_of

pytestmark = [pytest.mark.anyio, pytest.mark.process]


ROOM: Any = {"async": 100, "thread": 100, "process": 100}


@pytest.mark.parametrize(("way", "how"), [("segfault", "killed by SIGSEGV"), ("SIGKILL", "killed by SIGKILL"), ("os._exit", "exit code 9")])
async def test_the_death_of_a_child_is_a_failed_attempt_and_the_pool_goes_on(program: Offload, way: str, how: str) -> None:
    async with Worker(program, processes=1):
        record = await ended(await tasks.end_process.aenqueue(way))
        assert (record.state, record.attempt, record.crashes) == (State.DEAD, 2, 0)
        assert [failure.message for failure in record.errors] == [f"the child process died: {how}"] * 2
        assert record.errors[0].type == "offload.worker.children.ChildDied"
        assert await (await tasks.end_process.aenqueue("well")).aresult(20) == "well"


async def test_a_child_that_dies_while_it_is_idle_is_replaced(program: Offload, eventually: Eventually) -> None:
    async with Worker(program, processes=1):
        pid = (await (await tasks.look_process.aenqueue()).aresult(20))["pid"]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not psutil.pid_exists(pid))
        record = await ended(await tasks.end_process.aenqueue("well"))
        assert (record.state, record.attempt, record.errors) == (State.SUCCEEDED, 1, ())


async def test_children_are_kept_for_the_next_attempt_and_end_with_the_worker(program: Offload, eventually: Eventually) -> None:
    async with Worker(program, processes=2):
        pids = {(await (await tasks.look_process.aenqueue()).aresult(20))["pid"] for _ in range(3)}
        assert len(pids) == 1
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))


async def test_what_a_task_prints_does_not_disturb_the_messages(program: Offload) -> None:
    async with Worker(program, processes=1):
        assert await (await tasks.print_process.aenqueue()).aresult(20) == "printed"


async def test_an_app_that_no_child_could_import_is_refused_when_the_worker_starts(app: Offload) -> None:
    @app.task(name="thumbnail", isolation="process")
    def thumbnail() -> None: ...

    with pytest.raises(BadDeclaration, match="'thumbnail' runs in a child process, which must import the app"):
        await Worker(app).run()


async def test_a_child_that_cannot_import_the_app_is_a_failed_attempt_that_says_why(program: Offload) -> None:
    async with Worker(program, source=Source("no.such.module", "app")):
        record = await ended(await tasks.end_process.aenqueue("well"))
    assert record.state is State.DEAD
    assert "a child process could not import the app: ModuleNotFoundError" in record.errors[0].message


async def test_a_task_declared_in_another_module_than_its_app_runs_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "its_app.py").write_text("from offload import Offload\n\napp = Offload('memory://')\n")
    (tmp_path / "its_tasks.py").write_text(
        "import its_app\n\n\n@its_app.app.task(isolation='process')\ndef whereabouts() -> str:\n    return __name__\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = importlib.import_module("its_tasks").whereabouts
    async with Worker(sys.modules["its_app"].app):
        assert await (await task.aenqueue()).aresult(timeout=20) == "its_tasks"


async def test_a_function_that_another_module_makes_a_task_runs_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_app.py").write_text("from offload import Offload\n\napp = Offload('memory://')\n")
    (tmp_path / "a_library.py").write_text("def whereabouts() -> str:\n    return __name__\n")
    (tmp_path / "own_tasks.py").write_text(
        "import a_library\nimport own_app\n\nwhereabouts = own_app.app.task(a_library.whereabouts, isolation='process')\n"
        "named = own_app.app.task(name='named', isolation='process')(a_library.whereabouts)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    declared = importlib.import_module("own_tasks")
    async with Worker(sys.modules["own_app"].app):
        for task in (declared.whereabouts, declared.named):
            assert await (await task.aenqueue()).aresult(timeout=20) == "a_library"


async def test_a_child_that_cannot_import_the_module_of_the_task_says_so(program: Offload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.worker.children.homes_of", lambda _: (Home("no.such.module"),))

    @program.task(name="elsewhere", isolation="process", retry=False)
    def elsewhere() -> None: ...

    try:
        async with Worker(program):
            record = await ended(await elsewhere.aenqueue())
    finally:
        del program.tasks["elsewhere"]
    assert (record.state, record.crashes) == (State.DEAD, 0)
    assert "a child process could not import no.such.module, which declares elsewhere" in record.errors[0].message


def test_an_app_is_found_where_its_module_keeps_it() -> None:
    assert source_of(tasks.app) == Source("tests.worker.program", "app")
    assert source_of(Offload("memory://")) is None


# -- the crash rule ------------------------------------------------------------------------------------------------------------


def worker_info(app: Offload, name: str) -> WorkerInfo:
    isolations: Any = {task.name: task.isolation for task in app.tasks.values()}
    return WorkerInfo(name=name, host="here", pid=1, tasks=isolations, session_timeout=15, heartbeat=3)


async def crash(app: Offload, clock: TestClock, times: int) -> None:
    """Let sessions that hold what is ready die, one after the other, each rescued by a living one."""
    client: Any = await app.client()
    for number in range(times):
        async with client.session(worker_info(app, "living")) as living:
            dying = client.session(worker_info(app, f"dying {number}"))
            held = await (await dying.__aenter__()).fetch(None, 100, ROOM)
            assert held
            for _ in range(7):
                await living.beat(Pulse())
                clock.advance(3)
            upkeep = await living.maintain()
            assert [touched.event for touched in upkeep.touched] == ["rescued"] * len(held)
            await dying.__aexit__(None, None, None)


@pytest.fixture
async def crashing(url: str, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program by a clock that tests advance."""
    monkeypatch.setenv("OFFLOAD_URL", url)
    async with tasks.app.testing(url, clock):
        yield tasks.app


async def test_a_job_that_crashed_twice_runs_in_a_child_whatever_its_isolation(crashing: Offload, clock: TestClock) -> None:
    handles = [await task.aenqueue() for task in (tasks.look_async, tasks.look_thread)]
    await crash(crashing, clock, 1)
    once = await tasks.look_async.aenqueue()
    await crash(crashing, clock, 1)
    assert await Worker(crashing, processes=1).drain() == 3
    for handle in handles:
        seen = await handle.aresult(1)
        assert seen["pid"] != os.getpid()
        record = await handle.arecord()
        assert (seen["attempt"], record.attempt, record.crashes) == (1, 1, 2)
    assert (await once.aresult(1))["pid"] == os.getpid()


async def test_the_death_of_that_child_makes_the_job_dead_as_crashed(crashing: Offload, clock: TestClock) -> None:
    handles = [await task.aenqueue("segfault") for task in (tasks.end_async, tasks.end_thread, tasks.end_process)]
    await crash(crashing, clock, 2)
    await Worker(crashing, processes=1).drain()
    for handle in handles:
        record = await handle.arecord()
        assert (record.state, record.reason, record.crashes, record.attempt) == (State.DEAD, "crashed", 2, 1)
        assert record.errors[0].message == "the child process died: killed by SIGSEGV"
        assert await crashing.aretry(handle.id, payload={"way": "ValueError"}) == {handle.id}
    await Worker(crashing, processes=1).drain()
    assert {(await handle.arecord()).reason for handle in handles} == {"retries used up after 2 attempts"}


async def test_an_ordinary_error_there_is_retried_as_anywhere(crashing: Offload, clock: TestClock) -> None:
    handle = await tasks.end_async.aenqueue("ValueError")
    await crash(crashing, clock, 2)
    await Worker(crashing, processes=1).drain()
    record = await handle.arecord()
    assert (record.reason, record.attempt) == ("retries used up after 2 attempts", 2)


async def test_a_child_that_cannot_start_is_no_crash_of_the_job(crashing: Offload, clock: TestClock) -> None:
    handle = await tasks.end_async.aenqueue("well")
    await crash(crashing, clock, 2)
    await Worker(crashing, source=Source("no.such.module", "app")).drain()
    assert (await handle.arecord()).reason == "retries used up after 2 attempts"


async def test_a_killed_worker_takes_its_children_with_it(tmp_path: Any, marks: Marks, eventually: Eventually) -> None:
    code = (
        "import asyncio\nfrom offload import Worker\nfrom tests.worker import program\n"
        f"async def main():\n    await program.hang_process.aenqueue({marks.folder!r})\n    await Worker(program.app).run()\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "OFFLOAD_URL": "memory://", "PYTHONPATH": "."}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
    await eventually(marks, within=30)
    [child] = psutil.Process(process.pid).children()
    process.kill()
    await process.wait()
    await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
