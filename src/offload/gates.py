"""Decides who of a key may go: its turn, its slot, its token. Pure: the moment is handed in, and what is stored is asked for.

A job with `order_by` or `limits` passes a **gate** for each of its keys, all of them or none, to become READY:

    turn of K    one job at a time, held until it is terminal
    slot of K    n jobs at a time, held while READY or RUNNING
    token of K   as many READY jobs as tokens are there; the claim takes the token

Who cannot pass waits in a **lane**: that of its order key, or else that of all its keys together, so that whoever stands first in a lane
stands for all behind it. A lane is parked at the one gate that stops its first job. So a slot that comes free looks at one lane, whatever
waits elsewhere, and nothing is ever taken while something else is waited for.

Lanes and gates are held in part: what is missing is asked for by `yield`, see `Need`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from msgspec import UNSET

from offload.job import Job, Kind, Limit, LimitChange, LimitRecord, RateLimit, SlotLimit

T = TypeVar("T")

LATENESS = 20_000
"""Microseconds by which a start may be late without the next ones being late too; after a longer pause a rate begins anew."""

KINDS: tuple[Kind, ...] = ("turn", "slot", "token")


class Want(NamedTuple):
    """What a job needs of one gate, and how wide the gate is as far as the job knows."""

    gate: str
    cost: int
    limit: Limit | None
    """None for a turn."""


class Need(NamedTuple):
    """Asks for more of what is stored: gates by their ids, lanes by theirs, more lanes parked at a gate, or more jobs of a lane."""

    what: Literal["gates", "lanes", "parked", "line"]
    ids: Sequence[str]


Steps: TypeAlias = Generator[Need, None, T]
Place: TypeAlias = tuple[int, str]
"""Of a lane at its gate: the seat of its first job, and its id."""


class Member(NamedTuple):
    """A job as gates see it. `own` is the store's business."""

    seat: int
    """Its place in lanes: the number under which it was first due. It keeps it."""
    n: int
    lane: str
    wants: tuple[Want, ...]
    own: Any = None


def gate_of(kind: Kind, key: str) -> str:
    """The id of a gate; it reads on in `waits for a ...`."""
    return f"{kind} of {key}"


@lru_cache(8192)
def kind_of(gate: str) -> Kind:
    """Of which kind a gate is."""
    return next(kind for kind in KINDS if gate.startswith(f"{kind} of "))


def key_of(gate: str) -> str:
    """The key of a gate."""
    return gate.partition(" of ")[2]


def gated(job: Keyed) -> bool:
    """Whether a job passes any gate."""
    return job.order_by is not None or bool(job.limits)


def holds_on(job: Job) -> bool:
    """Whether a job keeps its turn when it is DEAD."""
    return job.order_by is not None and job.on_dead == "hold"


class Keyed(Protocol):
    """What of a job matters at gates."""

    @property
    def order_by(self) -> str | None:
        """The key of its order."""
        ...

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Its limits."""
        ...


def wants_of(job: Keyed) -> tuple[Want, ...]:
    """What a job needs: its turn, its slots, its tokens, in the order in which they are looked at."""
    return _wants(job.order_by, job.limits)


@lru_cache(8192)  # whoever waits behind somebody of the same keys wants the same
def _wants(order_by: str | None, limits: tuple[Limit, ...]) -> tuple[Want, ...]:
    turn = () if order_by is None else (Want(gate_of("turn", order_by), 1, None),)
    slots = tuple(Want(gate_of("slot", limit.key), 1, limit) for limit in limits if isinstance(limit, SlotLimit))
    tokens = tuple(Want(gate_of("token", limit.key), limit.cost, limit) for limit in limits if isinstance(limit, RateLimit))
    return turn + slots + tokens


def member_of(job: Keyed, n: int, seat: int, own: Any = None) -> Member:
    """A gated job as gates see it."""
    lane, wants = _keys(job.order_by, job.limits)
    return Member(seat, n, lane, wants, own)


@lru_cache(8192)
def _keys(order_by: str | None, limits: tuple[Limit, ...]) -> tuple[str, tuple[Want, ...]]:
    """The lane of a job, and what it needs: with all of its order key it waits, or else with all that want the very same."""
    wants = _wants(order_by, limits)
    return wants[0].gate if order_by is not None else "\n".join(want.gate for want in wants), wants


def holds(job: Keyed) -> bool:
    """Whether a job that runs holds any gate; of a rate it has taken its token for good."""
    return job.order_by is not None or any(isinstance(limit, SlotLimit) for limit in job.limits)


def lone_want(job: Keyed) -> Want | None:
    """What a job needs where that is one turn or one slot and nothing else, as mostly; what it leaves concerns one gate then."""
    wants = wants_of(job)
    return wants[0] if len(wants) == 1 and not isinstance(wants[0].limit, RateLimit) else None


def held_back_by(job: Keyed) -> tuple[str, ...]:
    """The gates that are shut when an attempt of the job asks to hold back its whole key."""
    wants = wants_of(job)
    for kind in reversed(KINDS):
        if gates := tuple(want.gate for want in wants if kind_of(want.gate) == kind):
            return gates
    return ()


# The generic cell rate algorithm: ITU-T I.371, annex A. `tat` is the theoretical arrival time, when the next token is due at the pace
# of one an interval; it may lie up to `burst` intervals ahead.


def settled(tat: int, now: int, interval: int, burst: int) -> int:
    """The theoretical arrival time as it counts now: not far in the past, where nobody came, nor beyond what a clock set back explains."""
    return now if tat < now - LATENESS else min(tat, now + burst * interval)


def tokens(tat: int, now: int, interval: int, burst: int) -> int:
    """How many tokens are there."""
    return (now - settled(tat, now, interval, burst)) // interval + burst


def token_at(tat: int, now: int, interval: int, burst: int, number: int) -> int:
    """When `number` tokens will be there if none is taken; `now` at the earliest."""
    return max(settled(tat, now, interval, burst) + (number - burst) * interval, now)


@dataclass(slots=True)
class Gate:
    """What is known of a gate."""

    id: str
    kind: Kind
    holders: dict[int, int] = field(default_factory=dict[int, int])
    """Who has passed and not left, with their costs."""
    parked: list[Place] = field(default_factory=list[Place])
    """The first lanes that wait here, by the seats of their first jobs."""
    more: bool = False
    """Whether there may be others behind them."""
    read_to: Place = (-1, "")
    """The last one that was read."""
    n: int | None = None
    """Slots, where a person has set them."""
    interval: int | None = None
    burst: int | None = None
    """The rate, where a person has set it."""
    paused: bool = False
    shut_until: int = 0
    """Until then nobody passes."""
    tat: int = 0
    wake_at: int | None = None
    """When it is to be looked at again, because time alone lets somebody pass."""


@dataclass(slots=True)
class Lane:
    """What is known of a lane."""

    id: str
    gate: str | None = None
    """Where it is parked; None while it is empty."""
    line: list[Member] = field(default_factory=list[Member])
    """Its first jobs."""
    more: bool = False
    """Whether there may be others behind them."""
    read_to: int = -1
    """The seat of the last one that was read."""


@dataclass(slots=True)
class Changes:
    """What a ledger has changed and is still to be written."""

    held: dict[tuple[str, int], int | None] = field(default_factory=dict[tuple[str, int], int | None])
    """(gate, job) -> cost, of those who have passed; None of those who have left."""
    waiting: dict[int, tuple[Member, bool]] = field(default_factory=dict[int, tuple[Member, bool]])
    """By their numbers jobs, and whether they wait from now on, or wait no more."""
    lanes: set[str] = field(default_factory=set[str])
    gates: set[str] = field(default_factory=set[str])


PARKED = "a lane that is parked has a first job"
LAST: Place = (2**62, "")
"""Behind all places."""


class Ledger:
    """The gates and lanes of one operation. `ready` is called, in order, for each job that passes after it has waited."""

    def __init__(self, now: int, rules: Mapping[str, Limit], ready: Callable[[Member], None]) -> None:
        self.now = now
        self.rules = rules
        """The limits that workers declare, by their rules; they go before what a job carries."""
        self.gates: dict[str, Gate] = {}
        self.lanes: dict[str, Lane] = {}
        self.changes = Changes()
        self._ready = ready

    # -- what jobs do --------------------------------------------------------------------------------------------------------

    def enter(self, member: Member) -> Steps[bool]:
        """A job wants to become READY. True when it has passed; else it waits from now on."""
        yield from self._known(member)
        lane = self.lanes[member.lane]
        passes, stop = yield from self._look(lane, member)
        # Nothing is held while something else is waited for. Whoever passes thereby stands no longer before it, nor in its way.
        # Who stands behind another of his order gives back even his turn, or both would wait for each other.
        if not passes and (yield from self.leave(member, KINDS if stop is None else ("slot", "token"))):
            passes, stop = yield from self._look(lane, member)
        if passes:
            self._pass(member)
            return True
        if not (lane.more and member.seat > lane.read_to):  # else it stands among those that are not at hand
            insort(lane.line, member)
        self.changes.waiting[member.n] = (member, True)
        if stop is not None:
            yield from self._park(lane, stop)
        return False

    def _look(self, lane: Lane, member: Member) -> Steps[tuple[bool, str | None]]:
        """Whether a job may pass; if not, what stops it, or None where another stands before it in its lane."""
        head = yield from self._head(lane)
        if head is not None and head.seat < member.seat:
            return False, None
        stop = self._stop(member)
        return stop is None, stop

    def leave(self, member: Member, kinds: Iterable[Kind] = KINDS) -> Steps[bool]:
        """A job lets go of what it holds; who waited for that passes. False when it held nothing."""
        yield from self._known(member)
        left = [want for want in member.wants if kind_of(want.gate) in kinds and member.n in self.gates[want.gate].holders]
        for want in left:
            self._let_go(member, want)
        for want in left:
            yield from self.pump(want.gate)
        return bool(left)

    def withdraw(self, member: Member) -> Steps[None]:
        """A job waits no more, for whatever reason but that it passes."""
        yield from self._known(member)
        lane = self.lanes[member.lane]
        head = yield from self._head(lane)
        lane.line = [each for each in lane.line if each.n != member.n]
        self.changes.waiting[member.n] = (member, False)
        if head is None or head.n != member.n:
            return
        gate, stop = lane.gate, None
        self._unpark(lane)
        head = yield from self._head(lane)
        if head is not None:
            yield from self._known(head)
            stop = self._stop(head) or head.wants[0].gate
            yield from self._park(lane, stop)
            yield from self.pump(stop)
        if gate is not None and gate != stop:
            yield from self.pump(gate)  # where others may have waited only because it stood before them

    def start(self, member: Member) -> Steps[bool]:
        """A READY job is claimed: take its tokens. False when it may not start after all; then it waits again, at its old place."""
        yield from self._known(member)
        stop = next((want.gate for want in member.wants if not self._may_start(want)), None)
        if stop is not None:
            yield from self.leave(member, ("slot", "token"))
            yield from self.enter(member)
            return False
        for want in member.wants:
            if isinstance(want.limit, RateLimit):
                interval, burst = self.rate(want)
                gate = self.gates[want.gate]
                gate.tat = settled(gate.tat, self.now, interval, burst) + want.cost * interval
                self.changes.gates.add(gate.id)
                self._let_go(member, want)
                yield from self._time(gate)
        return True

    # -- what time and people do ---------------------------------------------------------------------------------------------

    def pump(self, id: str) -> Steps[None]:
        """Let pass who may, of those that wait at a gate."""
        yield from self._known_gates([id])
        gate = self.gates[id]
        while gate.parked or gate.more:
            lane = yield from self._first(gate)
            if lane is None:
                break
            head = lane.line[0] if lane.line else (yield from self._head(lane))
            assert head is not None, PARKED
            yield from self._known(head)
            if not self._open(head, next(want for want in head.wants if want.gate == id)):
                break
            self._unpark(lane)
            stop = self._stop(head)
            if stop is not None:
                yield from self._park(lane, stop)
                continue
            lane.line.pop(0)
            self.changes.waiting[head.n] = (head, False)
            self._pass(head)
            self._ready(head)
            following = yield from self._head(lane)
            if following is not None:
                yield from self._known(following)
                yield from self._park(lane, self._stop(following) or id)
        yield from self._time(gate)

    def shut(self, id: str, until: int) -> Steps[None]:
        """Let nobody pass for a time."""
        yield from self._known_gates([id])
        gate = self.gates[id]
        if until > gate.shut_until:
            gate.shut_until = until
            self.changes.gates.add(id)
        yield from self.pump(id)

    def change(self, id: str, change: LimitChange) -> Steps[None]:
        """A person sets what a gate allows."""
        yield from self._known_gates([id])
        gate = self.gates[id]
        if gate.kind == "slot" and change.n is not UNSET:
            gate.n = change.n
        if gate.kind == "token" and change.interval is not UNSET:
            gate.interval = change.interval
        if gate.kind == "token" and change.burst is not UNSET:
            gate.burst = change.burst
        if change.paused is not UNSET:
            gate.paused = change.paused
        if change.paused is False:
            gate.shut_until = 0
        self.changes.gates.add(id)
        yield from self.pump(id)

    # -- gates ---------------------------------------------------------------------------------------------------------------

    def slots(self, want: Want) -> int:
        """How many may hold a slot: what a person has set, else what workers declare, else what the job says."""
        gate = self.gates[want.gate]
        assert want.limit is not None
        return slots_of(want.limit, self.rules) if gate.n is None else gate.n

    def rate(self, want: Want) -> tuple[int, int]:
        """The interval and burst of a token gate, in the same order."""
        gate, limit = self.gates[want.gate], want.limit
        assert isinstance(limit, RateLimit)
        declared = self.rules.get(f"token {limit.rule}")
        known = declared if isinstance(declared, RateLimit) else limit
        return gate.interval or known.interval, gate.burst or known.burst

    def limit(self, want: Want) -> dict[str, int | None]:
        """What a gate allows, as a `LimitRecord` has it."""
        if isinstance(want.limit, SlotLimit):
            return {"n": self.slots(want)}
        if isinstance(want.limit, RateLimit):
            return dict(zip(("interval", "burst"), self.rate(want), strict=True))
        return {}

    def _open(self, member: Member, want: Want) -> bool:
        gate = self.gates[want.gate]
        if gate.paused or gate.shut_until > self.now:
            return False
        if member.n in gate.holders:
            return True
        match gate.kind:
            case "turn":
                return not gate.holders
            case "slot":
                return len(gate.holders) < self.slots(want)
            case "token":
                interval, burst = self.rate(want)
                return tokens(gate.tat, self.now, interval, burst) - sum(gate.holders.values()) >= min(want.cost, burst)

    def _may_start(self, want: Want) -> bool:
        """Whether a READY job may still be claimed: the key may have been shut meanwhile, and tokens do not keep."""
        gate = self.gates[want.gate]
        if gate.paused or gate.shut_until > self.now:
            return False
        if gate.kind != "token":
            return True
        interval, burst = self.rate(want)
        return tokens(gate.tat, self.now, interval, burst) >= min(want.cost, burst)

    def _stop(self, member: Member) -> str | None:
        """The first gate that a job cannot pass; nor does it overtake whoever waits there."""
        for want in member.wants:
            gate = self.gates[want.gate]
            waiting = next((lane for seat, lane in gate.parked if seat < member.seat and lane != member.lane), None)
            if waiting is not None or not self._open(member, want):
                return gate.id
        return None

    def _pass(self, member: Member) -> None:
        for want in member.wants:
            gate = self.gates[want.gate]
            if member.n not in gate.holders:
                gate.holders[member.n] = want.cost
                self.changes.held[gate.id, member.n] = want.cost

    def _let_go(self, member: Member, want: Want) -> None:
        gate = self.gates[want.gate]
        if gate.holders.pop(member.n, None) is not None:
            self.changes.held[gate.id, member.n] = None

    def _time(self, gate: Gate) -> Steps[None]:
        """Note when a gate is to be looked at again."""
        at: int | None = None
        lane = yield from self._first(gate)
        if lane is not None and not gate.paused and gate.kind == "token":
            at = yield from self._token_at(gate, lane)
        elif lane is not None and not gate.paused and gate.shut_until > self.now:
            at = gate.shut_until
        if at != gate.wake_at:
            gate.wake_at = at
            self.changes.gates.add(gate.id)

    def _token_at(self, gate: Gate, lane: Lane) -> Steps[int]:
        head = yield from self._head(lane)
        assert head is not None, PARKED
        want = next(want for want in head.wants if want.gate == gate.id)
        interval, burst = self.rate(want)
        furthest = self.now + burst * interval
        if gate.tat > furthest:  # the rate was raised, or the clock set back
            gate.tat = furthest
            self.changes.gates.add(gate.id)
        at = token_at(gate.tat, self.now, interval, burst, min(want.cost, burst) + sum(gate.holders.values()))
        return max(at, gate.shut_until, self.now + 1)

    # -- lanes ---------------------------------------------------------------------------------------------------------------

    def _head(self, lane: Lane) -> Steps[Member | None]:
        if not lane.line and lane.more:
            yield Need("line", (lane.id,))
        return lane.line[0] if lane.line else None

    def _first(self, gate: Gate) -> Steps[Lane | None]:
        if not gate.parked and gate.more:
            yield Need("parked", (gate.id,))
        if not gate.parked:
            return None
        id = gate.parked[0][1]
        if id not in self.lanes:
            yield Need("lanes", (id,))
        return self.lanes[id]

    def _park(self, lane: Lane, gate: str) -> Steps[None]:
        self._unpark(lane)
        lane.gate = gate
        at, place = self.gates[gate], (lane.line[0].seat, lane.id)
        if not (at.more and place > at.read_to):  # else it stands among those that are not at hand
            insort(at.parked, place)
        self.changes.lanes.add(lane.id)
        yield from self._time(at)

    def _unpark(self, lane: Lane) -> None:
        at = None if lane.gate is None else self.gates.get(lane.gate)
        if at is not None:
            at.parked = [place for place in at.parked if place[1] != lane.id]
        lane.gate = None
        self.changes.lanes.add(lane.id)

    # -- what is stored ------------------------------------------------------------------------------------------------------

    def _known(self, member: Member) -> Steps[None]:
        for want in member.wants:
            if want.gate not in self.gates:
                yield from self._known_gates([want.gate for want in member.wants])
        if member.lane not in self.lanes:
            yield Need("lanes", (member.lane,))

    def _known_gates(self, ids: Iterable[str]) -> Steps[None]:
        if missing := [id for id in ids if id not in self.gates]:
            yield Need("gates", missing)

    def read_gate(self, gate: Gate, parked: Sequence[Place], more: bool) -> None:
        """Answer the need for a gate, with the first lanes that are parked there."""
        self.gates[gate.id] = gate
        self.read_parked(gate.id, parked, more)

    def read_parked(self, id: str, parked: Sequence[Place], more: bool) -> None:
        """Answer the need for more lanes parked at a gate: those behind `read_to`."""
        gate = self.gates[id]
        before, gate.more = gate.read_to, more
        gate.read_to = parked[-1] if parked and more else LAST
        moved = self.changes.lanes
        ours = [(lane.line[0].seat, lane.id) for lane in self.lanes.values() if lane.gate == id and lane.id in moved]
        fresh = [place for place in parked if place[1] not in moved] + [place for place in ours if before < place <= gate.read_to]
        gate.parked = sorted({*gate.parked, *fresh})

    def read_lane(self, lane: Lane, line: Sequence[Member], more: bool) -> None:
        """Answer the need for a lane, with its first jobs."""
        self.lanes[lane.id] = lane
        self.read_line(lane.id, line, more)

    def read_line(self, id: str, line: Sequence[Member], more: bool) -> None:
        """Answer the need for more jobs of a lane: those behind `read_to`."""
        lane = self.lanes[id]
        before, lane.more = lane.read_to, more
        lane.read_to = line[-1].seat if line and more else LAST[0]
        changed = self.changes.waiting
        ours = [member for member, waits in changed.values() if waits and member.lane == id and before < member.seat <= lane.read_to]
        lane.line = sorted([*lane.line, *(member for member in line if member.n not in changed), *ours])


class Succession(NamedTuple):
    """What comes after the holders of a gate, as far as it was read."""

    complex: bool
    """Whether more is known of the gate than who holds it and who waits in the lane of its name."""
    held: int
    heirs: Sequence[int | None]
    """The first in that lane; None for one who does not want the very same as the holders that leave."""


def heirs(leaving: Iterable[Want], successions: Mapping[str, Succession], depth: int, rules: Mapping[str, Limit]) -> list[int] | None:
    """Who passes when jobs leave that need no more than each of these, in their order: what `Ledger.leave` comes to, without a ledger.

    None where it takes more care, as others may be concerned, or more than `depth` heirs of a gate.
    """
    passing: list[int] = []
    inside: dict[str, int] = {}
    passed: dict[str, int] = {}
    for want in leaving:
        gate = successions[want.gate]
        if gate.complex:
            return None
        held, nth = inside.get(want.gate, gate.held) - 1, passed.get(want.gate, 0)
        width = 1 if want.limit is None else slots_of(want.limit, rules)
        while nth < len(gate.heirs):
            heir = gate.heirs[nth]
            if heir is None:
                return None
            if held >= width:
                break
            passing.append(heir)
            held, nth = held + 1, nth + 1
        if nth == depth:
            return None
        inside[want.gate], passed[want.gate] = held, nth
    return passing


def slots_of(limit: Limit, rules: Mapping[str, Limit]) -> int:
    """How many may hold a slot that no person has changed: what workers declare, else what the job says."""
    assert isinstance(limit, SlotLimit)
    declared = rules.get(f"slot {limit.rule}")
    return declared.n if isinstance(declared, SlotLimit) else limit.n


def round_of(serving: int | None, last: int | None) -> int:
    """The round in which a job takes its turn among the keys of its line (start-time fair queueing, Goyal and others 1996).

    Each key gets one job a round. `serving` is the round of whoever stands first, None where nobody takes turns; `last` is the last
    round that was given to the job's key. A newcomer begins with the round after the one that is being served: so it waits for a round at
    most, however many jobs other keys have, and newcomers hold up nobody for ever.
    """
    if serving is None:
        return 1
    return min(max(serving, last or 0) + 1, LAST_ROUND)


LAST_ROUND = 2**24 - 1
"""So many jobs of one key may be ahead of each other; further ones share the last round."""

MOST_HOLDERS = 100
"""The most holders that a record of a gate names."""
MOST_STRIKING = 100
"""The most gates of which `doctor` is told."""


def limit_record(
    gate: Gate,
    want: Want | None,
    rules: Mapping[str, Limit],
    now: int,
    holders: Sequence[str],
    held: int,
    waiting: int,
    *,
    dead: bool = False,
) -> LimitRecord:
    """What a gate allows, as people see it; `want` is of any job that has to do with it. `dead`: the holder of a turn is."""
    ledger = Ledger(now, rules, lambda _: None)
    ledger.gates[gate.id] = gate
    limit = ledger.limit(want) if want is not None else {"n": gate.n, "interval": gate.interval, "burst": gate.burst}
    return LimitRecord(
        key=key_of(gate.id),
        kind=gate.kind,
        changed=gate.n is not None or gate.interval is not None or gate.burst is not None,
        paused=gate.paused,
        shut_until=_moment(gate.shut_until) if gate.shut_until > now else None,
        next_at=None if gate.wake_at is None else _moment(gate.wake_at),
        holders=tuple(holders),
        held=held,
        dead=dead,
        waiting=waiting,
        **limit,
    )


def _moment(stored: int) -> datetime:
    return EPOCH + timedelta(microseconds=stored)


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rule_id(limit: Limit) -> str:
    """By what a declared limit is kept."""
    return f"{'slot' if isinstance(limit, SlotLimit) else 'token'} {limit.rule}"


def changes(declared: Limit, before: Limit | None, own: Limit | None) -> bool:
    """Whether a declaration changes what a job of its rule may do: it goes before the one before, and that before the job's own."""
    if own is None or rule_id(own) != rule_id(declared):
        return False
    return _measure(declared) != _measure(before or own)


def _measure(limit: Limit) -> tuple[int, ...]:
    return (limit.n,) if isinstance(limit, SlotLimit) else (limit.interval, limit.burst)


def changed_by(key: str, change: LimitChange) -> list[str]:
    """The gates that a change of a key concerns."""
    concerned: dict[Kind, bool] = {
        "turn": change.paused is not UNSET,
        "slot": change.paused is not UNSET or change.n is not UNSET,
        "token": any(value is not UNSET for value in (change.paused, change.interval, change.burst)),
    }
    return [gate_of(kind, key) for kind in KINDS if concerned[kind]]


def answered(steps: Steps[T], answer: Callable[[Need], None]) -> T:
    """Carry out steps whose needs are answered at once."""
    try:
        while True:
            answer(next(steps))
    except StopIteration as end:
        return end.value
