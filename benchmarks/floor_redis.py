"""The floor on Redis and Valkey: the shortest loop that runs each job at least once.

A list of ids, a hash of bodies, and for each worker a set of the ids that it holds. One script a batch of 100 drops the jobs of the batch
before and claims the next. A worker with nothing to do blocks on the list. No retries, time limits, priorities, schedules, keys, results,
heartbeats, fences; after a crash someone must move the set's ids back into the list.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import floor
import redis
import redis.asyncio
from part import Part, Tally, Told

READY, JOB, LAST, DONE = "ready", "job", "last", "done"
ADD = """
    local last, ids, pairs = redis.call('INCRBY', KEYS[3], #ARGV) - #ARGV, {}, {}
    for n, body in ipairs(ARGV) do
        ids[n], pairs[2 * n - 1], pairs[2 * n] = last + n, last + n, body
    end
    redis.call('HSET', KEYS[2], unpack(pairs))
    redis.call('RPUSH', KEYS[1], unpack(ids))
"""
NEXT = """
    if #ARGV > 2 then
        redis.call('SREM', KEYS[3], unpack(ARGV, 3))
        if ARGV[2] == '1' then
            redis.call('SADD', KEYS[4], unpack(ARGV, 3))
        else
            redis.call('HDEL', KEYS[2], unpack(ARGV, 3))
        end
    end
    local ids = redis.call('LPOP', KEYS[1], ARGV[1])
    if not ids then
        return {{}, {}}
    end
    redis.call('SADD', KEYS[3], unpack(ids))
    return {ids, redis.call('HMGET', KEYS[2], unpack(ids))}
"""
LOOK_EVERY = 1


class Floor:
    """One client; another for coroutines."""

    def __init__(self, part: Part, tally: Tally) -> None:
        self._tally = tally
        self._url = part.url.replace("valkey://", "redis://")
        self._client = redis.Redis.from_url(self._url)
        self._add = self._client.script_load(ADD)
        self._next = self._client.script_load(NEXT)

    def enqueue(self, part: Part) -> Told:
        if part.how == "async":
            return asyncio.run(self._enqueue_async(part))
        if part.how == "sync":
            return floor.one_by_one(part, lambda body: self._client.evalsha(self._add, 3, READY, JOB, LAST, body))
        begin = time.monotonic()
        for bodies in floor.chunks(part.jobs):
            self._client.evalsha(self._add, 3, READY, JOB, LAST, *bodies)
        return Told(seconds=time.monotonic() - begin)

    async def _enqueue_async(self, part: Part) -> Told:
        async with redis.asyncio.Redis.from_url(self._url, single_connection_client=True) as client:
            return await floor.one_by_one_async(part, lambda body: client.evalsha(self._add, 3, READY, JOB, LAST, body))

    async def work(self, part: Part, told: Callable[[Callable[[], None]], None]) -> None:
        async with redis.asyncio.Redis.from_url(self._url, single_connection_client=True) as client:
            keys, options = (READY, JOB, f"running:{os.getpid()}", DONE), (floor.BATCH, int(part.kept))

            async def turn(done: list[bytes]) -> list[tuple[bytes, bytes]]:
                ids, bodies = await client.evalsha(self._next, len(keys), *keys, *options, *done)
                return list(zip(ids, bodies, strict=True))

            async def rest() -> None:
                await client.blmove(READY, READY, LOOK_EVERY, "LEFT", "LEFT")  # moves nothing, but waits for something

            await floor.work(part, self._tally, told, turn, rest)

    def left(self, *, kept: bool) -> int:
        left = self._client.hlen(JOB) - (self._client.scard(DONE) if kept else 0)
        self._client.close()
        return left
