"""Measures Offload beside the shortest loop that could do the same on the same engine. `python benchmarks/run.py --help` tells how.

Both sides are measured in turn, round by round, so that whatever else the machine does meets both; what counts is their ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from machine import machine
from part import Engine, Loop, Side
from place import Place, place_of
from report import Report, table
from stage import MEASUREMENTS, Account, Stage

from offload.testing.servers import ServerMissing

NO_DISK_MS = 0.02
"""An fsync that is faster has not waited for a disk."""


def main() -> int:
    """Measure and print. Returns 1 when a job was not run exactly once."""
    options = parsed()
    folder = Path(options.folder)
    known = machine(folder)
    if not options.json:
        print(known)
        if known.fsync_ms < NO_DISK_MS:
            print(f"{folder} does not wait for a disk, so FULL is as fast as NORMAL; give one that does by --folder")
    report, account = Report(), Account()
    with ExitStack() as stack:
        places = places_of(options, folder, stack)
        for number in range(options.rounds):
            for engine, place in places.items():
                for loop in loops(options.loop):
                    stage = Stage(engine, loop, options.jobs, place, account, quick=options.quick)
                    for name in options.only:
                        say(f"round {number + 1} of {options.rounds}: {engine}, {loop}, {name}")
                        measure(stage, name, number, report)
    say("")
    rows = report.rows()
    if options.json:
        found = {"machine": known._asdict(), "servers": {engine: place.version for engine, place in places.items() if place.version}}
        print(json.dumps(found | {"exactly_once": vars(account), "rows": [row.as_dict() for row in rows]}, indent=1))
    else:
        print(table(rows))
        print(
            f"\n{account.jobs:,} jobs in {account.runs} runs: " + ("; ".join(account.problems) or "each was run exactly once and settled")
        )
    return 1 if account.problems else 0


def places_of(options: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[Engine, Place]:
    """The engines to measure and where. Without a choice, those whose server is not on this machine are left out, and it says so."""
    tempfile.tempdir = str(folder)  # servers keep their data where temporary files go
    places: dict[Engine, Place] = {}
    for engine in options.engine or get_args(Engine):
        try:
            places[engine] = place_of(engine, folder, stack)
        except ServerMissing as error:
            if options.engine:
                raise SystemExit(f"cannot measure {engine}: {error}") from None
            print(f"{engine} is left out: {error}", file=sys.stderr)
            continue
        if places[engine].version and not options.json:
            print(f"{engine}: {places[engine].version}")
    return places


def measure(stage: Stage, name: str, number: int, report: Report) -> None:
    """One pair; who goes first changes from round to round."""
    sides: list[Side] = ["offload", "floor"]
    values = {side: MEASUREMENTS[name](stage, side) for side in (sides if number % 2 == 0 else sides[::-1])}
    report.add(stage.engine, stage.loop, values["offload"], values["floor"])


def loops(asked: str | None) -> list[Loop]:
    """The event loops to measure: the worker uses uvloop where it is installed."""
    installed = find_spec("uvloop") is not None
    match asked:
        case "uvloop" | "asyncio":
            return [asked]
        case "both" if installed:
            return ["uvloop", "asyncio"]
        case _:
            return ["uvloop" if installed else "asyncio"]


def say(progress: str) -> None:
    """Tell whoever waits, on one line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{progress}", end="", file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    engines, names = get_args(Engine), tuple(MEASUREMENTS)
    parser.add_argument(
        "--engine", action="append", choices=engines, help="give it again for more of them (default: all that can run here)"
    )
    parser.add_argument("--only", action="append", choices=names, help=f"give it again for more of them (default: {', '.join(names)})")
    parser.add_argument("--jobs", type=int, help="jobs of a run; a tenth of them is enqueued one by one (default: 20000, quick: 2000)")
    parser.add_argument("--rounds", type=int, help="how often each pair is measured; medians are shown (default: 3, quick: 1)")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that all works")
    parser.add_argument(
        "--loop", choices=("uvloop", "asyncio", "both"), default=None, help="the worker's event loop (default: as the worker's own)"
    )
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where databases and servers keep their files for the time")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    options = parser.parse_args()
    options.only = options.only or list(names)
    options.jobs = options.jobs or (2_000 if options.quick else 20_000)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
