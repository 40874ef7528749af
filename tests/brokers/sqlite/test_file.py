"""The database file: URLs, bad places, bad files, schemas."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from offload.brokers.sqlite import SqliteBroker, file
from offload.errors import BadDeclaration, BrokerError, SchemaTooNew
from offload.job import State
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import job

pytestmark = pytest.mark.anyio


async def refused(path: Path | str, clock: TestClock, error: type[BrokerError] = BrokerError) -> str:
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    with pytest.raises(error) as raised:
        await broker.open()
    return str(raised.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://:memory:", "sqlite:///:memory:"])
def test_a_url_without_a_file_is_refused_with_the_way_out(url: str, clock: TestClock) -> None:
    with pytest.raises(BadDeclaration, match="memory://"):
        SqliteBroker.connect(url, clock)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://host/jobs.db", "three slashes"),
        ("sqlite:///jobs.db?wal=1", "unknown option wal"),
        ("sqlite:///jobs.db?synchronous=off", "full or normal"),
    ],
)
def test_a_url_that_cannot_be_understood_is_refused(url: str, told: str, clock: TestClock) -> None:
    with pytest.raises(BadDeclaration, match=told):
        SqliteBroker.connect(url, clock)


def test_three_slashes_are_relative_and_four_absolute(clock: TestClock) -> None:
    assert SqliteBroker.connect("sqlite:///a/jobs.db", clock).path == Path("a/jobs.db")
    assert SqliteBroker.connect("sqlite:////a/my%20jobs.db?synchronous=normal", clock).path == Path("/a/my jobs.db")


def test_connecting_touches_no_file(path: Path, clock: TestClock) -> None:
    SqliteBroker.connect(f"sqlite:///{path}", clock)
    assert not path.exists()


async def test_a_missing_folder_is_named(tmp_path: Path, clock: TestClock) -> None:
    assert f"{tmp_path}/nowhere for the database jobs.db does not exist" in await refused(tmp_path / "nowhere" / "jobs.db", clock)


async def test_a_folder_is_no_database(tmp_path: Path, clock: TestClock) -> None:
    assert f"{tmp_path} is a folder" in await refused(tmp_path, clock)


async def test_a_file_of_something_else_is_not_touched(path: Path, clock: TestClock) -> None:
    path.write_text("minutes of the meeting\n" * 100)
    assert "is not an SQLite database" in await refused(path, clock)
    assert path.read_text().startswith("minutes")


async def test_a_database_of_another_program_is_not_touched(path: Path, clock: TestClock) -> None:
    with sqlite3.connect(path) as other:
        other.execute("create table invoices (id)")
    other.close()
    assert "another program" in await refused(path, clock)


async def test_a_damaged_database_says_how_to_save_it(path: Path, clock: TestClock) -> None:
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    await broker.close()
    damaged = bytearray(path.read_bytes())
    damaged[100:4096] = b"\xff" * 3996
    path.write_bytes(damaged)
    assert "is damaged" in await refused(path, clock)


@pytest.mark.parametrize("denied", ["folder", "file"])
async def test_what_may_not_be_written_is_refused(denied: str, path: Path, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()
    forbidden = path if denied == "file" else path.parent
    # root may write everywhere, so the answer of the system is given here
    monkeypatch.setattr(os, "access", lambda what, mode: Path(what) != forbidden or not mode & os.W_OK)
    text = await refused(path, clock)
    assert f"{forbidden} cannot be written by this user" in text


async def test_a_network_file_system_is_refused(tmp_path: Path, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/export {tmp_path}/my\\040share nfs4 rw 0 0\n")
    assert file.file_system(tmp_path / "my share" / "jobs.db", mounts) == "nfs4"
    assert file.file_system(tmp_path / "jobs.db", mounts) == "ext4"
    monkeypatch.setattr(file, "file_system", lambda _: "nfs4")
    assert "network file system (nfs4)" in await refused(tmp_path / "jobs.db", clock)


async def test_a_newer_schema_is_refused(path: Path, clock: TestClock) -> None:
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    await broker.close()
    with sqlite3.connect(path) as newer:
        newer.execute("pragma user_version = 99")
    newer.close()
    assert "has schema 99" in await refused(path, clock, SchemaTooNew)


async def test_a_full_disk_loses_only_the_call(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "before")])
    writing = broker.opened.database.writing.connection
    writing.execute("pragma max_page_count = 1")
    with pytest.raises(BrokerError, match=f"the disk of {path} is full") as full:
        await broker.enqueue([job(clock, payload=b'"%s"' % (b"x" * 100_000)) for _ in range(10)])
    assert isinstance(full.value.__cause__, sqlite3.OperationalError)
    writing.execute("pragma max_page_count = 1000000")
    await broker.enqueue([job(clock, "after")])
    assert await broker.counts() == {"default": {State.READY: 2}}


async def test_a_write_protected_database_is_told(broker: SqliteBroker, clock: TestClock) -> None:
    broker.opened.database.writing.connection.execute("pragma query_only = 1")
    with pytest.raises(BrokerError, match="cannot be written"):
        await broker.enqueue([job(clock)])


async def test_a_file_that_was_removed_takes_no_more_jobs(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    moved = path.rename(path.with_name("moved.db"))
    with pytest.raises(BrokerError, match=f"{path} was removed or replaced"):
        await broker.enqueue([job(clock)])
    moved.rename(path)
    await broker.enqueue([job(clock)])


async def test_a_write_waits_for_the_lock_of_others(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("begin immediate")
    other.execute("insert into paused (queue) values ('other')")
    waiting = broker.opened.writer.submit(lambda tx: tx.do("pause_queue", queue="mine"))
    other.execute("commit")
    assert await waiting == 1
    other.close()
    assert await broker.paused() == {"mine", "other"}


async def test_a_lock_held_for_too_long_is_told_with_its_holder(
    broker: SqliteBroker, path: Path, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "PATIENCE", 0.02)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(BrokerError, match=f"{path} is locked by"):
        await broker.enqueue([job(clock)])
    other.close()
    await broker.enqueue([job(clock)])


def test_the_holder_of_a_lock_is_found_in_the_list_of_locks(path: Path, tmp_path: Path) -> None:
    shared = Path(f"{path}-shm")
    shared.touch()
    locks = tmp_path / "locks"
    inode = shared.stat().st_ino
    locks.write_text(f"1: POSIX  ADVISORY  READ 7 fe:00:{inode} 123 123\n2: POSIX  ADVISORY  WRITE 4711 fe:00:{inode} 120 120\n")
    assert file.holder(path, locks) == "process 4711"
    assert file.holder(path, tmp_path / "none") == "another connection"


@pytest.mark.process
def test_ten_processes_that_start_together_make_one_schema(path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from offload.brokers.sqlite import SqliteBroker\n"
        "from offload.clock import SystemClock\n"
        "async def main():\n"
        "    broker = SqliteBroker.connect(f'sqlite:///{sys.argv[1]}', SystemClock())\n"
        "    sys.stdin.readline()\n"
        "    await broker.open()\n"
        "    await broker.pause(sys.argv[2])\n"
        "    await broker.close()\n"
        "asyncio.run(main())\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), f"q{i}"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(10)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 10
    with sqlite3.connect(path) as connection:
        assert connection.execute("select count(*) from paused").fetchone()[0] == 10
        assert connection.execute("pragma user_version").fetchone()[0] == file.SCHEMA
    connection.close()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("", "every commit is on disk before enqueue returns (synchronous=full)"),
        ("?synchronous=normal", "a power cut can lose the last commits (synchronous=normal)"),
    ],
)
@pytest.mark.anyio
async def test_doctor_is_told_how_durable_a_commit_is(path: Path, clock: TestClock, option: str, said: str) -> None:
    broker = SqliteBroker.connect(f"sqlite:///{path}{option}", clock)
    await broker.open()
    notes = (await broker.inspect()).notes
    await broker.close()
    assert ("info", said) in [(severity, text) for severity, text, _ in notes]
