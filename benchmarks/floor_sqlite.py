"""The floor on SQLite: the shortest loop that runs each job at least once.

One transaction a batch of 100 deletes the jobs of the batch before and claims the next; one asyncio task a job, or one hop to a thread a
batch. No retries, time limits, priorities, schedules, keys, results, wake-ups, heartbeats; after a crash someone must set `owner` to 0.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import msgspec
from part import Part, Tally, Told

BATCH = 100
POLL = 0.001
SCHEMA = """
    create table if not exists job (id integer primary key, owner integer not null default 0, body text not null);
    create index if not exists ready on job (id) where owner = 0
"""
ADD = "insert into job (body) values (?)"
DELETE = "delete from job where id in (select value from json_each(?))"
KEEP = "update job set owner = -1 where id in (select value from json_each(?))"
CLAIM = "update job set owner = ? where id in (select id from job where owner = 0 order by id limit ?) returning id, body"


class Floor:
    """One connection to one file."""

    def __init__(self, part: Part, tally: Tally) -> None:
        self._tally = tally
        self._database = sqlite3.connect(part.path, timeout=0, isolation_level=None, check_same_thread=False)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute(f"pragma synchronous={part.engine.removeprefix('sqlite-')}")
        self._database.executescript(SCHEMA)

    def enqueue(self, part: Part) -> Told:
        told, begin = Told(), time.monotonic()
        if part.how == "bulk":
            for start in range(0, part.jobs, 1000):
                bodies = [(msgspec.json.encode({"n": n}),) for n in range(start, min(start + 1000, part.jobs))]
                self._transaction(lambda bodies=bodies: self._database.executemany(ADD, bodies))
            return Told(seconds=time.monotonic() - begin)
        for n in range(part.jobs):
            begin = time.monotonic()
            self._transaction(lambda n=n: self._database.execute(ADD, (msgspec.json.encode({"n": n}),)))
            told.called.append(begin)
            told.calls.append(time.monotonic() - begin)
            told.seconds += told.calls[-1]
            time.sleep(part.pause)
        return told

    async def work(self, part: Part, told: Callable[[Callable[[], None]], None]) -> None:
        going = True

        def stop() -> None:
            nonlocal going
            going = False

        told(stop)
        run = self._run_tasks if part.kind == "async" else self._run_in_thread
        finish = KEEP if part.kept else DELETE
        done: list[int] = []
        while going:
            claimed = self._transaction(lambda done=done: self._next(finish, done))
            done = [id for id, _ in claimed]
            if claimed:
                await run([msgspec.json.decode(body) for _, body in claimed])
            elif part.until == "empty":
                return
            else:
                await asyncio.sleep(POLL)

    def _next(self, finish: str, done: list[int]) -> list[tuple[int, str]]:
        if done:
            self._database.execute(finish, (msgspec.json.encode(done).decode(),))
        return self._database.execute(CLAIM, (os.getpid(), BATCH)).fetchall()

    async def _run_tasks(self, arguments: list[dict[str, int]]) -> None:
        async def task(n: int) -> None:
            self._tally.mark(n)

        running: list[asyncio.Task[None]] = [asyncio.create_task(task(**each)) for each in arguments]
        for each in running:
            await each

    async def _run_in_thread(self, arguments: list[dict[str, int]]) -> None:
        def batch() -> None:
            for each in arguments:
                self._tally.mark(**each)

        await asyncio.to_thread(batch)

    def _transaction(self, operation: Callable[[], Any]) -> Any:
        while True:
            try:
                self._database.execute("begin immediate")
                break
            except sqlite3.OperationalError:
                time.sleep(random.uniform(0.0002, 0.002))
        result = operation()
        self._database.execute("commit")
        return result

    def left(self, *, kept: bool) -> int:
        return self._database.execute("select count(*) from job where not (owner = -1 and ?)", (kept,)).fetchone()[0]
