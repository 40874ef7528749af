"""Makes up the moves of lockstep programs: of few values, close together, so that they meet."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis.strategies import SearchStrategy, booleans, builds, integers, just, lists, none, sampled_from, tuples

from offload.job import (
    Callback,
    Cancelled,
    Dead,
    Done,
    Draft,
    Failure,
    Isolation,
    Limit,
    LimitChange,
    Outcome,
    Overlap,
    Progress,
    RateLimit,
    Release,
    Retried,
    Schedule,
    SlotLimit,
    State,
    UniqueKey,
)
from offload.records import Filter
from offload.testing.clock import START
from offload.testing.moves import (
    Advance,
    Ask,
    Cancel,
    Delete,
    Enqueue,
    Fetch,
    Find,
    Fire,
    Grow,
    Jump,
    Leave,
    Live,
    Maintain,
    Move,
    Open,
    OpenBatch,
    Pause,
    PausePlan,
    Plan,
    Remember,
    Report,
    Resume,
    Retain,
    Retry,
    Seal,
    SetLimit,
    Settle,
    Stop,
    Tick,
    Unplan,
    Wish,
)

KNOWS_ALL: dict[str, Isolation] = {"quick": "async", "sync": "thread", "heavy": "process", "rare": "async"}
FAILURE = Failure(attempt=1, at=START, type="E", message="a Needle")
PAYLOADS = (b'{"n":1}', b'{"n": 2}')
KEYS = (
    *(UniqueKey("s", "started", conflict) for conflict in ("skip", "raise", "replace", "replace", "debounce", "debounce")),
    *(UniqueKey("f", "finished", conflict) for conflict in ("skip", "raise", "keep_last", "keep_last", "keep_last", "keep_last")),
    *(UniqueKey("d", seconds, conflict) for seconds in (5.0, 60.5) for conflict in ("skip", "raise")),
)
MIXED_KEYS = (
    UniqueKey("m", "started", "debounce"),
    UniqueKey("m", "started", "replace"),
    UniqueKey("m", "finished", "keep_last"),
    UniqueKey("m", "finished", "skip"),
    UniqueKey("m", 60.5, "raise"),
)
"""Of tasks that do not agree on what their common key means."""
LIMITS: tuple[tuple[Limit, ...], ...] = (
    (SlotLimit("x", 1),),
    (SlotLimit("x", 1),),
    (SlotLimit("y", 2),),
    (SlotLimit("x", 1), SlotLimit("y", 2)),
    (SlotLimit("y", 2, "of {y}"),),
    (SlotLimit("x", 3),),
    (RateLimit("r", 5_000_000),),
    (RateLimit("r", 5_000_000, 2, 2),),
    (RateLimit("r", 5_000_000, 2), SlotLimit("x", 1)),
    (RateLimit("r", 5_000_000, 1, 3),),
    (RateLimit("x", 700_000, 3), RateLimit("r", 5_000_000, 1, 1, "of {r}")),
)
DECLARED: tuple[Limit, ...] = (
    SlotLimit("of {y}", 1, "of {y}"),
    SlotLimit("of {y}", 3, "of {y}"),
    RateLimit("of {r}", 1_000_000, 2, 1, "of {r}"),
)
CALLBACKS: tuple[Callback, ...] = ("success", "failure", "complete")
MOST_SESSIONS = 4

_queues = sampled_from(["a", "a", "b"])
_tasks = sampled_from(["quick", "quick", "quick", "sync", "heavy", "rare"])
_keeps = sampled_from([86_400, 0, 30.5])
_sessions = integers(0, MOST_SESSIONS - 1)
_jobs = lists(integers(0, 8), min_size=1, max_size=3)
_leases = sampled_from([0, 0, 0, 1, 2, 3, 7])
_after = sampled_from([None, -5, 10, 60])
_names = sampled_from(["nightly", "hourly"])
_batches = sampled_from(["b1", "b1", "b2"])

_plain_wishes: SearchStrategy[Wish] = builds(
    Wish,
    task=_tasks,
    queue=_queues,
    priority=sampled_from([0, 0, 5]),
    keep=_keeps,
    unique=sampled_from([None] * 12 + [*KEYS, *MIXED_KEYS]),
    order_by=sampled_from([None] * 6 + ["o"]),
)

_held_wishes: SearchStrategy[Wish] = builds(
    Wish,
    queue=_queues,
    priority=sampled_from([0, 0, 0, 5]),
    delay=sampled_from([None, None, None, None, 5]),
    expires_in=sampled_from([None, None, None, None, 20.25]),
    unique=sampled_from([None] * 12 + [UniqueKey("s", "started", "debounce"), UniqueKey("f", "finished", "keep_last")]),
    order_by=sampled_from([None, None, "x", "o"]),
    on_dead=sampled_from(["continue", "continue", "hold"]),
    limits=sampled_from([(), *LIMITS]),
    fair_by=sampled_from([None, None, None, "f", "g"]),
)
"""Jobs most of which have an order or limits."""

_wishes: SearchStrategy[Wish] = builds(
    Wish,
    task=_tasks,
    queue=_queues,
    priority=sampled_from([0, 0, 5, -100]),
    delay=sampled_from([None, None, None, None, 0, -5, 2.5, 10, 70]),
    expires_in=sampled_from([None, None, None, None, 5, 20.25, 100, -1]),
    unique=sampled_from([None] * 20 + [*KEYS, *MIXED_KEYS]),
    keep=_keeps,
    payload=sampled_from(PAYLOADS),
    order_by=sampled_from([None] * 6 + ["x", "o"]),
    on_dead=sampled_from(["continue", "continue", "hold"]),
    limits=sampled_from([()] * 16 + [*LIMITS]),
    fair_by=sampled_from([None] * 6 + ["f", "g"]),
    again=sampled_from([None] * 20 + [0, 1, 2, 3, 8]),
    exactly=sampled_from([True, True, False]),
)

_knit_wishes: SearchStrategy[Wish] = builds(
    Wish,
    queue=_queues,
    delay=sampled_from([None] * 10 + [5]),
    expires_in=sampled_from([None] * 10 + [20.25]),
    unique=sampled_from([None] * 12 + [UniqueKey("s", "started", "raise"), UniqueKey("f", "finished", "raise")]),
    keep=_keeps,
    order_by=sampled_from([None] * 12 + ["o"]),
    limits=sampled_from([()] * 12 + [*LIMITS[:3]]),
    flow=sampled_from(["f1", "f1", "f1", "f2", None]),
    size=sampled_from([0] * 8 + [3, 6]),
    parents=lists(tuples(sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 5, -1]), booleans()), max_size=3).map(tuple),
    fails=sampled_from(["cancel", "cancel", "run"]),
    batch=sampled_from([None, None, None, "b1", "b1", "b2"]),
    again=sampled_from([None] * 20 + [0, 2]),
)
"""Jobs that belong to workflows and batches, and wait for each other."""

_outcomes: SearchStrategy[Outcome] = sampled_from(
    [
        Done(),
        Done(b'{"x":[1,null]}'),
        Retried(0, FAILURE),
        Retried(5, FAILURE),
        Retried(70),
        Retried(5.5, FAILURE, whole_key=True),
        Dead("d", FAILURE),
        Dead("no failure"),
        Dead("spent", FAILURE, hold_key=5.5),
        Cancelled("mine"),
        Release(),
        Release(5.5),
    ]
)

_knowledge: SearchStrategy[dict[str, Isolation]] = sampled_from(
    [KNOWS_ALL, KNOWS_ALL, {"quick": "async"}, {"quick": "process", "sync": "thread", "rare": "async"}]
)
_roomy: dict[Isolation, int] = {"async": 9, "thread": 9, "process": 9}
_rooms: SearchStrategy[dict[Isolation, int]] = sampled_from(
    [_roomy, _roomy, {"async": 1, "thread": 0, "process": 1}, {"async": 2, "thread": 2, "process": 0}]
)
_served: SearchStrategy[list[str] | None] = sampled_from([None, None, None, ["a"], ["b", "a"], ["a", "b", "none"]])

_overlaps: SearchStrategy[Overlap] = sampled_from(["skip", "replace", "allow"])
_schedules: SearchStrategy[Schedule] = builds(
    Schedule, name=_names, draft=just(Draft[None](task="quick")), every=sampled_from([30.0, 60.0]), overlap=_overlaps
)

_filters: SearchStrategy[Filter] = builds(
    Filter,
    state=none() | sampled_from(list(State)),
    task=none() | _tasks,
    queue=none() | _queues,
    key=none() | sampled_from(["s", "f", "d", "m", "x", "o"]),
    text=none() | sampled_from(["needle", "QUICK", "j1", '"n": 2', "%", "_"]),
    workflow=sampled_from([None, None, None, "f1"]),
    batch=sampled_from([None, None, None, "b1"]),
)

_changes: SearchStrategy[LimitChange] = sampled_from(
    [
        LimitChange(n=2),
        LimitChange(n=None, interval=None, burst=None),
        LimitChange(interval=1_000_000),
        LimitChange(burst=3),
        LimitChange(paused=True),
        LimitChange(paused=False),
        LimitChange(paused=False),
    ]
)

_callback_wishes: SearchStrategy[Wish] = builds(
    Wish,
    queue=_queues,
    unique=sampled_from([None] * 3 + [UniqueKey("s", "started", "raise"), UniqueKey("f", "finished", "raise")]),
    order_by=sampled_from([None] * 3 + ["o"]),
    limits=sampled_from([()] * 3 + [*LIMITS[:3]]),
)

_weights: Mapping[SearchStrategy[Move], int] = {
    builds(Enqueue, lists(_wishes, min_size=1, max_size=4)): 8,
    builds(Enqueue, lists(_held_wishes, min_size=1, max_size=6)): 6,
    builds(Enqueue, lists(_knit_wishes, min_size=1, max_size=6)): 8,
    builds(Grow, _sessions, _leases, lists(_knit_wishes, max_size=3)): 2,
    builds(OpenBatch, _batches, lists(sampled_from(CALLBACKS), max_size=3, unique=True), _callback_wishes): 3,
    builds(Seal, _batches): 2,
    builds(Stop, just("workflow"), sampled_from(["f1", "f2"])): 1,
    builds(Stop, just("batch"), _batches): 1,
    builds(SetLimit, sampled_from(["x", "y", "r", "o"]), _changes): 2,
    builds(Fetch, _sessions, _served, sampled_from([1, 2, 10, 10]), _rooms): 8,
    builds(Settle, _sessions, lists(tuples(_leases, _outcomes), min_size=1, max_size=4)): 8,
    builds(Retain, _sessions, lists(_leases, max_size=3)): 1,
    builds(Cancel, _jobs): 3,
    builds(Retry, _jobs, sampled_from([None, None, b'{"n":9}'])): 3,
    builds(Delete, _jobs): 1,
    builds(Pause, _queues): 1,
    builds(Resume, _queues): 2,
    builds(Open, _knowledge, lists(_schedules, max_size=2, unique_by=lambda each: each.name), lists(sampled_from(DECLARED), max_size=2)): 3,
    builds(Leave, _sessions): 1,
    builds(Remember, _sessions, _leases, sampled_from(["s", "t"]), sampled_from([b"1", b'{"x":[null]}'])): 2,
    builds(Report, _sessions, _leases, sampled_from([Progress(0.25, "x"), Progress(1.0)])): 2,
    builds(Live, integers(1, 8), lists(booleans(), min_size=MOST_SESSIONS, max_size=MOST_SESSIONS)): 5,
    builds(Maintain, _sessions): 5,
    builds(Plan, _schedules, _after): 2,
    builds(Unplan, _names): 1,
    builds(PausePlan, _names, booleans(), _after): 1,
    builds(Tick, _sessions, integers(0, 2), _after, lists(_plain_wishes, max_size=2)): 4,
    builds(Fire, _schedules, _plain_wishes): 1,
    builds(Advance, sampled_from([0.000001, 0.015, 0.7, 1, 5, 5, 5, 30, 30, 61, 61, 700, 86_400 * 30])): 4,
    builds(Jump, sampled_from([-3_600, -10, 10, 3_600])): 1,
    builds(Find, _filters, integers(1, 4), none() | integers(0, 6)): 2,
    builds(Ask, _jobs): 2,
}

moves: SearchStrategy[Move] = sampled_from([strategy for strategy, weight in _weights.items() for _ in range(weight)]).flatmap(
    lambda chosen: chosen
)
"""Any move, the common ones more often (`one_of` would take repeated strategies for one)."""
