"""What a process of a benchmark is told to do, and what it tells afterwards."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Protocol

Side = Literal["offload", "floor"]
Engine = Literal["memory", "sqlite-full", "sqlite-normal", "postgresql", "redis", "redis-always", "valkey"]
Loop = Literal["uvloop", "asyncio"]
How = Literal["sync", "async", "bulk"]
Kind = Literal["async", "sync"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process does: enqueue jobs, numbered from 0, or run them. It goes to the process as JSON."""

    side: Side
    engine: Engine
    loop: Loop
    duty: Literal["enqueue", "work"]
    url: str
    """Where the jobs live, as Offload is told it."""
    jobs: int
    how: How = "bulk"
    """Enqueue one by one from sync or async code, or in bulk."""
    pause: float = 0.0
    """Seconds between two calls of enqueue; long enough, and the worker beside it falls asleep."""
    kind: Kind = "async"
    """What the tasks are: `async def` or `def`."""
    kept: bool = False
    """Whether records of jobs that succeeded are kept."""
    until: Literal["empty", "told"] = "empty"
    """A worker leaves when nothing is left, or on SIGTERM."""
    waits: bool = True
    """Whether to say `ready` when all is imported, and begin when told `go`."""
    source: Literal["place", "fill", "feed"] = "place"
    """Where a worker's jobs come from: they lie at `url`. In memory it enqueues them itself: in bulk before, or from a thread beside."""


@dataclass(kw_only=True)
class Told:
    """What the process tells at its end. Times are of the system's monotonic clock, which all processes share."""

    seconds: float = 0.0
    """How long the enqueueing took."""
    called: list[float] = field(default_factory=list)
    """When each call of enqueue began."""
    calls: list[float] = field(default_factory=list)
    """Seconds that each took."""
    runs: list[int] = field(default_factory=list)
    """By job, how often it was run."""
    began: list[float] = field(default_factory=list)
    """By job, when it last began; 0 for never."""
    processor: float = 0.0
    """Seconds of processor time that a worker took, in all its threads, from beginning to end."""
    memory: int = 0
    """Bytes that a worker held at its end, code and all (resident set)."""
    left: int = 0
    """Jobs in memory that were not settled when the worker left."""

    def note(self, began: float) -> None:
        """A call of enqueue has ended."""
        took = monotonic() - began
        self.called.append(began)
        self.calls.append(took)
        self.seconds += took


class Tally:
    """Counts how often each job was run and notes when it last began."""

    def __init__(self, jobs: int) -> None:
        self.runs = bytearray(jobs)
        self.began = array("d", bytes(8 * jobs))

    def mark(self, n: int) -> None:
        """What every job does."""
        self.runs[n] += 1
        self.began[n] = monotonic()


class Player(Protocol):
    """One side of a comparison, on one engine."""

    def enqueue(self, part: Part) -> Told:
        """Enqueue the jobs of a part."""
        ...

    async def work(self, part: Part, told: Callable[[Callable[[], None]], None]) -> None:
        """Run jobs. A worker that is to go on until told hands its way to stop to `told`."""
        ...

    def left(self, *, kept: bool) -> int:
        """How many jobs are not settled as they should be: gone, or their record kept."""
        ...
