"""Measures what a key costs: jobs with one processed at a time per key, or in strict order per key, beside the same jobs without;
and free jobs behind very many that wait for one key, beside the free ones alone.

The kinds take turns, round by round, so that whatever else the machine does meets all of them; what counts are the ratios within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias, get_args

from blocked import seconds_to_run
from part import Engine
from place import Place, place_of

from offload import Concurrency, Offload, Worker
from offload.testing.servers import ServerMissing

Kind: TypeAlias = Literal["unlimited", "one at a time per key", "in order per key"]
Measurement: TypeAlias = Literal["cost", "blocked"]
ENGINES: tuple[Engine, ...] = ("sqlite-full", "sqlite-normal", "postgresql", "redis", "valkey")


def main() -> None:
    """Measure and print."""
    options = parsed()
    with ExitStack() as stack:
        for engine, place in places_of(options, stack).items():
            print(f"{engine} {place.version}".rstrip())
            if "cost" in (options.only or get_args(Measurement)):
                measure_cost(place, options)
            if "blocked" in (options.only or get_args(Measurement)):
                measure_blocked(place, options)


def measure_cost(place: Place, options: argparse.Namespace) -> None:
    """Jobs with a key beside jobs without."""
    speeds: dict[Kind, list[float]] = {kind: [] for kind in get_args(Kind)}
    for _ in range(options.rounds):
        for kind, found in speeds.items():
            found.append(speed(place, kind, options.jobs, options.keys))
    for kind, found in speeds.items():
        show(kind, found, "" if kind == "unlimited" else f"{spread(found, speeds['unlimited'])} of the speed")


def measure_blocked(place: Place, options: argparse.Namespace) -> None:
    """Free jobs behind blocked ones beside free jobs alone."""
    alone: list[float] = []
    behind: list[float] = []
    for _ in range(options.rounds):
        alone.append(seconds_to_run(place, options.free, 0, loop_factory()))
        behind.append(seconds_to_run(place, options.free, options.blocked, loop_factory()))
    show(f"{options.free:,} free", [options.free / seconds for seconds in alone])
    show(f"behind {options.blocked:,} blocked", [options.free / seconds for seconds in behind], f"{spread(behind, alone)} of the time")


def places_of(options: argparse.Namespace, stack: ExitStack) -> dict[Engine, Place]:
    """The engines to measure and where. Without a choice, those that are not on this machine are left out, and it says so."""
    tempfile.tempdir = options.folder  # servers keep their data where temporary files go
    places: dict[Engine, Place] = {}
    for engine in options.engine or ENGINES:
        try:
            places[engine] = place_of(engine, Path(options.folder), stack)
        except ServerMissing as error:
            if options.engine:
                raise SystemExit(f"cannot measure {engine}: {error}") from None
            print(f"{engine} is left out: {error}")
    return places


def speed(place: Place, kind: Kind, jobs: int, keys: int) -> float:
    """Jobs a second of one worker, in a queue that was filled before."""
    with place.fresh() as url, asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(processed(Offload(url), kind, jobs, keys))


async def processed(app: Offload, kind: Kind, jobs: int, keys: int) -> float:
    """Fill the queue, empty it, and say how many jobs a second that came to."""

    @app.task(keep=0)
    async def unlimited(key: int) -> None: ...

    @app.task(keep=0, limits=[Concurrency(1, key="k:{key}")])
    async def limited(key: int) -> None: ...

    @app.task(keep=0, order_by="k:{key}")
    async def ordered(key: int) -> None: ...

    task = dict(zip(get_args(Kind), (unlimited, limited, ordered), strict=True))[kind]
    await app.aenqueue_many(task.job(number % keys) for number in range(jobs))
    began = time.perf_counter()
    done = await Worker(app).drain()
    took = time.perf_counter() - began
    await app.aclose()
    if done != jobs:
        raise SystemExit(f"{done} attempts for {jobs} jobs")
    return jobs / took


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """The event loop: as the worker's own."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.Loop


def spread(found: list[float], beside: list[float]) -> str:
    """The median of the ratios within rounds, and how far they lie apart."""
    ratios = [one / other for one, other in zip(found, beside, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def show(what: str, speeds: list[float], compared: str = "") -> None:
    """The median of speeds, and what that is beside others."""
    print(f"  {what:24}{median(speeds):9,.0f} jobs/s   {compared}".rstrip(), flush=True)


def parsed() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--engine", action="append", choices=ENGINES, help="give it again for more of them (default: all that can run here)"
    )
    parser.add_argument(
        "--only", action="append", choices=get_args(Measurement), help="what keys cost, or what blocked jobs do to others (default: both)"
    )
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of a run, of what keys cost")
    parser.add_argument("--keys", type=int, default=1_000, help="so many keys they are spread over")
    parser.add_argument("--free", type=int, default=5_000, help="jobs without a key")
    parser.add_argument("--blocked", type=int, default=100_000, help="jobs of one key before them that cannot run")
    parser.add_argument("--rounds", type=int, default=5, help="how often each kind is measured; medians are shown")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where databases and servers keep their files for the time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
