"""The floor on PostgreSQL: the shortest loop that runs each job at least once.

Two thin tables, and a job stands in one of them. One statement a batch of 100 deletes the jobs of the batch before from `running` and moves
the next there; the planner is held to the primary keys. A worker that sleeps is woken by NOTIFY, which is sent where the part says that one
sleeps. No retries, time limits, priorities, schedules, keys, results, heartbeats, fences; after a crash someone must move `running` back.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, LiteralString

import floor
import psycopg
from part import Part, Tally, Told

PLANNER = " ".join(f"-c {each}" for each in ("enable_seqscan=off", "enable_hashjoin=off", "enable_mergejoin=off", "enable_sort=off"))
SCHEMA = """
    create table if not exists ready (id bigint generated always as identity primary key, body bytea not null);
    create table if not exists running (id bigint primary key, owner integer not null, body bytea not null);
    create table if not exists done (id bigint primary key, body bytea not null)
"""
ADD = "insert into ready (body) values (%b)"
ADD_AND_WAKE = "with added as (insert into ready (body) values (%b)) select pg_notify('work', '')"
ADD_MANY = "insert into ready (body) select unnest(%b::bytea[])"
FINISH = "finished as (delete from running where id = any(%(done)b::bigint[]) returning id, body)"
NEXT = """
    with {finish},
    next as materialized (select id from ready order by id limit %(most)b for update skip locked),
    claimed as (delete from ready using next where ready.id = next.id returning ready.id, ready.body),
    moved as (insert into running select id, %(owner)b, body from claimed)
    select id, body from claimed
"""
KEEP = f"{FINISH}, kept as (insert into done select id, body from finished)"
LEFT = "select (select count(*) from ready) + (select count(*) from running) + (select count(*) from done where not %b)"
LOOK_EVERY = 1.0


class Floor:
    """One connection; another for coroutines."""

    def __init__(self, part: Part, tally: Tally) -> None:
        self._tally = tally
        self._url = part.url
        self._connection = psycopg.connect(part.url, autocommit=True)
        self._connection.execute(SCHEMA)

    def enqueue(self, part: Part) -> Told:
        add = ADD_AND_WAKE if part.pause else ADD
        if part.how == "async":
            return asyncio.run(self._enqueue_async(part, add))
        if part.how == "sync":
            return floor.one_by_one(part, lambda body: self._connection.execute(add, (body,), prepare=True))
        begin = time.monotonic()
        for bodies in floor.chunks(part.jobs):
            self._connection.execute(ADD_MANY, (bodies,))
        return Told(seconds=time.monotonic() - begin)

    async def _enqueue_async(self, part: Part, add: LiteralString) -> Told:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            return await floor.one_by_one_async(part, lambda body: connection.execute(add, (body,), prepare=True))

    async def work(self, part: Part, told: Callable[[Callable[[], None]], None]) -> None:
        statement = NEXT.format(finish=KEEP if part.kept else FINISH)
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True, options=PLANNER) as connection:
            cursor = connection.cursor(binary=True)

            async def turn(done: list[int]) -> list[tuple[Any, ...]]:
                await cursor.execute(statement, {"done": done, "most": floor.BATCH, "owner": os.getpid()}, prepare=True)
                return await cursor.fetchall()

            async def rest() -> None:
                async for _ in connection.notifies(timeout=LOOK_EVERY, stop_after=1):
                    pass

            if part.until == "told":
                await connection.execute("listen work")
            await floor.work(part, self._tally, told, turn, rest)

    def left(self, *, kept: bool) -> int:
        with self._connection:
            row = self._connection.execute(LEFT, (kept,)).fetchone()
        assert row is not None
        return row[0]
