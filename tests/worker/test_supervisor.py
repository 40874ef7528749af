"""Worker processes are kept running, whatever ends them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from tests.conftest import Eventually

from offload.worker import supervisor
from offload.worker.process import RECYCLE
from offload.worker.supervisor import SUPERVISED, Supervisor, follow_supervisor

pytestmark = [pytest.mark.anyio, pytest.mark.process]


class Pids:
    """The process ids that tiny programs wrote down when they began, and words they wrote when told something."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "pids"

    def __call__(self) -> list[int]:
        return [int(line) for line in self._lines() if line.isdigit()]

    def words(self) -> list[str]:
        return [line for line in self._lines() if not line.isdigit()]

    def _lines(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []

    def program(self, then: str) -> list[str]:
        """A command that writes down its process id and goes on with these lines of shell."""
        return ["sh", "-c", f"echo $$ >> {self.file}; {then}"]

    def listening(self, code: int = 0) -> list[str]:
        """A program that says when it was told to stop, and ends with `code`."""
        return self.program(f"trap 'echo told >> {self.file}; exit {code}' TERM; while :; do sleep 0.02; done")


@pytest.fixture
def pids(tmp_path: Path) -> Pids:
    return Pids(tmp_path)


@asynccontextmanager
async def supervising(supervisor: Supervisor, changes: AsyncIterator[object] | None = None) -> AsyncIterator[asyncio.Task[int]]:
    """The supervisor at work beside the block."""
    task = asyncio.create_task(supervisor.run(changes))
    try:
        yield task
    finally:
        supervisor.stop()
        await asyncio.wait_for(task, 15)


async def test_a_killed_process_is_replaced(pids: Pids, eventually: Eventually, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "YOUNG", 0.0)
    async with supervising(Supervisor(pids.program("exec sleep 60"), 2)):
        await eventually(lambda: len(pids()) == 2)
        killed = pids()[0]
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: len(set(pids())) == 3)
        assert sorted(pid for pid in pids() if psutil.pid_exists(pid)) == sorted(pids()[1:])
    assert not any(psutil.pid_exists(pid) for pid in pids())


async def test_processes_that_keep_dying_young_are_replaced_more_and_more_slowly(
    pids: Pids, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    def waits() -> list[str]:
        return [record.message for record in caplog.records if record.name == "offload.supervisor"]

    at_first_well = f"[ $(wc -l < {pids.file}) -gt 1 ] || exit {RECYCLE}; exit 3"
    async with supervising(Supervisor(pids.program(at_first_well), 1)):
        await eventually(lambda: len(waits()) == 2)
    assert waits() == [f"a worker process ended with exit code 3; a new one starts in {seconds} s" for seconds in (1, 3)]


async def test_a_command_that_has_never_worked_ends_the_supervisor_with_its_code(pids: Pids) -> None:
    assert await asyncio.wait_for(Supervisor(pids.program("exit 3"), 1).run(), 10) == 3
    assert len(pids()) == 1


async def test_a_process_that_asks_for_a_fresh_one_gets_it_at_once(
    pids: Pids, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(Supervisor(pids.program(f"exit {RECYCLE}"), 1)):
        await eventually(lambda: len(pids()) >= 5)
    assert [record for record in caplog.records if record.name == "offload.supervisor"] == []


async def test_sigterm_is_passed_on_and_awaited(pids: Pids, eventually: Eventually) -> None:
    async with supervising(Supervisor(pids.listening(), 3)) as run:
        await eventually(lambda: len(pids()) == 3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(run, 10) == 0
    assert pids.words() == ["told"] * 3


async def test_the_second_signal_is_passed_on_too(pids: Pids, eventually: Eventually) -> None:
    patient = pids.program(f"told=0; trap 'echo told >> {pids.file}; told=$((told+1))' TERM; while [ $told -lt 2 ]; do sleep 0.02; done")
    supervisor = Supervisor(patient, 1)
    async with supervising(supervisor) as run:
        await eventually(lambda: len(pids()) == 1)
        supervisor.stop()
        await eventually(lambda: pids.words() == ["told"])
        assert not run.done()
        supervisor.stop()
        assert await asyncio.wait_for(run, 10) == 0
    assert pids.words() == ["told", "told"]


async def test_a_process_that_ends_badly_when_told_is_reported(pids: Pids, eventually: Eventually) -> None:
    supervisor = Supervisor(pids.listening(code=3), 2)
    async with supervising(supervisor) as run:
        await eventually(lambda: len(pids()) == 2)
        supervisor.stop()
        assert await asyncio.wait_for(run, 10) != 0


async def test_one_told_while_processes_start_ends_them_too(pids: Pids) -> None:
    supervisor = Supervisor(pids.listening(), 2)
    async with supervising(supervisor) as run:
        await asyncio.sleep(0)
        supervisor.stop()
        await asyncio.wait_for(run, 10)
    assert not any(psutil.pid_exists(pid) for pid in pids())


async def test_in_burst_those_that_ended_well_are_not_replaced(pids: Pids) -> None:
    assert await asyncio.wait_for(Supervisor(pids.program("exit 0"), 3, burst=True).run(), 10) == 0
    assert len(pids()) == 3


async def test_each_change_of_the_source_restarts_all(pids: Pids, eventually: Eventually) -> None:
    changed = asyncio.Event()

    async def changes() -> AsyncIterator[str]:
        await changed.wait()
        yield "shop.py"

    async with supervising(Supervisor(pids.listening(), 2), changes()):
        await eventually(lambda: len(pids()) == 2)
        changed.set()
        await eventually(lambda: len(set(pids())) == 4)
        assert pids.words() == ["told", "told"]


async def test_workers_are_told_to_stop_when_their_supervisor_is_killed(pids: Pids, eventually: Eventually) -> None:
    worker = (
        "import os, signal, sys\n"
        "from offload.worker.supervisor import follow_supervisor\n"
        f"file = {str(pids.file)!r}\n"
        "def told(*_):\n    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n    open(file, 'a').write('told\\n')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGHUP, told)\n"
        "assert follow_supervisor()\n"
        "open(file, 'a').write(f'{os.getpid()}\\n')\n"
        "signal.pause()\n"
    )
    program = (
        "import asyncio, sys\nfrom offload.worker.supervisor import Supervisor\n"
        f"asyncio.run(Supervisor([sys.executable, '-c', {worker!r}], 2).run())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await eventually(lambda: len(pids()) == 2, within=30)
    process.kill()
    await process.wait()
    await eventually(lambda: pids.words() == ["told", "told"])


def test_without_a_supervisor_there_is_none_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUPERVISED, raising=False)
    assert not follow_supervisor()
