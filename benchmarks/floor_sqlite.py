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
from urllib.parse import urlsplit

import floor
import msgspec
from part import Part, Tally, Told

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
        self._database = sqlite3.connect(urlsplit(part.url).path[1:], timeout=0, isolation_level=None, check_same_thread=False)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute(f"pragma synchronous={part.engine.removeprefix('sqlite-')}")
        self._database.executescript(SCHEMA)

    def enqueue(self, part: Part) -> Told:
        if part.how != "bulk":
            return floor.one_by_one(part, lambda body: self._transaction(lambda: self._database.execute(ADD, (body,))))
        begin = time.monotonic()
        for bodies in floor.chunks(part.jobs):
            self._transaction(lambda bodies=bodies: self._database.executemany(ADD, [(body,) for body in bodies]))
        return Told(seconds=time.monotonic() - begin)

    async def work(self, part: Part, told: Callable[[Callable[[], None]], None]) -> None:
        finish = KEEP if part.kept else DELETE

        async def turn(done: list[int]) -> list[tuple[int, str]]:
            return self._transaction(lambda: self._next(finish, done))

        await floor.work(part, self._tally, told, turn, lambda: asyncio.sleep(POLL))

    def _next(self, finish: str, done: list[int]) -> list[tuple[int, str]]:
        if done:
            self._database.execute(finish, (msgspec.json.encode(done).decode(),))
        return self._database.execute(CLAIM, (os.getpid(), floor.BATCH)).fetchall()

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
