"""One worker process from its signals to its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from tests.conftest import Eventually
from tests.worker.conftest import SHARED
from tests.worker.program import Marks, app, end_async, hang_async, hang_thread

from offload import Offload, State
from offload.worker.process import RECYCLE

pytestmark = [pytest.mark.anyio, pytest.mark.process]
engines = SHARED


async def start(url: str, options: str = "") -> asyncio.subprocess.Process:
    """A worker of the program in a process of its own."""
    code = (
        "from offload import Worker\nfrom offload.worker.process import leave, work\nfrom tests.worker import program\n"
        f"leave(work(lambda: Worker(program.app, {options})))\n"
    )
    environment = {**os.environ, "OFFLOAD_URL": url, "PYTHONPATH": "."}
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_well_with_its_jobs_handed_back(
    program: Offload, url: str, marks: Marks, eventually: Eventually, number: int
) -> None:
    process = await start(url, "grace=0.1")
    handles = [await task.aenqueue(marks.folder) for task in (hang_async, hang_thread)]
    await eventually(lambda: len(marks()) == 2, within=30)
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 15) == 0
    for handle in handles:
        assert ((await handle.arecord()).state, (await handle.arecord()).attempt) == (State.READY, 0)
    assert await program.aworkers() == []


async def test_the_second_signal_hands_them_back_at_once(program: Offload, url: str, marks: Marks, eventually: Eventually) -> None:
    process = await start(url, "grace=600")
    handle = await hang_async.aenqueue(marks.folder)
    await eventually(marks, within=30)
    process.terminate()
    await eventually(lambda: stops_fetching(program))
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 15) == 0
    assert ((await handle.arecord()).state, (await handle.arecord()).attempt) == (State.READY, 0)


async def stops_fetching(program: Offload) -> bool:
    """Whether a job enqueued now is left lying: the worker has begun to leave."""
    handle = await end_async.using(keep=60).aenqueue("well")
    try:
        await handle.aresult(0.3)
    except TimeoutError:
        return True
    return False


async def test_it_asks_for_a_fresh_process_by_its_exit_code(program: Offload, url: str) -> None:
    await app.aenqueue_many([end_async.job("well") for _ in range(20)])
    process = await start(url, "max_jobs=5")
    assert await asyncio.wait_for(process.wait(), 30) == RECYCLE


async def test_burst_ends_well_when_nothing_is_left(program: Offload, url: str) -> None:
    await app.aenqueue_many([end_async.job("well") for _ in range(20)])
    process = await start(url, "burst=True")
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert (await program.acounts())["default"] == {State.SUCCEEDED: 20}
