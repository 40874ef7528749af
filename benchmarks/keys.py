"""Measures what a key costs: jobs with one processed at a time per key, or in strict order per key, beside the same jobs without.

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

from part import Engine
from place import Place, place_of

from offload import Concurrency, Offload, Worker
from offload.testing.servers import ServerMissing

Kind: TypeAlias = Literal["unlimited", "one at a time per key", "in order per key"]
ENGINES: tuple[Engine, ...] = ("sqlite-full", "sqlite-normal", "postgresql", "redis", "valkey")


def main() -> None:
    """Measure and print."""
    options = parsed()
    with ExitStack() as stack:
        for engine, place in places_of(options, stack).items():
            speeds: dict[Kind, list[float]] = {kind: [] for kind in get_args(Kind)}
            for _ in range(options.rounds):
                for kind, found in speeds.items():
                    found.append(speed(place, kind, options.jobs, options.keys))
            show(engine, place, speeds)


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


def show(engine: Engine, place: Place, speeds: dict[Kind, list[float]]) -> None:
    """One engine's medians, and how far the ratios lie apart."""
    print(f"{engine} {place.version}".rstrip())
    unlimited = speeds["unlimited"]
    for kind, found in speeds.items():
        ratios = [own / free for own, free in zip(found, unlimited, strict=True)]
        spread = "" if found is unlimited else f"{median(ratios):8.2f}   ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {kind:24}{median(found):9,.0f} jobs/s{spread}")


def parsed() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--engine", action="append", choices=ENGINES, help="give it again for more of them (default: all that can run here)"
    )
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of a run")
    parser.add_argument("--keys", type=int, default=1_000, help="so many keys they are spread over")
    parser.add_argument("--rounds", type=int, default=5, help="how often each kind is measured; medians are shown")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where databases and servers keep their files for the time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
