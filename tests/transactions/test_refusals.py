"""What cannot work is refused by name, with the way out."""

from __future__ import annotations

import asyncio
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker
from tests.transactions import program
from tests.transactions.conftest import Hand, Shop
from tests.transactions.kinds import KINDS, Kind
from tests.transactions.test_stopping import task_of

from offload import BadDeclaration, BrokerError, Offload, State, Unsupported, current

OF = {kind.name: kind for kind in KINDS}


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"{tmp_path}/shop.db"


@pytest.fixture
def app(file: str) -> Iterator[Offload]:
    app = Offload(f"sqlite:///{file}")
    app.task(name="program.note")(lambda n: n)
    app.migrate()
    yield app
    app.close()


def refused(app: Offload, connection: Any, match: str, kind: type[Exception] = BadDeclaration) -> None:
    before = app.counts()
    with pytest.raises(kind, match=match):
        app.using(connection=connection).enqueue("program.note", n=1)
    assert app.counts() == before


def test_the_async_form_is_named_for_an_async_connection(shop: Shop, hand: Hand) -> None:
    if not hand.kind.is_async:
        pytest.skip("for async connections")
    with pytest.raises(BadDeclaration, match="use: await aenqueue"):
        program.note.using(connection=hand.connection).enqueue(1)
    with pytest.raises(BadDeclaration, match="use: await aenqueue_many"):
        shop.app.enqueue_many([program.note.job(1)], connection=hand.connection)


def test_an_engine_or_a_maker_is_no_session(app: Offload, file: str) -> None:
    engine, async_engine = create_engine(f"sqlite:///{file}"), create_async_engine(f"sqlite+aiosqlite:///{file}")
    refused(app, engine, r"with engine\.begin\(\) as connection")
    refused(app, async_engine, r"async with engine\.begin\(\) as connection")
    refused(app, sessionmaker(engine), r"with Session\.begin\(\) as session")
    engine.dispose()


@pytest.mark.parametrize("connection", [7, "sqlite:///shop.db", object()])
def test_what_is_no_connection_is_told_what_is(app: Offload, connection: Any) -> None:
    refused(app, connection, "it takes connections of psycopg")


def test_a_cursor_is_no_connection(app: Offload, file: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        refused(app, connection.cursor(), r"cannot be a sqlite3\.Cursor")


def test_another_sqlite_file_is_refused_by_name(app: Offload, file: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, closing(sqlite3.connect(":memory:")) as memory:
        refused(app, other, r"other\.db, the jobs are kept in .*shop\.db")
        refused(app, memory, "a database in memory")


def test_a_link_to_the_file_is_the_file(app: Offload, file: str, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(file)
    with closing(sqlite3.connect(tmp_path / "link.db")) as connection:
        app.using(connection=connection).enqueue("program.note", n=1)
        connection.commit()
    assert app.counts() == {"default": {State.READY: 1}}


def test_another_sqlite_library_is_refused_by_name(app: Offload, file: str) -> None:
    apsw = pytest.importorskip("apsw")
    connection = apsw.Connection(file)
    refused(app, connection, "two SQLite libraries in one process")
    connection.close()


def test_a_connection_to_another_kind_of_database_is_refused(app: Offload, shared_postgres: Any) -> None:
    with OF["psycopg"].opened(shared_postgres(None).database()) as connection:
        refused(app, connection, "a psycopg connection is to PostgreSQL, and this app keeps its jobs in SQLite")


def test_a_broker_that_is_no_database_is_refused(file: str) -> None:
    app = Offload("memory://")
    with closing(sqlite3.connect(file)) as connection:
        refused(app, connection, "MemoryBroker cannot take part in a transaction", Unsupported)
    app.close()


@pytest.mark.parametrize("kind", [OF["sqlite3"], OF["psycopg"]], ids=lambda kind: kind.name)
def test_without_a_transaction_autocommit_is_refused_and_with_one_it_is_joined(shop: Shop, kind: Kind) -> None:
    with kind.opened(shop.url) as connection:
        if kind.name == "sqlite3":
            connection.isolation_level = None
        else:
            connection.autocommit = True
        with pytest.raises(BadDeclaration, match="autocommit mode has no transaction that the job could join"):
            program.note.using(connection=connection).enqueue(1)
        connection.execute("begin")
        program.note.using(connection=connection).enqueue(2)
        connection.execute("rollback")
        connection.execute("begin")
        program.note.using(connection=connection).enqueue(3)
        connection.execute("commit")
    assert shop.jobs() == [3]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name.endswith((": Connection", ": AsyncConnection"))], ids=lambda kind: kind.name
)
def test_sqlalchemys_autocommit_is_refused(shop: Shop, kind: Kind) -> None:
    match = "AUTOCOMMIT"
    if not kind.is_async:
        with kind.opened(shop.url) as connection, pytest.raises(BadDeclaration, match=match):
            program.note.using(connection=connection.execution_options(isolation_level="AUTOCOMMIT")).enqueue(1)
        return

    async def main() -> None:
        async with kind.opened(shop.url) as connection:
            unbound = await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(BadDeclaration, match=match):
                await program.note.using(connection=unbound).aenqueue(1)

    asyncio.run(main())
    assert shop.jobs() == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name.startswith("django")], ids=lambda kind: kind.name)
def test_django_outside_of_atomic_is_refused(shop: Shop, kind: Kind) -> None:
    with kind.opened(shop.url) as connection, pytest.raises(BadDeclaration, match=r"inside `with transaction\.atomic\(\):`"):
        program.note.using(connection=connection).enqueue(1)
    assert shop.jobs() == []


def test_a_file_without_jobs_names_the_command(file: str) -> None:
    app = Offload(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("create table marks (n integer)")
        with pytest.raises(BrokerError, match=r"run `offload migrate`, or app\.migrate"):
            app.using(connection=connection).enqueue("program.note", n=1)


def test_a_lock_is_waited_for_as_long_as_the_connection_says(app: Offload, file: str) -> None:
    with closing(sqlite3.connect(file)) as holder, closing(sqlite3.connect(file, timeout=0.2)) as waiting:
        holder.execute("begin immediate")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            app.using(connection=waiting).enqueue("program.note", n=1)
        assert waiting.execute("pragma busy_timeout").fetchone() == (200,)
        assert not waiting.in_transaction
        holder.rollback()
        app.using(connection=waiting).enqueue("program.note", n=1)
        waiting.commit()
    assert app.counts() == {"default": {State.READY: 1}}


def test_a_stale_snapshot_is_told_at_once(app: Offload, file: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("begin")
        connection.execute("select * from jobs").fetchall()
        app.enqueue("program.note", n=1)
        with pytest.raises(sqlite3.OperationalError) as raised:
            app.using(connection=connection).enqueue("program.note", n=2)
        assert raised.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"


def test_a_callers_connection_checkpoints_no_more_and_keeps_its_own_ways(app: Offload, file: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory, connection.text_factory = sqlite3.Row, bytes
        app.using(connection=connection, id="one").enqueue("program.note", n=1)
        app.using(connection=connection, id="one").enqueue("program.note", n=1)
        assert connection.execute("pragma wal_autocheckpoint").fetchone()[0] == 0
        assert isinstance(connection.execute("select 'a' as letter").fetchone(), sqlite3.Row)
        assert connection.execute("select 'a'").fetchone()[0] == b"a"
        connection.commit()
    assert app.counts() == {"default": {State.READY: 1}}


def test_the_lock_is_taken_by_the_first_statement(app: Offload, file: str) -> None:
    """So a lock held by others is met before anything is read, where it can be waited for."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection, closing(sqlite3.connect(file, timeout=0)) as other:
        connection.execute("begin")
        app.using(connection=connection).enqueue("program.note", n=1)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("begin immediate")
        connection.execute("rollback")


def test_outside_of_a_task_there_is_no_transaction() -> None:
    from offload import NotInTask

    with pytest.raises(NotInTask), current.transaction():
        pass


def test_an_error_of_our_own_statement_does_not_show_what_the_job_was_given(shop: Shop, hand: Hand) -> None:
    """The driver's error goes to the user's log and, from within a task, into the record: masked arguments must not."""
    table = "jobs" if hand.kind.engine == "sqlite" else "offload.jobs"
    program.sql(shop.url, f"alter table {table} rename to away")
    secret = 987_654_321
    with pytest.raises(Exception, match="jobs") as refusal:
        hand.enqueue(secret)
    assert str(secret) not in "".join(traceback.format_exception(refusal.value))
    hand.rollback()


CHANGES: dict[str, Callable[[Offload], object]] = {
    "cancel": lambda app: app.handle("other").cancel(),
    "cancel many": lambda app: app.cancel(["other"]),
    "retry": lambda app: app.retry("other"),
    "delete": lambda app: app.delete("other"),
    "pause": lambda app: app.pause("default"),
    "resume": lambda app: app.resume("default"),
    "set_limit": lambda app: app.set_limit("k", concurrency=1),
    "unschedule": lambda app: app.unschedule("nightly"),
    "pause_schedule": lambda app: app.pause_schedule("nightly"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_part_of_the_transaction_is_refused_in_its_block(shop: Shop, engine: str, change: str) -> None:
    """It would wait for the block to end, which waits for it."""
    asked: list[object] = []

    def work() -> None:
        with current.transaction() as mine:
            mine.execute(program.insert(1))
            asked.append(shop.app.counts())
            CHANGES[change](shop.app)

    with task_of(shop, work) as task:
        record = shop.ran(task.enqueue())
    assert record.state is State.DEAD
    assert "make it before or after" in record.errors[0].message
    assert asked
    assert shop.marks() == []


def test_what_others_commit_as_a_job_is_enqueued_does_not_undo_it(app: Offload, file: str) -> None:
    """A transaction that has read may not write once another has written; one of Django's has not even begun when we come."""
    with closing(sqlite3.connect(file, isolation_level=None)) as mine, closing(sqlite3.connect(file, isolation_level=None)) as other:
        mine.execute("begin")
        mine.set_trace_callback(lambda sql: other.execute("update store set next = next + 1") if "where false" in sql else None)
        app.using(connection=mine).enqueue("program.note", n=1)
        mine.set_trace_callback(None)
        mine.execute("commit")
    assert app.counts() == {"default": {State.READY: 1}}
