"""A digest at 09:00 in each user's own time zone: one schedule per zone, one job per user.

    python examples/nine_in_each_zone.py

plays two days, in the second of which Berlin's clocks go forward, in a moment and in memory: the clock is moved by hand.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from offload import Offload, current
from offload.testing.clock import TestClock
from offload.testing.rehearsal import Rehearsal

app = Offload()


class User(NamedTuple):
    id: int
    zone: str


USERS = [User(1, "Europe/Berlin"), User(2, "Asia/Tokyo"), User(3, "America/New_York"), User(4, "Europe/Berlin")]
SENT: list[tuple[int, datetime]] = []


@app.task
async def digests_of_zone(zone: str) -> int:
    """One tick: a job for each user of the zone. Repeated after a crash it enqueues nothing twice, for the ids say which day it is."""
    tick = current.job.run_at or current.job.enqueued_at
    day = tick.astimezone(ZoneInfo(zone)).date()
    users = [user for user in USERS if user.zone == zone]
    await app.aenqueue_many(digest.using(id=f"digest-{user.id}-{day}").job(user.id) for user in users)
    return len(users)


@app.task
async def digest(user_id: int) -> None:
    SENT.append((user_id, app.clock.now()))


async def follow_zones() -> None:
    """Called when a user signs up, leaves, or moves: the schedules are those of the zones in which users live."""
    wanted = {user.zone for user in USERS}
    for zone in wanted:
        await app.aschedule(f"digest:{zone}", digests_of_zone.job(zone), cron="0 9 * * *", timezone=zone)
    for known in await app.aschedules():
        name = known.schedule.name
        if name.startswith("digest:") and name.removeprefix("digest:") not in wanted:
            await app.aunschedule(name)


async def play() -> None:
    clock = TestClock(datetime(2030, 3, 29, 12, 0, tzinfo=UTC))
    async with app.testing("memory://", clock=clock):
        await follow_zones()
        await Rehearsal(app, clock).aadvance(timedelta(days=2))
    zones = {user.id: user.zone for user in USERS}
    for user_id, at in SENT:
        print(f"{at:%Y-%m-%d %H:%M} UTC  {at.astimezone(ZoneInfo(zones[user_id])):%H:%M} in {zones[user_id]}  user {user_id}")


if __name__ == "__main__":
    asyncio.run(play())
