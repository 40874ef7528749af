"""The app of these tests, which child processes can import."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from offload import Discard, Handle, Offload, Retry, Unique, current

__all__ = ["Unique"]

NEVER = Retry(max_retries=0)

app = Offload(os.environ.get("OFFLOAD_URL", "memory://"), heartbeat=0.05, session_timeout=30)
ran: list[int] = []


def sql(url: str, statement: str) -> list[Any]:
    """Run one statement on a connection of its own."""
    with connected(url) as connection:
        cursor = connection.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
        connection.commit()
        return rows


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A plain connection to the database."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            yield connection
    else:
        import psycopg

        with closing(psycopg.connect(url)) as connection:
            yield connection


def insert(n: int) -> str:
    return f"insert into marks (n) values ({n})"


@app.task(name="program.note")
def note(n: int) -> int:
    ran.append(n)
    return n


def work(n: int, how: str, connection: Any = None) -> int:
    """Insert a row and enqueue a job in the transaction that ends this one, and go wrong as asked for."""
    with current.transaction(connection) as mine:
        mine.execute(insert(n))
        note.enqueue(n)
        match how:
            case "raise":
                raise ValueError("wrong")
            case "discard":
                raise Discard("no such user")
            case "step":
                current.step("count", int)
            case "commit":
                mine.commit()
            case "add":
                current.batch.add(note.using(id="added").job(n))
            case "add and raise":
                current.batch.add(note.job(n))
                raise ValueError("wrong")
            case "nested":
                with current.transaction():
                    pass
            case "conflict":
                mine.execute(insert(n))
            case "twice after rollback":
                mine.execute(insert(n + 1))
                how = "twice"
                raise KeyError("the first try")
            case _:
                current.complete(2 * n)
    afterwards(n, how)
    return -1


def afterwards(n: int, how: str) -> None:
    """Go wrong once the job has ended."""
    if how == "fail afterwards":
        raise ValueError("too late")
    if how == "add afterwards":
        current.batch.add(note.job(n))
    if how == "twice":
        with current.transaction():
            pass


async def awork(n: int, how: str) -> int:
    """The same for coroutines."""
    async with current.atransaction() as mine:
        done = mine.execute(insert(n))
        if hasattr(done, "__await__"):
            await done
        await note.aenqueue(n)
        match how:
            case "raise":
                raise ValueError("wrong")
            case "discard":
                raise Discard("no such user")
            case "step":
                await current.astep("count", int)
            case "add":
                current.batch.add(note.using(id="added").job(n))
            case "add and raise":
                current.batch.add(note.job(n))
                raise ValueError("wrong")
            case "commit":
                done = mine.commit()
                if hasattr(done, "__await__"):
                    await done
            case "nested":
                async with current.atransaction():
                    pass
            case _:
                current.complete(2 * n)
    if how == "fail afterwards":
        raise ValueError("too late")
    if how == "twice":
        async with current.atransaction():
            pass
    return -1


@app.task(retry=NEVER)
def in_thread(n: int, how: str = "") -> int:
    return work(n, how)


@app.task(retry=NEVER)
async def in_coroutine(n: int, how: str = "") -> int:
    return await awork(n, how)


@app.task(retry=NEVER, isolation="process")
def in_process(n: int, how: str = "") -> int:
    return work(n, how)


@app.task(retry=NEVER, isolation="process")
async def in_coroutine_of_process(n: int, how: str = "") -> int:
    return await awork(n, how)


@app.task(retry=NEVER)
def adds_though_its_block_fails(n: int) -> None:
    with suppress(ValueError):
        work(n, "add and raise")


@app.task(retry=NEVER, isolation="process")
def dies_after_commit(n: int) -> int:
    with current.transaction() as mine:
        mine.execute(insert(n))
        current.complete(n)
    os.abort()


ENDLESS = {
    "postgresql": "select pg_sleep(60)",
    "sqlite": "with recursive numbers(n) as (select 1 union all select n + 1 from numbers) select count(*) from numbers",
}
"""A statement that does not end while a test lasts."""


@app.task(retry=NEVER, isolation="process", timeout=1)
def waits_in_process(n: int, statement: str) -> None:
    with current.transaction() as mine:
        mine.execute(insert(n))
        note.enqueue(n)
        mine.execute(statement)


@app.task(retry=NEVER)
async def sync_in_coroutine() -> None:
    with current.transaction():
        pass


@app.task(retry=NEVER)
def complete_outside() -> None:
    current.complete(1)


@app.task(retry=NEVER)
def again_after_rollback(n: int) -> int:
    try:
        work(n, "raise")
    except ValueError:
        work(n, "")
    return -1


gate, entered = threading.Event(), threading.Event()


@app.task(retry=Retry(max_retries=3, initial=0))
def waits_inside(n: int) -> int:
    """Wait in the open transaction until the test lets it go on."""
    with current.transaction() as mine:
        entered.set()
        assert gate.wait(20)
        mine.execute(insert(n))
    return n


meeting = threading.Barrier(2)
met: set[str] = set()


@app.task(retry=NEVER)
def locks_both(first: int, second: int) -> None:
    """Lock two rows; two such jobs lock them crosswise, the first time."""
    with current.transaction() as mine:
        mine.execute(f"update marks set n = n where n = {first}")
        if current.job.id not in met:
            met.add(current.job.id)
            meeting.wait(20)
        mine.execute(f"update marks set n = n where n = {second}")


@app.task(retry=NEVER)
def writes_on_old_news(url: str) -> None:
    """Read, let another connection write, and write on what was read, the first time."""
    with connected(url) as mine:
        mine.execute("begin")
        mine.execute("select * from marks").fetchall()
        if current.job.id not in met:
            met.add(current.job.id)
            sql(url, insert(1))
        with current.transaction(mine):
            mine.execute(insert(2))


def collide(url: str) -> list[Handle[None]]:
    """Enqueue jobs whose transactions cannot all commit."""
    if url.startswith("sqlite"):
        return [writes_on_old_news.enqueue(url)]
    sql(url, "insert into marks (n) values (1), (2)")
    return [locks_both.enqueue(1, 2), locks_both.enqueue(2, 1)]
