"""Measures what a job costs that others wait for: the parts of a wide group with a join, and the jobs of a batch, beside plain jobs.

The kinds take turns, round by round, so that whatever else the machine does meets all of them; what counts are the ratios within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from statistics import median
from typing import Literal, TypeAlias, get_args

from keys import ENGINES, loop_factory, places_of, show, spread
from place import Place
from settled import AT_ONCE, declared, seconds_to_settle

from offload import Handle, Offload, Worker, chain, group, previous

Kind: TypeAlias = Literal["plain", "parts of a join", "jobs of a batch"]


def main() -> None:
    """Measure and print."""
    options = parsed()
    with ExitStack() as stack:
        for engine, place in places_of(options, stack).items():
            print(f"{engine} {place.version}".rstrip())
            measure(place, options)
            measure_settling(place, options)


def measure(place: Place, options: argparse.Namespace) -> None:
    """Jobs that are waited for beside jobs that are not."""
    seconds: dict[Kind, list[float]] = {kind: [] for kind in get_args(Kind)}
    enqueued: dict[Kind, list[float]] = {kind: [] for kind in get_args(Kind)}
    late: list[float] = []
    for _ in range(options.rounds):
        for kind in get_args(Kind):
            with place.fresh() as url, asyncio.Runner(loop_factory=loop_factory()) as runner:
                one, other, gap = runner.run(processed(Offload(url), kind, options.jobs))
            enqueued[kind].append(one)
            seconds[kind].append(other)
            late += [] if gap is None else [gap]
    for kind in get_args(Kind):
        compared = "" if kind == "plain" else f"{spread(seconds[kind], seconds['plain'])} of the time"
        show(f"{kind}, run", [options.jobs / each for each in seconds[kind]], compared)
        compared = "" if kind == "plain" else f"{spread(enqueued[kind], enqueued['plain'])} of the time"
        show(f"{kind}, enqueued", [options.jobs / each for each in enqueued[kind]], compared)
    print(f"  the join begins {median(late) * 1_000:.1f} ms after its last parent ended", flush=True)


def measure_settling(place: Place, options: argparse.Namespace) -> None:
    """What the store alone does to end parts of a join, beside plain jobs."""
    jobs = max(options.jobs // AT_ONCE, 1) * AT_ONCE
    plain: list[float] = []
    parts: list[float] = []
    for _ in range(options.rounds):
        plain.append(seconds_to_settle(place, jobs, joined=False, loop_factory=loop_factory()))
        parts.append(seconds_to_settle(place, jobs, joined=True, loop_factory=loop_factory()))
    show("plain, settled", [jobs / each for each in plain])
    show("parts, settled", [jobs / each for each in parts], f"{spread(parts, plain)} of the time")


async def processed(app: Offload, kind: Kind, jobs: int) -> tuple[float, float, float | None]:
    """Enqueue and run. Returns the seconds of each, of the parts alone, and how long after its last parent a join began."""
    part, join = declared(app)
    parts = [part.job(n) for n in range(jobs)]
    began = time.perf_counter()
    last: Handle[int] | None = None
    match kind:
        case "plain":
            await app.aenqueue_many(parts)
        case "parts of a join":
            last = await chain(group(*parts), join.job(previous)).aenqueue()
        case "jobs of a batch":
            async with app.batch() as batch:
                await batch.aadd_many(parts)
    enqueued = time.perf_counter() - began
    await Worker(app, burst=True).run()
    began, ended = await span(app, jobs)
    gap = None if last is None else (await start_of(last, sum(range(jobs))) - ended).total_seconds()
    await app.aclose()
    return enqueued, (ended - began).total_seconds(), gap


async def span(app: Offload, jobs: int) -> tuple[datetime, datetime]:
    """When the first of the parts began and the last ended, by the records."""
    records = await app.afind(task="part", limit=10**9)
    started = [each.started_at for each in records if each.started_at is not None]
    ended = [each.finished_at for each in records if each.finished_at is not None]
    if len(started) != jobs or len(ended) != jobs:
        raise SystemExit(f"of {jobs} parts {len(started)} began and {len(ended)} ended")
    return min(started), max(ended)


async def start_of(join: Handle[int], total: int) -> datetime:
    """When a join began, which is to have come to `total`."""
    record = await join.arecord()
    if record.result != total or record.started_at is None:
        raise SystemExit(f"the join came to {record}")
    return record.started_at


def parsed() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--engine", action="append", choices=ENGINES, help="give it again for more of them (default: all that can run here)"
    )
    parser.add_argument("--jobs", type=int, default=10_000, help="parts of a group, jobs of a batch")
    parser.add_argument("--rounds", type=int, default=3, help="how often each kind is measured; medians are shown")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where databases and servers keep their files for the time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
