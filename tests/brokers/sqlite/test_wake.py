"""Waking sleepers: by sockets at once, by polling where nobody rings."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from tests.conftest import Eventually

from offload.brokers.sqlite import SqliteBroker, wake
from offload.brokers.sqlite.wake import folder_of
from offload.errors import BrokerError
from offload.job import Done
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import PATIENCE, claim_one, info, job

pytestmark = pytest.mark.anyio


async def test_a_commit_rings_and_no_poll_is_needed(broker: SqliteBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "POLL", 3_600.0)
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        assert await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1}) == []
        await session.wait(0.01)
        waiting = asyncio.ensure_future(session.wait(3_600))
        await asyncio.sleep(0)
        await broker.enqueue([job(clock)])
        await waiting


async def test_a_commit_of_a_foreign_connection_is_seen_by_polling(broker: SqliteBroker, path: Path) -> None:
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1})
        await session.wait(0.01)
        waiting = asyncio.ensure_future(session.wait(3_600))
        await asyncio.sleep(0)
        with sqlite3.connect(path) as foreign:
            foreign.execute("insert into paused values ('elsewhere')")
        foreign.close()
        await waiting


async def test_without_sockets_polling_wakes(path: Path, clock: TestClock) -> None:
    Path(f"{path}-wake").write_text("no folder can be made here")
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        waiting = asyncio.ensure_future(session.wait(3_600))
        await broker.enqueue([job(clock)])
        await waiting
    await broker.close()


async def test_what_was_committed_before_the_wait_is_not_missed(broker: SqliteBroker, clock: TestClock) -> None:
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        assert await session.fetch(None, 1, {"async": 1, "thread": 1, "process": 1}) == []
        await broker.enqueue([job(clock)])
        await session.wait(3_600)


async def test_waiting_for_a_result_is_rung(broker: SqliteBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "POLL", 3_600.0)
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        lease = await claim_one(session)
        waiting = asyncio.ensure_future(broker.finished(["a"], 3_600))
        await asyncio.sleep(0)
        await session.settle([(lease, Done(b"1"))])
        assert (await waiting)["a"].result == 1


async def test_the_socket_of_a_dead_process_is_removed(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    folder = wake.folder_of(path)
    async with broker.session(info()):
        stale = folder / "w-stale"
        listener, _ = wake.socket.socket(wake.socket.AF_UNIX, wake.socket.SOCK_DGRAM), None
        listener.bind(str(stale))
        listener.close()
        broker.opened.ringer.ring(work=True, ended=False)
        assert not stale.exists()


async def test_sessions_leave_no_socket_behind(broker: SqliteBroker, path: Path) -> None:
    async with broker.session(info()):
        assert len(list(wake.folder_of(path).iterdir())) == 1
    assert list(wake.folder_of(path).iterdir()) == []


def test_a_path_too_long_for_a_socket_uses_the_folder_for_temporary_files(tmp_path: Path) -> None:
    assert wake.folder_of(Path("/data/jobs.db")) == Path("/data/jobs.db-wake")
    deep = wake.folder_of(tmp_path / ("deep" * 30) / "jobs.db")
    assert deep.parent == Path(wake.tempfile.gettempdir())
    assert deep == wake.folder_of(tmp_path / ("deep" * 30) / "jobs.db")


async def test_a_client_closed_while_somebody_waits_for_a_result_ends_the_wait_and_leaves_nothing_behind(
    broker: SqliteBroker, clock: TestClock, eventually: Eventually
) -> None:
    await broker.enqueue([job(clock, "a")])
    other = broker.client()
    await other.open()
    waiting = asyncio.ensure_future(other.finished(["a"], 30))
    folder = folder_of(broker.path.resolve())
    await eventually(lambda: list(folder.glob("r-*")))
    await other.close()
    with pytest.raises(BrokerError, match="was closed while"):
        async with asyncio.timeout(5):
            await waiting
    assert list(folder.glob("r-*")) == []
