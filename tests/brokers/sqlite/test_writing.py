"""The shared writer: what waits together is committed together, and every error is its own caller's."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.conftest import Eventually

from offload.brokers.sqlite import SqliteBroker, checkpoint, file, sharing
from offload.clock import SystemClock
from offload.errors import BadDeclaration, BrokerError, IdConflict, UniqueConflict
from offload.job import Done, State, UniqueKey
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import ROOM, info, job

pytestmark = pytest.mark.anyio


def commits(path: Path) -> int:
    """Frames that end a transaction in the write-ahead log."""
    log = Path(f"{path}-wal").read_bytes()
    size = int.from_bytes(log[8:12], "big") + 24
    return sum(1 for at in range(32, len(log) - size + 1, size) if int.from_bytes(log[at + 4 : at + 8], "big"))


async def test_calls_that_wait_together_are_one_transaction(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    before = commits(path)
    with broker.opened.database.writing.lock:  # the writer cannot begin, so the calls gather
        calls = [asyncio.ensure_future(broker.enqueue([job(clock, f"{i}")])) for i in range(50)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*calls) == [[f"{i}"] for i in range(50)]
    assert commits(path) - before <= 2  # the writer may have taken the first one alone


async def test_an_error_is_its_own_callers_alone(broker: SqliteBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "taken"), job(clock, "holder", unique=UniqueKey("k"))])
    good = [[job(clock, f"{i}")] for i in range(4)]
    bad = [job(clock, "x"), job(clock, "taken", payload=b'{"other":1}')]
    conflict = [job(clock, "y", unique=UniqueKey("k", on_conflict="raise"))]
    again = [job(clock, "z", unique=UniqueKey("k"))]
    answers = await asyncio.gather(*map(broker.enqueue, [good[0], bad, good[1], conflict, good[2], again, good[3]]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, IdConflict, list, UniqueConflict, list, list, list]
    assert answers[5] == ["holder"]
    assert set(await broker.get(["0", "1", "2", "3", "x", "y", "z"])) == {"0", "1", "2", "3"}


async def test_clients_of_several_loops_share_one_writer(broker: SqliteBroker, clock: TestClock) -> None:
    async def enqueue(number: int) -> None:
        client = broker.client()
        await client.open()
        assert client.opened.writer is broker.opened.writer
        for i in range(20):
            await client.enqueue([job(clock, f"{number}-{i}")])
        await client.close()

    threads = [threading.Thread(target=lambda number=number: asyncio.run(enqueue(number))) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert await broker.counts() == {"default": {State.READY: 80}}


async def test_the_last_client_finishes_what_was_asked_for_and_empties_the_log(path: Path, clock: TestClock) -> None:
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    asked = asyncio.ensure_future(broker.enqueue([job(clock, f"{i}") for i in range(1_000)]))
    await asyncio.sleep(0)
    await broker.close()
    await asked
    assert not Path(f"{path}-wal").exists()
    with sqlite3.connect(path) as connection:
        assert connection.execute("select count(*) from jobs").fetchone()[0] == 1_000
    connection.close()


async def test_one_file_has_one_durability_in_a_process(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    other = SqliteBroker.connect(f"sqlite:///{path}?synchronous=normal", clock)
    with pytest.raises(BadDeclaration, match="synchronous=full"):
        await other.open()


async def test_a_client_that_is_not_open_says_so(path: Path, clock: TestClock) -> None:
    with pytest.raises(BrokerError, match="not open"):
        await SqliteBroker.connect(f"sqlite:///{path}", clock).counts()


async def test_a_session_that_outlives_its_broker_is_told(path: Path, clock: TestClock) -> None:
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    with pytest.raises(BrokerError, match="closed by its last client"):
        async with broker.session(info()) as session:
            await broker.close()
            await session.fetch(None, 1, ROOM)


async def test_a_cancelled_fetch_leaves_nothing_claimed(broker: SqliteBroker, clock: TestClock, eventually: Eventually) -> None:
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        with broker.opened.database.writing.lock:
            fetch = asyncio.ensure_future(session.fetch(None, 10, ROOM))
            await asyncio.sleep(0)
            fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch

        (lease,) = await eventually(lambda: session.fetch(None, 10, ROOM))
        assert lease.attempt == 1
        assert await session.settle([(lease, Done())]) == []


async def test_a_large_log_is_emptied(
    broker: SqliteBroker, clock: TestClock, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(checkpoint, "LARGE_LOG_BYTES", 100_000)
    looks = broker.opened.database.checkpointer
    await broker.enqueue([job(clock, payload=b'"%s"' % (b"x" * 1_000)) for _ in range(200)])
    await eventually(lambda: looks.log_bytes() < 100_000)


async def test_nobody_checkpoints_beside_another(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    await broker.enqueue([job(clock)])
    database = broker.opened.database
    with checkpoint.alone(f"{path}-checkpoint.lock") as elected:
        assert elected
        assert not database.checkpointer.run(database.writing.connection)
        assert database.checkpointer.log_bytes() > 0
    assert database.checkpointer.run(database.writing.connection)
    assert database.checkpointer.log_bytes() == 0


async def test_a_reader_that_holds_the_log_does_not_stop_writers(broker: SqliteBroker, path: Path, clock: TestClock) -> None:
    reader = file.connect(path, "full")
    await broker.enqueue([job(clock)])
    reader.execute("begin")
    reader.execute("select count(*) from jobs").fetchone()
    await broker.enqueue([job(clock)])
    database = broker.opened.database
    assert not database.checkpointer.run(database.writing.connection)
    await broker.enqueue([job(clock)])
    reader.close()
    assert await broker.counts() == {"default": {State.READY: 3}}


async def test_doctor_is_told_of_a_large_log_and_of_an_old_sqlite(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = (await broker.inspect()).notes
    assert not any("write-ahead log" in text for _, text, _ in notes)
    monkeypatch.setattr("offload.brokers.sqlite.broker.LARGE_LOG_BYTES", 0)
    notes = (await broker.inspect()).notes
    assert any("write-ahead log" in text for _, text, _ in notes)
    assert any("as long as only Offload writes" in text for _, text, _ in notes) == (sqlite3.sqlite_version_info < (3, 51, 3))


PRODUCER = """
import asyncio, sys
from datetime import UTC, datetime
from offload.brokers.sqlite import SqliteBroker
from offload.clock import SystemClock
from offload.ids import new_ids
from offload.job import Job

async def main():
    broker = SqliteBroker.connect(f"sqlite:///{sys.argv[1]}", SystemClock())
    await broker.open()
    print("open", flush=True)
    while True:
        now = datetime.now(UTC)
        await broker.enqueue([Job(id=id, task="greet", enqueued_at=now) for id in new_ids(1_000, now)])
        print("thousand", flush=True)

asyncio.run(main())
"""


def killed_producer(path: Path) -> int:
    """Run a producer and kill it in mid-work. Returns how many thousands it was told are stored."""
    with subprocess.Popen([sys.executable, "-c", PRODUCER, str(path)], stdout=subprocess.PIPE, text=True) as producer:
        assert producer.stdout is not None
        assert producer.stdout.readline() == "open\n"
        assert producer.stdout.readline() == "thousand\n"
        producer.kill()
        return 1 + producer.stdout.read().count("thousand\n")


@pytest.mark.process
async def test_a_producer_killed_in_mid_call_leaves_all_of_a_thousand_or_none(path: Path) -> None:
    told = await asyncio.to_thread(lambda: sum(killed_producer(path) for _ in range(4)))
    broker = SqliteBroker.connect(f"sqlite:///{path}", SystemClock())
    await broker.open()
    stored = (await broker.counts())["default"][State.READY]
    await broker.close()
    assert stored % 1_000 == 0
    assert told * 1_000 <= stored <= (told + 4) * 1_000


FORK = """
import asyncio, os, sqlite3, sys
from offload.brokers.sqlite import SqliteBroker
from offload.clock import SystemClock
from offload.errors import BrokerError

async def opened():
    broker = SqliteBroker.connect(f"sqlite:///{sys.argv[1]}", SystemClock())
    await broker.open()
    return broker

async def parent():
    broker = await opened()
    await broker.pause("parent")
    return broker

async def child(inherited):
    try:
        await inherited.pause("inherited")
    except BrokerError as error:
        assert "fork" in str(error)
    else:
        sys.exit(3)
    broker = await opened()
    await broker.pause("child")
    os.write(at_work, b"x")
    os.read(parent_closed, 1)          # the parent has closed its connections meanwhile: the log must still be there
    assert os.path.exists(sys.argv[1] + "-wal"), "the parent took the log away from its child"
    await broker.pause("later")
    await broker.close()

parent_closed, closed = os.pipe()
working, at_work = os.pipe()
runner = asyncio.Runner()
broker = runner.run(parent())
pid = os.fork()
if pid == 0:
    asyncio.Runner().run(child(broker))
    os._exit(0)
os.read(working, 1)
runner.run(broker.close())
os.write(closed, b"x")
assert os.waitpid(pid, 0)[1] == 0
connection = sqlite3.connect(sys.argv[1])
print(sorted(name for (name,) in connection.execute("select queue from paused")))
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(sharing.os, "fork"), reason="the system has no fork")
def test_a_forked_child_opens_the_file_for_itself(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("['child', 'later', 'parent']\n", 0), done.stderr


OWN_CONNECTION = """
import asyncio, os, sqlite3, sys
from offload.brokers.sqlite import SqliteBroker
from offload.clock import SystemClock

path = sys.argv[1]
working, at_work = os.pipe()
seen, tell = os.pipe()

async def opened():
    broker = SqliteBroker.connect(f"sqlite:///{path}", SystemClock())
    await broker.open()
    return broker

runner = asyncio.Runner()
broker = runner.run(opened())
if os.fork() == 0:
    mine = sqlite3.connect(path, isolation_level=None)
    mine.execute("begin immediate")
    os.write(at_work, b"x")
    os.read(seen, 1)
    os._exit(0)
os.read(working, 1)
try:
    sqlite3.connect(path, timeout=0, isolation_level=None).execute("begin immediate")
except sqlite3.OperationalError as error:
    print(error)
os.write(tell, b"x")
print(os.wait()[1])
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(sharing.os, "fork"), reason="the system has no fork")
def test_a_connection_of_the_users_own_in_a_forked_child_takes_locks_that_the_parent_sees(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OWN_CONNECTION, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "database is locked\n0\n", done.stderr


SPAWNS = """
import asyncio, os, sqlite3, sys, threading, uvloop
from offload.brokers.sqlite import SqliteBroker
from offload.clock import SystemClock

path = sys.argv[1]

def hammer():
    mine = sqlite3.connect(path, timeout=30)
    while True:
        mine.execute("select name, sql from sqlite_master order by sql").fetchall()

async def main():
    broker = SqliteBroker.connect(f"sqlite:///{path}", SystemClock())
    await broker.open()
    for _ in range(3):
        threading.Thread(target=hammer, daemon=True).start()
    for _ in range(100):
        assert await (await asyncio.create_subprocess_exec("/bin/true")).wait() == 0

uvloop.run(main())
print("well", flush=True)
os._exit(0)
"""


@pytest.mark.process
def test_programs_are_started_from_uvloop_while_other_threads_are_inside_sqlite(path: Path) -> None:
    """It forks, and waits until the child has become the other program: a child that waited for a lock of SQLite would stop the loop."""
    done = subprocess.run([sys.executable, "-c", SPAWNS, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "well\n", done.stderr
