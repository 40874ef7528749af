"""The algorithm: who passes when somebody comes, goes, starts, or the time has come.

Lanes and gates are held in part: what is missing is asked for by `yield`, see `Need`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence

from msgspec import UNSET

from offload.gates.rates import taken, token_at, tokens
from offload.gates.rules import Rules, rate_at, slots_at
from offload.gates.state import LAST, Changes, Gate, Lane, Need, Place, Steps
from offload.gates.wants import KINDS, Member, Want, kind_of
from offload.job import Kind, LimitChange, RateLimit

MOST_PASSED = 2_000
"""The most jobs that one operation lets pass after they have waited; where there are more, the gate is looked at again at once."""
MOST_WOKEN = 1_000
"""The most gates at which one operation looks because their time has come."""

PARKED = "a lane that is parked has a first job"


class Ledger:
    """The gates and lanes of one operation. `ready` is called, in order, for each job that passes after it has waited."""

    def __init__(self, now: int, rules: Rules, ready: Callable[[Member], None]) -> None:
        self.now = now
        self.rules = rules
        """The limits that workers declare, by their rules; they go before what a job carries."""
        self.gates: dict[str, Gate] = {}
        self.lanes: dict[str, Lane] = {}
        self.changes = Changes()
        self._ready = ready
        self._passed = 0

    # -- what jobs do --------------------------------------------------------------------------------------------------------

    def enter(self, member: Member) -> Steps[bool]:
        """A job wants to become READY. True when it has passed; else it waits from now on."""
        yield from self._known(member)
        lane = self.lanes[member.lane]
        passes, stop = yield from self._look(lane, member)
        # Nothing is held while something else is waited for. Whoever passes thereby stands no longer before it, nor in its way.
        # Who stands behind another of his order gives back even his turn, or both would wait for each other.
        if not passes and self._holds(member) and (yield from self.leave(member, KINDS if stop is None else ("slot", "token"))):
            passes, stop = yield from self._look(lane, member)
        if passes:
            self._pass(member)
            return True
        if not (lane.more and member.seat > lane.read_to):  # else it stands among those that are not at hand
            insort(lane.line, member)
        self.changes.waiting[member.n] = (member, True)
        if stop is not None:
            left = lane.gate
            yield from self._park(lane, stop)
            if left not in (None, stop):
                yield from self.pump(left)  # where others may have waited only because it stood before them
        return False

    def _holds(self, member: Member) -> bool:
        return any(member.n in self.gates[want.gate].holders for want in member.wants)

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
                gate = self.gates[want.gate]
                interval, _ = rate_at(gate, want, self.rules)
                gate.tat, gate.owed = taken(gate.tat, self.now, interval, gate.owed, want.cost)
                self.changes.gates.add(gate.id)
                self._let_go(member, want)
                yield from self._time(gate)
        return True

    # -- what time and people do ---------------------------------------------------------------------------------------------

    def pump(self, id: str) -> Steps[None]:
        """Let pass who may, of those that wait at a gate."""
        yield from self._known_gates([id])
        gate, unfinished = self.gates[id], False
        while gate.parked or gate.more:
            lane = yield from self._first(gate)
            if lane is None:
                break
            head = lane.line[0] if lane.line else (yield from self._head(lane))
            assert head is not None, PARKED
            yield from self._known(head)
            if not self._open(head, next(want for want in head.wants if want.gate == id)):
                break
            if self._passed >= MOST_PASSED:
                unfinished = True
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
            self._passed += 1
            following = yield from self._head(lane)
            if following is not None:
                yield from self._known(following)
                yield from self._park(lane, self._stop(following) or id)
        yield from self._time(gate, looked=True)
        if unfinished:
            gate.wake_at = self.now
            self.changes.gates.add(id)

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
                return len(gate.holders) < slots_at(gate, want, self.rules)
            case "token":
                interval, burst = rate_at(gate, want, self.rules)
                return tokens(gate.tat, self.now, interval, burst, gate.owed) - sum(gate.holders.values()) >= min(want.cost, burst)

    def _may_start(self, want: Want) -> bool:
        """Whether a READY job may still be claimed: the key may have been shut meanwhile, and tokens do not keep."""
        gate = self.gates[want.gate]
        if gate.paused or gate.shut_until > self.now:
            return False
        if gate.kind != "token":
            return True
        interval, burst = rate_at(gate, want, self.rules)
        return tokens(gate.tat, self.now, interval, burst, gate.owed) >= min(want.cost, burst)

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

    def _time(self, gate: Gate, *, looked: bool = False) -> Steps[None]:
        """Note when a gate is to be looked at again. A moment that has come is taken away only by who has `looked`."""
        at: int | None = None
        lane = yield from self._first(gate)
        if lane is not None and not gate.paused and gate.kind == "token":
            at = yield from self._token_at(gate, lane)
        elif lane is not None and not gate.paused and gate.shut_until > self.now:
            at = gate.shut_until
        elif lane is not None and not gate.paused and not looked:
            at = gate.wake_at
        if at != gate.wake_at:
            gate.wake_at = at
            self.changes.gates.add(gate.id)

    def _token_at(self, gate: Gate, lane: Lane) -> Steps[int]:
        head = yield from self._head(lane)
        assert head is not None, PARKED
        want = next(want for want in head.wants if want.gate == gate.id)
        interval, burst = rate_at(gate, want, self.rules)
        furthest = self.now + gate.owed * interval
        if gate.tat > furthest:  # the rate was raised, or the clock set back
            gate.tat = furthest
            self.changes.gates.add(gate.id)
        at = token_at(gate.tat, self.now, interval, burst, gate.owed, min(want.cost, burst) + sum(gate.holders.values()))
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
