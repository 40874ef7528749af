"""One process of a benchmark: plays the part that it is given as JSON, and writes what it has to tell to a file, as JSON.

Not to its standard output: with uvloop a long line to a pipe has been cut short.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from part import Part, Player, Tally, Told

SETTLING = 0.3
"""Seconds after which a worker with nothing to do sleeps, and one with a single job has run it."""


def player_of(part: Part, tally: Tally) -> Player:
    """Whoever plays this side on this engine. Imported here, so that neither weighs on the other."""
    if part.side == "offload":
        from offload_player import OffloadPlayer

        return OffloadPlayer(part, tally)
    match part.engine:
        case "memory":
            from floor_memory import Floor
        case "sqlite-full" | "sqlite-normal":
            from floor_sqlite import Floor
        case "postgresql":
            from floor_postgres import Floor
        case "redis" | "redis-always" | "valkey":
            from floor_redis import Floor
    return Floor(part, tally)


def play(part: Part) -> Told:
    """Do what the part says."""
    tally = Tally(part.jobs if part.duty == "work" else 0)
    player = player_of(part, tally)
    if part.duty == "enqueue":
        wait_for_go(part)
        return player.enqueue(part)
    told = Told()
    if part.source == "fill":
        player.enqueue(part)
    factory = loop_factory(part)
    wait_for_go(part)
    before = time.process_time()
    with asyncio.Runner(loop_factory=factory) as runner:
        told = runner.run(work(player, part))
    told.processor = time.process_time() - before
    told.memory = resident_bytes()
    told.runs, told.began = list(tally.runs), list(tally.began)
    if part.engine == "memory":
        told.left = player.left(kept=part.kept)
    return told


async def work(player: Player, part: Part) -> Told:
    """Run jobs. Those from a thread beside are enqueued while the worker sleeps; when they are done it is told to stop."""
    loop = asyncio.get_running_loop()
    fed = Told()

    def feed(stop: Callable[[], None]) -> None:
        nonlocal fed
        time.sleep(SETTLING)
        fed = player.enqueue(part)
        time.sleep(SETTLING)
        loop.call_soon_threadsafe(stop)

    def told(stop: Callable[[], None]) -> None:
        loop.add_signal_handler(signal.SIGTERM, stop)
        if part.source == "feed":
            threading.Thread(target=feed, args=(stop,)).start()

    await player.work(part, told)
    return fed


def wait_for_go(part: Part) -> None:
    """Begin together with the others."""
    if part.waits:
        print("ready", flush=True)
        sys.stdin.readline()


def loop_factory(part: Part) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The kind of event loop that the part asks for."""
    if part.loop == "asyncio":
        return None
    import uvloop

    return uvloop.new_event_loop


def resident_bytes() -> int:
    """What this process holds in memory now; where the system does not tell, the most that it held."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(play(msgspec.json.decode(sys.argv[1], type=Part))))
