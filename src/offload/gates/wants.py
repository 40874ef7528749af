"""What a job needs of which gates, and in which lane it waits for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from msgspec import UNSET

from offload.job import Job, Kind, Limit, LimitChange, RateLimit, SlotLimit

KINDS: tuple[Kind, ...] = ("turn", "slot", "token")


class Want(NamedTuple):
    """What a job needs of one gate, and how wide the gate is as far as the job knows."""

    gate: str
    cost: int
    limit: Limit | None
    """None for a turn."""


class Member(NamedTuple):
    """A job as gates see it. `own` is the store's business."""

    seat: int
    """Its place in lanes: the number under which it was first due. It keeps it."""
    n: int
    lane: str
    wants: tuple[Want, ...]
    own: Any = None


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


def straight(job: Job) -> bool:
    """Whether a job needs no more than a place in its ready line once its parents have succeeded.

    So it is where no gate, turn or time lies between, and there is no key by which it may be replaced, and no batch that may be stopped.
    """
    return not gated(job) and job.fair_by is None and job.run_at is None and job.unique is None and job.batch is None


def holds_on(job: Job) -> bool:
    """Whether a job keeps its turn when it is DEAD."""
    return job.order_by is not None and job.on_dead == "hold"


def holds(job: Keyed) -> bool:
    """Whether a job that runs holds any gate; of a rate it has taken its token for good."""
    return job.order_by is not None or any(isinstance(limit, SlotLimit) for limit in job.limits)


def wants_of(job: Keyed) -> tuple[Want, ...]:
    """What a job needs: its turn, its slots, its tokens, in the order in which they are looked at."""
    return _wants(job.order_by, job.limits)


@lru_cache(8192)  # whoever waits behind somebody of the same keys wants the same
def _wants(order_by: str | None, limits: tuple[Limit, ...]) -> tuple[Want, ...]:
    turn = () if order_by is None else (Want(gate_of("turn", order_by), 1, None),)
    slots = tuple(Want(gate_of("slot", limit.key), 1, limit) for limit in limits if isinstance(limit, SlotLimit))
    tokens = tuple(Want(gate_of("token", limit.key), limit.cost, limit) for limit in limits if isinstance(limit, RateLimit))
    return turn + slots + tokens


def lone_want(job: Keyed) -> Want | None:
    """What a job needs where that is one turn or one slot and nothing else, as mostly; what it leaves concerns one gate then."""
    wants = wants_of(job)
    return wants[0] if len(wants) == 1 and not isinstance(wants[0].limit, RateLimit) else None


def member_of(job: Keyed, n: int, seat: int, own: Any = None) -> Member:
    """A gated job as gates see it."""
    lane, wants = _keys(job.order_by, job.limits)
    return Member(seat, n, lane, wants, own)


@lru_cache(8192)
def _keys(order_by: str | None, limits: tuple[Limit, ...]) -> tuple[str, tuple[Want, ...]]:
    """The lane of a job, and what it needs: with all of its order key it waits, or else with all that want the very same."""
    wants = _wants(order_by, limits)
    return wants[0].gate if order_by is not None else "\n".join(want.gate for want in wants), wants


def left_when_put_off(claim: int) -> tuple[Kind, ...]:
    """What a job lets go of that is to run later: all but its turn; and that too where it has never started, for it joins the line anew."""
    return KINDS if claim == 0 else ("slot", "token")


def held_back_by(job: Keyed) -> tuple[str, ...]:
    """The gates that are shut when an attempt of the job asks to hold back its whole key."""
    wants = wants_of(job)
    for kind in reversed(KINDS):
        if gates := tuple(want.gate for want in wants if kind_of(want.gate) == kind):
            return gates
    return ()


def changed_by(key: str, change: LimitChange) -> list[str]:
    """The gates that a change of a key concerns."""
    concerned: dict[Kind, bool] = {
        "turn": change.paused is not UNSET,
        "slot": change.paused is not UNSET or change.n is not UNSET,
        "token": any(value is not UNSET for value in (change.paused, change.interval, change.burst)),
    }
    return [gate_of(kind, key) for kind in KINDS if concerned[kind]]
