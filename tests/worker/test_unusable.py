"""What will never work ends the worker, and its supervisor, at once and with the reason; what may pass is waited for."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.conftest import Eventually

from offload import BrokerError, BrokerUnusable, Offload, Worker
from offload.worker.patience import Outage, Patience
from offload.worker.supervisor import Supervisor

pytestmark = pytest.mark.anyio


async def test_a_worker_on_a_database_that_cannot_be_opened_ends_with_the_reason(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(BrokerUnusable, match="does not exist; create it"):
            await Worker(Offload(f"sqlite:///{tmp_path}/missing/q.db")).run()


async def test_a_worker_whose_database_is_replaced_under_it_ends_with_the_reason(tmp_path: Path, eventually: Eventually) -> None:
    app = Offload(f"sqlite:///{tmp_path}/q.db")

    @app.task
    async def nothing() -> None: ...

    worker = asyncio.create_task(Worker(app).run())

    async def at_work() -> bool:
        return bool(await app.aworkers())

    await eventually(at_work)
    async with asyncio.timeout(20):
        (tmp_path / "q.db").unlink()
        with pytest.raises(BrokerUnusable, match="was removed or replaced"):
            await worker
    await app.aclose()


def test_patience_waits_longer_each_time_but_not_for_what_will_not_pass() -> None:
    patience = Patience("a part", Outage())
    waits = [patience.failed(BrokerError("away")) for _ in range(8)]
    assert all(0 < wait <= 10 for wait in waits)
    assert max(waits[4:]) > max(waits[:2])
    with pytest.raises(BrokerUnusable):
        patience.failed(BrokerUnusable("for good"))


@pytest.mark.process
async def test_a_supervisor_whose_first_processes_fail_at_once_ends_with_their_code() -> None:
    supervisor = Supervisor([sys.executable, "-c", "raise SystemExit(1)"], 2)
    async with asyncio.timeout(20):
        assert await supervisor.run() == 1
