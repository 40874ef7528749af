"""The seam: what producers, workers and people ask of the place where jobs live.

`Broker` is what producers and workers need, `Store` what a person needs besides, `Session` one worker's standing.
All calls take batches, and all are safe to repeat: a broken connection is always answered by calling again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from offload.clock import Clock
from offload.errors import BadDeclaration, BrokerNotInstalled, Unsupported
from offload.job import Beat, Due, Isolation, Job, Lease, LimitChange, Outcome, Pulse, Schedule, State, TallyKind, Upkeep, WorkerInfo
from offload.records import Facts, Filter, LimitRecord, Record, ScheduleRecord, SessionRecord, Standing, Tally

T = TypeVar("T")


class Feature(StrEnum):
    """A field of the job, or a verb about it, that a broker honours."""

    PRIORITY = "priority"
    DELAY = "delay"
    EXPIRY = "expiry"
    UNIQUE = "unique key"
    ORDER = "strict order by key"
    LIMITS = "limit by key"
    FAIRNESS = "fair turn by key"
    RESULTS = "result"
    STEPS = "step"
    SCHEDULES = "schedule"
    PARENTS = "parent"
    BATCH = "batch"


class Session(ABC):
    """One worker's standing with the broker. Its leases are void once it is gone.

    `beat` is called from the keeper's own thread and loop; all else from the worker's loop.
    """

    id: str

    @cached_property
    def unknown(self) -> set[tuple[str, str]]:
        """Queue and task of jobs set aside by fetches, as the session does not know their task. Whoever tells of them may forget them."""
        return set()

    @abstractmethod
    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        """Claim up to `limit` ready jobs, best first, and of each isolation no more than its `room`.

        The queues are served in the order given; None serves all, starting with another one each time. Within a queue: higher
        priority first, then first in first out by the time it became ready. Jobs that have crashed twice count against the
        room of "process". Of a queue the first `limit` candidates are looked at, and more, up to 1,000, only while none of them could
        be taken: so jobs for which there is no room hold up others for a while at most, and cost little. Jobs of tasks that this
        session does not know are set aside in their task's own line, which is served too where the session knows the task.
        Paused queues give nothing; expired jobs end EXPIRED and are not returned.
        Raises SessionLost when the session is gone, BrokerError when the broker cannot be reached.
        """

    @abstractmethod
    async def retain(self, held: Sequence[Lease]) -> int:
        """Hand back every lease of this session but `held`, as Release does. Returns how many.

        Called after a fetch that failed, before the next: the broker may have carried it out, and leases whose answer was lost belong to a
        live session that does not know of them, so nobody would rescue them. A fetch called before claims nothing from then on, however
        late it reaches the broker. Not called while a fetch is under way.
        Raises SessionLost when the session is gone, BrokerError when the broker cannot be reached.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        """Record how attempts ended, in one atomic operation. Returns only the leases that were lost; their outcomes are dropped.

        A lease settled before is lost: so are all of a call that is repeated because its answer was. A session that is not gone loses
        leases in no other way. Where cancellation was asked for, all outcomes but Done end CANCELLED.
        An outcome that adds jobs comes alone.
        """

    @abstractmethod
    async def beat(self, pulse: Pulse) -> Beat:
        """Show that the session lives: raise its beat number and carry progress up; learn what to stop."""

    @abstractmethod
    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        """Store the JSON result of a step under (job, step). False, and nothing stored, when the lease is lost."""

    @abstractmethod
    async def wait(self, timeout: float) -> None:
        """Return when there may be work, or after `timeout` seconds. May be cancelled at any time."""

    @abstractmethod
    async def maintain(self) -> Upkeep:
        """Promote what is due, expire, rescue what dead sessions held, forget what is old; a bounded piece a call."""

    @abstractmethod
    async def due(self) -> list[Due]:
        """The schedules that are not paused and whose next tick has come."""

    @abstractmethod
    async def tick(self, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> bool:
        """Move the schedule's next tick from `due.next_at` to `next_at` and enqueue `jobs`, as one atomic operation.

        False, and nothing done, when another caller was first or the schedule changed. A job whose overlap forbids it is
        counted as skipped.
        """


class Broker(ABC):
    """All that producers and workers need."""

    features: ClassVar[frozenset[Feature]]
    durable: ClassVar[bool] = True
    clock: Clock
    """By what it judges whether a time has come: its server's clock, where it has a server, for a worker's own may be wrong or jump."""
    timeout: float = 0.0
    """Seconds for which a producer's call is tried again while the broker is away; with its first call, to open it as well."""

    @classmethod
    @abstractmethod
    def connect(cls, url: str, clock: Clock) -> Self:
        """The broker at `url`. Does no I/O yet; raises BadDeclaration when the URL cannot be understood."""

    def missing(self) -> str | None:
        """What is not there yet and opening would make, in words; None when there is something to look at. Makes nothing."""
        return None

    def client(self) -> Self:
        """The broker as one more event loop may use it; brokers that are bound to a loop return a new one."""
        return self

    async def open(self) -> None:
        """Make ready for use: connect, check the schema. Called once per client, before all else."""

    async def close(self) -> None:
        """Let go of connections. Nothing accepted is lost."""

    def abandon(self) -> None:
        """Let go of what can be let go without the event loop that opened this client: it is closed. Does nothing unless overridden."""

    @abstractmethod
    async def enqueue(self, jobs: Sequence[Job]) -> list[str]:
        """Store up to 1,000 jobs, all or none. Durable on return.

        Returns an id each, in order: the job's own, or on a unique conflict that of the job which stands for it. Repeating a
        job of the same id, task and payload stores nothing twice. Raises UniqueConflict, IdConflict, ParentNotFound, BatchClosed;
        nothing is stored then.
        """

    @abstractmethod
    def session(self, worker: WorkerInfo) -> AbstractAsyncContextManager[Session]:
        """Open a session for a worker; leaving the block ends it and releases what it still holds, attempts given back."""


class Store(Broker):
    """A broker that can also be asked about the jobs it holds, and told what to do with them."""

    @abstractmethod
    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records of those of `ids` that exist."""

    @abstractmethod
    async def find(self, filter: Filter, limit: int, after: str | None = None) -> list[Record]:
        """Up to `limit` records that match, newest enqueued first; `after` is the last id of the page before."""

    @abstractmethod
    async def counts(self) -> dict[str, dict[State, int]]:
        """By queue and state, the number of jobs; zeros are left out."""

    @abstractmethod
    async def cancel(self, ids: Sequence[str]) -> set[str]:
        """Cancel jobs: at once where not started, else by asking their worker. Returns the ids that were not yet terminal."""

    @abstractmethod
    async def retry(self, ids: Sequence[str], payload: bytes | None = None) -> set[str]:
        """Make dead, cancelled and expired jobs READY again, with fresh attempts and crashes and, where given, another payload.

        A new life: expiry no longer applies. Returns the ids that were revived; a job whose unique key is taken is refused
        (left out), as are ids that are unknown or in another state. What wide workflows and batches have left to `maintain` comes
        first: children are told of parents that ended, and a stop reaches everybody, however long that takes.
        """

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete jobs and their records, but for running ones. Returns the ids that were deleted."""

    @abstractmethod
    async def pause(self, queue: str) -> None:
        """Let no job of `queue` start until it is resumed; running ones go on."""

    @abstractmethod
    async def resume(self, queue: str) -> None:
        """Undo `pause`."""

    @abstractmethod
    async def paused(self) -> set[str]:
        """The queues that are paused."""

    @abstractmethod
    async def finished(self, ids: Sequence[str], timeout: float) -> dict[str, Record]:
        """Wait until all of `ids` are terminal or unknown, or `timeout` seconds have passed. Returns the terminal records.

        Woken by notification with polling behind it. A server that is away is waited for as long as by `enqueue`; then it raises
        BrokerError.
        """

    @abstractmethod
    async def standing(self, id: str) -> Standing | None:
        """The facts from which to explain why a job does not run; None when there is no such job."""

    @abstractmethod
    async def schedules(self) -> list[ScheduleRecord]:
        """All schedules, by name."""

    @abstractmethod
    async def schedule(self, schedule: Schedule, next_at: datetime | None) -> None:
        """Store a dynamic schedule under its name, or replace the rule of that name. An unchanged rule keeps its next tick."""

    @abstractmethod
    async def unschedule(self, name: str) -> bool:
        """Remove a schedule. False when there is none. Jobs it has enqueued stay."""

    @abstractmethod
    async def pause_schedule(self, name: str, paused: bool, next_at: datetime | None = None) -> bool:
        """Pause or resume a schedule; on resuming, `next_at` is its next tick from now. False when there is none."""

    @abstractmethod
    async def fire(self, name: str, job: Job) -> str | None:
        """Enqueue one extra job of a schedule now, whatever its rule says. None when its overlap forbids it."""

    async def limits(self, limit: int = 1_000, after: str | None = None, key: str | None = None) -> list[LimitRecord]:  # noqa: ARG002 - engines that keep limits take them
        """What keys of orders and limits allow that are held or waited for, or that a person or a task has changed; by key and kind.

        Of the first `limit` keys after `after`, or of `key` alone.
        """
        raise Unsupported(f"{type(self).__name__} keeps no orders and limits by key; {instead(Feature.LIMITS)}")

    async def set_limit(self, key: str, change: LimitChange) -> None:  # noqa: ARG002 - engines that keep limits take it
        """Change what a key allows, from now on and until it is changed again; jobs that are READY or RUNNING are not taken back."""
        raise Unsupported(
            f"{type(self).__name__} keeps no orders and limits by key, so nothing is set for {key!r}; {instead(Feature.LIMITS)}"
        )

    async def open_batch(self, id: str, name: str, callbacks: Sequence[Job]) -> None:  # noqa: ARG002 - engines that keep batches take them
        """Begin a batch with its callbacks, whose `callback` says what each waits for. Does nothing where there is one of this id."""
        raise Unsupported(f"{type(self).__name__} keeps no batches; {instead(Feature.BATCH)}")

    async def seal_batch(self, id: str) -> bool:  # noqa: ARG002
        """Take no more jobs from outside: once all have ended it is finished. False when there is none, or it is sealed already."""
        raise Unsupported(f"{type(self).__name__} keeps no batches; {instead(Feature.BATCH)}")

    async def stop(self, kind: TallyKind, id: str) -> bool:  # noqa: ARG002
        """Cancel all jobs of a workflow or batch, those that are still to come too, and take no more for it to be complete.

        Whatever has not begun when this returns never will. Wide ones are cancelled in pieces, with which `maintain` goes on should this
        client die; what that was to tell children before comes first. False when there is none, or it is finished already.
        """
        raise Unsupported(f"{type(self).__name__} keeps no workflows and batches; {instead(Feature.PARENTS)}")

    async def tallies(self, kind: TallyKind, ids: Sequence[str] | None = None, limit: int = 100, after: str | None = None) -> list[Tally]:  # noqa: ARG002
        """Workflows or batches: those of `ids` that exist, or up to `limit` of all, newest first.

        `after` is the last id of the page before.
        """
        raise Unsupported(f"{type(self).__name__} keeps no workflows and batches; {instead(Feature.PARENTS)}")

    @abstractmethod
    async def sessions(self) -> list[SessionRecord]:
        """The sessions that are not known to be dead."""

    @abstractmethod
    async def inspect(self) -> Facts:
        """What `doctor` judges by."""

    @abstractmethod
    async def migrate(self) -> tuple[int, int]:
        """Bring the schema to this version. Returns (from, to). May be called before opening, which would have done it."""


class Statement(NamedTuple):
    """One SQL statement with its values by name; values are text, numbers, booleans or None, so that any driver takes them."""

    sql: str
    values: Mapping[str, Any] = {}
    answered: bool = True
    """False where nobody looks at its rows, so that it may go with the next statement."""


Work: TypeAlias = Generator[Statement, list[tuple[Any, ...]], T]
"""What an operation does in a transaction, whoever runs it: it yields statements, receives their rows, and returns its result.

An error that a statement meets is raised at its `yield`.
"""


class Cursor(Protocol):
    """What executing a statement gives."""

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement changed."""
        ...

    def fetchone(self) -> Any:
        """The next row as a tuple; None when there is no more."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left; none where the statement gives none."""
        ...


Execute: TypeAlias = Callable[[str, Mapping[str, Any] | Sequence[Any]], Cursor]
"""Runs one statement with its values, by name or by place."""
Routine: TypeAlias = Callable[[Execute], T]
"""`Work` for a database that no driver awaits: a plain function of what executes statements. May be run from any thread."""
Dialect: TypeAlias = Literal["postgresql", "sqlite"]


class SqlStore(Store):
    """A store in an SQL database, which can take part in a transaction of the caller's own.

    What `enqueue_on` and `settle_on` give is run in a savepoint, so that an error inside undoes what it did and nothing else. Both do no
    I/O themselves and may be called from any thread.
    """

    dialect: ClassVar[Dialect]
    """Which database it is. Values stand in statements as `%(name)s` on PostgreSQL and as `:name` on SQLite."""
    needs_opening: ClassVar[bool] = True
    """Whether `enqueue_on` and `settle_on` want an open client; where not, `connect` is enough."""
    library: str | None = None
    """The package whose connections alone may take part; None where any may."""

    @abstractmethod
    def enqueue_on(self, jobs: Sequence[Job]) -> Work[list[str]] | Routine[list[str]]:
        """`enqueue`, as statements to be run on the caller's connection, in the caller's transaction; workers are woken by its commit."""

    @abstractmethod
    def settle_on(self, session: str, lease: Lease, outcome: Outcome) -> Work[bool] | Routine[bool]:
        """`settle` of one lease of `session` in the caller's transaction. False, and nothing done, when the lease is lost.

        Raises what the jobs that it adds are refused by, so that the caller's rows come to nothing, too.

        The lease may have come through a pipe from another process; `ref` is plain data, such as numbers and texts.
        """

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Any]:
        """A connection of this store's own with a transaction begun: committed at the end of the block, rolled back on an error.

        May be called from any thread; the connection is the calling thread's. Gives psycopg's or sqlite3's `Connection`.
        """

    @abstractmethod
    def atransaction(self) -> AbstractAsyncContextManager[Any]:
        """`transaction` for coroutines: psycopg's `AsyncConnection`; on SQLite sqlite3's `Connection`."""

    async def read(self, work: Callable[[], Work[T]]) -> T:
        """Carry out statements that only read, on no connection of those that it lends, of which callers may hold all.

        Needed of stores on PostgreSQL alone, which are asked where a connection leads: see `connections.places`. Others raise Unsupported.
        """
        raise self._reads_nothing(work)

    def read_blocking(self, work: Callable[[], Work[T]]) -> T:
        """The same from any thread, also one whose event loop runs."""
        raise self._reads_nothing(work)

    def _reads_nothing(self, work: object) -> Unsupported:
        return Unsupported(f"{type(self).__name__} carries out no statements of others such as {work!r}: that is for stores on PostgreSQL")


ASKS: Mapping[Feature, Callable[[Job], bool]] = {
    Feature.PRIORITY: lambda job: job.priority != 0,
    Feature.DELAY: lambda job: job.run_at is not None,
    Feature.EXPIRY: lambda job: job.expires_at is not None,
    Feature.UNIQUE: lambda job: job.unique is not None,
    Feature.ORDER: lambda job: job.order_by is not None,
    Feature.LIMITS: lambda job: bool(job.limits),
    Feature.FAIRNESS: lambda job: job.fair_by is not None,
    Feature.PARENTS: lambda job: job.workflow is not None,
    Feature.BATCH: lambda job: job.batch is not None,
}
"""Which feature a job asks for by which field."""


def check(broker: type[Broker], asked: Sequence[Feature], what: str) -> None:
    """Refuse what a broker cannot honour, early and by name. `what` names the task or job. Raises Unsupported."""
    for feature in asked:
        if feature not in broker.features:
            raise Unsupported(f"{broker.__name__} cannot keep a {feature} ({what}); {instead(feature)} for this task")


ENGINES: Mapping[str, str] = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "redis": "Redis"}
"""The engines to recommend, by their schemes."""


def instead(feature: Feature) -> str:
    """Which engines honour a feature: those that are installed, for only they can be asked."""
    able = [name for scheme, name in ENGINES.items() if _honours(scheme, feature)]
    if not able:
        return "use a later version of Offload, for no engine of this one can that outlives its process,"
    return f"use {' or '.join([', '.join(able[:-1]), able[-1]] if able[:-1] else able)}"


def _honours(scheme: str, feature: Feature) -> bool:
    try:
        return feature in broker_class(f"{scheme}:").features
    except (BadDeclaration, BrokerNotInstalled):
        return False


PLANNED: Mapping[str, str] = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "sqs": "sqs",
    "kafka": "kafka",
    "pubsub": "pubsub",
}
"""The extra that will serve a scheme."""


def broker_class(url: str) -> type[Broker]:
    """The broker class that serves `url`'s scheme, found through the entry points `offload.brokers`.

    Raises BadDeclaration for an unknown scheme, and BrokerNotInstalled when the engine is not in this version of Offload yet or
    its package is missing.
    """
    from importlib.metadata import entry_points  # a third of the time that `import offload` would take

    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # for brackets without their like; the engine says so without showing the password
        scheme = url.partition(":")[0].lower()
    known = {point.name: point for point in entry_points(group="offload.brokers")}
    if scheme not in known and scheme in PLANNED:
        raise BrokerNotInstalled(
            f"this version of Offload does not contain the engine of {scheme}:// (the extra {PLANNED[scheme]!r}) yet; "
            "use postgresql://, redis:// or sqlite:/// until then"
        )
    if scheme not in known:
        engine, plus, _ = scheme.partition("+")
        hint = f" (SQLAlchemy's URL? Write {engine}://)" if plus and engine in known else ""
        raise BadDeclaration(f"no broker serves {scheme or url!r}{hint}: known are {', '.join(f'{name}://' for name in sorted(known))}")
    point = known[scheme]
    try:
        return point.load()
    except ImportError as error:
        extra = point.extras[0] if point.extras else scheme
        raise BrokerNotInstalled(
            f"{scheme}:// needs the package {error.name!r}; install it from a clone of Offload: pip install '.[{extra}]'"
        ) from error
