"""Starts the processes of a benchmark and measures: one function a measurement, for either side."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles
from tempfile import NamedTemporaryFile
from typing import Self

import msgspec
import psutil
from actor import SETTLING, player_of
from part import Engine, Kind, Loop, Part, Side, Tally, Told
from place import Place

ACTOR = Path(__file__).with_name("actor.py")
PATIENCE = 600.0
"""Seconds after which a process that has not ended is held for stuck."""
PICKUP_PAUSE = 0.02
IDLE_FOR = 6.0
Values = dict[str, float]
"""What was measured, by the name of its row."""


@dataclass
class Account:
    """Whether every job was run exactly once, over all runs."""

    runs: int = 0
    jobs: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, part: Part, workers: Sequence[Told], left: int) -> None:
        """Add one run by one or more workers."""
        times = [sum(each) for each in zip(*(told.runs for told in workers), strict=True)]
        missing, repeated = times.count(0), sum(number > 1 for number in times)
        self.runs += 1
        self.jobs += len(times)
        if missing or repeated or left:
            self.problems.append(f"{part.side} on {part.engine}: {missing} jobs not run, {repeated} run again, {left} not settled")


class Actor:
    """A process that plays one part. As a context manager it is gone at the end, whatever went wrong."""

    def __init__(self, part: Part) -> None:
        self._told = NamedTemporaryFile(prefix="offload-benchmark-")  # noqa: SIM115 - closed at the end
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(ACTOR), msgspec.json.encode(part).decode(), self._told.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        if part.waits:
            self._out.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self._told, self._in, self._out):
            with suppress(BrokenPipeError):
                file.close()

    def go(self) -> None:
        """Let it begin."""
        with suppress(BrokenPipeError):  # it has died: `told` says so
            self._in.write("go\n")
            self._in.flush()

    def told(self) -> Told:
        """What it tells at its end."""
        code = self.process.wait(PATIENCE)
        if code != 0:
            raise RuntimeError(f"a process of the benchmark ended with exit code {code}; its own error stands above")
        return msgspec.json.decode(self._told.read(), type=Told)


@dataclass
class Stage:
    """Where one side is measured on one engine."""

    engine: Engine
    loop: Loop
    jobs: int
    place: Place
    account: Account
    quick: bool = False

    @property
    def in_memory(self) -> bool:
        return self.engine == "memory"

    def part(self, side: Side, url: str, **changes: object) -> Part:
        """A part at the place of `url`."""
        return replace(Part(side=side, engine=self.engine, loop=self.loop, duty="work", url=url, jobs=self.jobs), **changes)

    # -- measurements ------------------------------------------------------------------------------------------------------

    def enqueue(self, side: Side) -> Values:
        """Jobs a second, one by one from sync and async code and in bulk, and how long one call takes."""
        values: Values = {}
        few = max(self.jobs // 10, 10)
        for how, jobs in (("sync", few), ("async", few), ("bulk", self.jobs)):
            with self.place.fresh() as url:
                told = play([self.part(side, url, duty="enqueue", how=how, jobs=jobs)])[0]
            values[f"enqueue {ENQUEUES[how]}, jobs/s"] = jobs / told.seconds
            if how != "bulk":
                values |= spread(f"enqueue call, {how}", told.calls, unit="µs")
        return values

    def process(self, side: Side) -> Values:
        """Jobs a second that workers run and settle."""
        values: Values = {}
        workers = (1,) if self.in_memory else (1, 2)
        for kind in ("async", "sync"):
            for count in workers:
                rate, told = self._drain(side, kind, count, kept=False)
                values[f"process {kind}, {count} worker{'s' if count > 1 else ''}, jobs/s"] = rate
                if count == 1:
                    values[f"processor time a job, {kind}, µs"] = told[0].processor / self.jobs * 1e6
                if kind == "async" and count == 1:
                    values["memory of one worker, MiB"] = told[0].memory / 2**20
        values["process async, 1 worker, records kept, jobs/s"], _ = self._drain(side, "async", 1, kept=True)
        return values

    def _drain(self, side: Side, kind: Kind, count: int, *, kept: bool) -> tuple[float, list[Told]]:
        with self.place.fresh() as url:
            part = self.part(side, url, kind=kind, kept=kept, source="fill" if self.in_memory else "place")
            if not self.in_memory:
                play([replace(part, duty="enqueue")])
            told = play([part] * count)
            self.account.check(part, told, self._left(part, told))
        began = [moment for each in told for moment in each.began if moment]
        return self.jobs / (max(began) - min(began)), told

    def _left(self, part: Part, told: Sequence[Told]) -> int:
        return told[0].left if self.in_memory else player_of(part, Tally(0)).left(kept=part.kept)

    def pickup(self, side: Side) -> Values:
        """How long after the call of enqueue a job begins, where the worker slept."""
        jobs = 20 if self.quick else 200
        with self.place.fresh() as url:
            part = self.part(side, url, jobs=jobs, how="sync", pause=PICKUP_PAUSE, until="told")
            if self.in_memory:
                workers = play([replace(part, source="feed")])
                producer, left = workers[0], workers[0].left
            else:
                with Actor(part) as worker, Actor(replace(part, duty="enqueue")) as feeder:
                    worker.go()
                    time.sleep(SETTLING)
                    feeder.go()
                    producer = feeder.told()
                    time.sleep(SETTLING)
                    worker.process.terminate()
                    workers = [worker.told()]
                left = self._left(part, workers)
            self.account.check(part, workers, left)
        waits = [began - called for called, began in zip(producer.called, workers[0].began, strict=True) if began]
        return spread("idle pickup", waits, unit="ms")

    def start(self, side: Side) -> Values:
        """How long after its process was started a worker begins its first job."""
        with self.place.fresh() as url:
            part = self.part(side, url, jobs=1, waits=False, source="fill" if self.in_memory else "place")
            if not self.in_memory:
                play([replace(part, duty="enqueue", waits=True)])
            with Actor(part) as worker:
                told = worker.told()
            self.account.check(part, [told], self._left(part, [told]))
        return {"start to first job, ms": (told.began[0] - worker.started) * 1000}

    def idle(self, side: Side) -> Values:
        """How much of one core a worker takes that has nothing to do, and how many commands it sends to a server."""
        seconds = IDLE_FOR / 6 if self.quick else IDLE_FOR
        with self.place.fresh() as url, Actor(self.part(side, url, jobs=0, until="told")) as worker:
            worker.go()
            time.sleep(SETTLING if self.quick else 1.0)
            before = cpu_seconds(worker.process.pid)
            commands = self.place.commands(seconds)
            used = cpu_seconds(worker.process.pid) - before
            worker.process.terminate()
            worker.told()
        values = {"idle worker, % of a core": used / seconds * 100}
        return values if commands is None else values | {"idle worker, commands/s": commands / seconds}


MEASUREMENTS: dict[str, Callable[[Stage, Side], Values]] = {
    "enqueue": Stage.enqueue,
    "process": Stage.process,
    "pickup": Stage.pickup,
    "start": Stage.start,
    "idle": Stage.idle,
}
ENQUEUES = {"sync": "one by one, sync", "async": "one by one, async", "bulk": "in bulk"}


def play(parts: Sequence[Part]) -> list[Told]:
    """Have processes play parts, all beginning together."""
    with ExitStack() as stack:
        actors = [stack.enter_context(Actor(part)) for part in parts]
        for actor in actors:
            actor.go()
        return [actor.told() for actor in actors]


def spread(name: str, seconds: Sequence[float], *, unit: str) -> Values:
    """The median and the slowest tenth and hundredth."""
    factor = {"ms": 1e3, "µs": 1e6}[unit]
    percentiles = quantiles(seconds, n=100, method="inclusive")
    return {f"{name} p{p}, {unit}": percentiles[p - 1] * factor for p in (50, 90, 99)}


def cpu_seconds(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
