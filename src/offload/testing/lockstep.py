"""Plays random operations on the reference store and on another side by side, and compares every answer and all that they hold.

Stateful testing as Hypothesis does it: a program that differs is shrunk to the shortest that still does, and printed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypeVar, assert_never, cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec.structs import replace

from offload.broker import Feature, Store
from offload.brokers.memory import MemoryBroker
from offload.errors import OffloadError
from offload.gates import rule_id
from offload.job import Beat, Done, Due, Job, Limit, Outcome, Parent, Pulse, Schedule, WorkerInfo
from offload.records import LimitRecord, Record, Tally
from offload.testing.clock import TestClock
from offload.testing.gatekeeping import prove, prove_shut
from offload.testing.guesses import KNOWS_ALL, MOST_SESSIONS, moves
from offload.testing.headcount import prove_counted
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
from offload.testing.side import Claim, Side

Opener: TypeAlias = Callable[[TestClock], AbstractAsyncContextManager[Store]]
"""Opens a new, empty store that goes by the given clock, and closes it at the end of the block."""

T = TypeVar("T")

RUNS = int(os.environ.get("OFFLOAD_LOCKSTEP_RUNS", "200"))
"""Random programs of one lockstep test, unless the test says otherwise."""
STEPS = 50
"""Operations of a program."""


def lockstep(make_model: Opener, make_subject: Opener, *, runs: int = RUNS, steps: int = STEPS, shrink: bool = True) -> None:
    """Play `runs` random programs of `steps` operations on a model and a subject, each time new and empty.

    Raises AssertionError at the first answer or state in which the two differ, with the program that shows it; `shrink` takes
    the time to look for the shortest.
    """
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            lambda: Lockstep(runner, make_model, make_subject),  # pyright: ignore[reportArgumentType]  any callable will do
            settings=settings(
                max_examples=runs,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
                phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            ),
        )


class Lockstep(RuleBasedStateMachine):
    """Plays each move on the model, then on the subject."""

    def __init__(self, runner: asyncio.Runner, make_model: Opener, make_subject: Opener) -> None:
        super().__init__()
        self._runner = runner
        self._clock = TestClock()
        self._stack = AsyncExitStack()
        self._sides = self._run(self._open(make_model, make_subject))
        self._sent: dict[str, Job] = {}
        self._numbers: list[int] = []
        self._opened = 0
        self._held: dict[Claim, int] = {}
        self._lost: list[Claim] = []
        self._dues: list[Due] = []
        self._rules: dict[str, Limit] = {}
        self._limits: list[LimitRecord] = []
        self._latest = 0
        """The latest moment that the clock has shown, by the model."""
        self.play(Open(KNOWS_ALL, [], []))

    def teardown(self) -> None:
        """Leave the sessions and close both stores."""
        self._run(self._close())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _open(self, *openers: Opener) -> list[Side]:
        return [Side(await self._stack.enter_async_context(opener(self._clock))) for opener in openers]

    async def _close(self) -> None:
        for side in self._sides:
            await side.close()
        await self._stack.aclose()

    @rule(move=moves)
    def play(self, move: Move) -> None:
        """Play one move on both sides and compare what comes back, and what they hold then."""
        self._run(self._play(move))

    async def _play(self, move: Move) -> None:
        match move:
            case Enqueue() | Cancel() | Retry() | Delete() | Pause() | Resume() | SetLimit():
                await self._play_on_jobs(move)
            case OpenBatch() | Seal() | Stop():
                await self._play_on_tallies(move)
            case Open() | Leave() | Live():
                await self._play_on_sessions(move)
            case Fetch() | Settle() | Grow() | Retain() | Remember() | Report() | Maintain():
                if self._numbers:
                    await self._play_in_session(move, self._numbers[move.session % len(self._numbers)])
            case Plan() | Unplan() | PausePlan() | Tick() | Fire():
                await self._play_on_schedules(move)
            case Find() | Ask():
                await self._play_question(move)
            case Advance(seconds):
                self._clock.advance(seconds)
            case Jump(seconds):
                self._clock.jump(seconds)
            case _:
                assert_never(move)
        await self._compare_state()

    async def _both(self, act: Callable[[Side], Awaitable[T]]) -> T | OffloadError:
        """Do the same on both sides and compare. Returns the model's answer."""
        model, subject = self._sides
        expected, got = await _answer(model, act), await _answer(subject, act)
        _compare("answers", model.comparable(expected), subject.comparable(got))
        return expected

    async def _compare_state(self) -> None:
        model, subject = [await side.state() for side in self._sides]
        for what, expected in model.items():
            _compare(what, expected, subject[what])
        prove_counted(cast("list[Record]", model["records"]), cast("list[Tally]", model["workflows"]))
        limits = cast("list[LimitRecord]", model["limits"])
        prove(cast("list[Record]", model["records"]), limits, self._rules, self._limits)
        self._limits = limits
        store = self._sides[0].store
        if isinstance(store, MemoryBroker):
            now = store.shelf.moment()
            self._latest = max(self._latest, now)
            prove_shut(store.shelf.gating, now, self._latest)

    async def _play_on_jobs(self, move: Enqueue | Cancel | Retry | Delete | Pause | Resume | SetLimit) -> None:
        match move:
            case Enqueue(wishes):
                jobs = [self._job(wish) for wish in wishes]
                await self._both(lambda side: side.store.enqueue(jobs))
            case Cancel(picks):
                await self._both(lambda side: side.store.cancel(self._ids(picks)))
            case Retry(picks, payload):
                await self._both(lambda side: side.store.retry(self._ids(picks), payload))
            case Delete(picks):
                await self._both(lambda side: side.store.delete(self._ids(picks)))
            case Pause(queue):
                await self._both(lambda side: side.store.pause(queue))
            case Resume(queue):
                await self._both(lambda side: side.store.resume(queue))
            case SetLimit(key, change):
                if Feature.LIMITS in self._sides[1].store.features:
                    await self._both(lambda side: side.store.set_limit(key, change))
            case _:
                assert_never(move)

    async def _play_on_tallies(self, move: OpenBatch | Seal | Stop) -> None:
        if not {Feature.PARENTS, Feature.BATCH} <= self._sides[1].store.features:
            return
        match move:
            case OpenBatch(id, callbacks, first):
                wishes = [dataclasses.replace(first, batch=id), *[Wish(batch=id)] * len(callbacks)]
                jobs = [replace(self._job(wish), callback=each) for each, wish in zip(callbacks, wishes, strict=False)]
                await self._both(lambda side: side.store.open_batch(id, f"the {id}", jobs))
            case Seal(id):
                await self._both(lambda side: side.store.seal_batch(id))
            case Stop(kind, id):
                await self._both(lambda side: side.store.stop(kind, id))
            case _:
                assert_never(move)

    async def _play_on_sessions(self, move: Open | Leave | Live) -> None:
        match move:
            case Open(tasks, declared, limits) if len(self._numbers) < MOST_SESSIONS:
                number = self._opened = self._opened + 1
                schedules = tuple((each, self._after(each.every)) for each in declared)
                info = WorkerInfo(name=f"w{number}", host="here", pid=number, tasks=tasks, schedules=schedules, limits=tuple(limits))
                await self._both(lambda side: side.open(number, info))
                self._rules |= {rule_id(limit): limit for limit in limits}
                self._numbers.append(number)
            case Leave(pick) if len(self._numbers) > 1:
                number = self._numbers.pop(pick % len(self._numbers))
                await self._both(lambda side: side.leave(number))
                for claim in [claim for claim, owner in self._held.items() if owner == number]:
                    self._lose(claim)
            case Open() | Leave():
                pass
            case Live(beats, beating):
                alive = [number for number, beats in zip(self._numbers, beating, strict=False) if beats]
                for _ in range(beats):
                    self._clock.advance(3)
                    for number in alive:
                        await self._beat(number)
            case _:
                assert_never(move)

    async def _beat(self, number: int) -> None:
        beat = await self._both(lambda side: side.session(number).beat(Pulse()))
        if isinstance(beat, Beat) and beat.rescue:
            await self._both(lambda side: side.session(number).maintain())

    async def _play_in_session(self, move: Fetch | Settle | Grow | Retain | Remember | Report | Maintain, number: int) -> None:
        match move:
            case Fetch():
                leases = await self._both(lambda side: side.fetch(number, move))
                if isinstance(leases, list):
                    self._held |= {(lease.job.id, lease.claim): number for lease in leases}
            case Settle(_, ends):
                claims = self._claims(number)
                await self._settle(number, [(claims[pick % len(claims)], outcome) for pick, outcome in ends if claims])
            case Grow(_, pick, wishes):
                claims, added = self._claims(number), tuple(map(self._job, wishes))
                await self._settle(number, [(claims[pick % len(claims)], Done(b"1", added))] if claims else [])
            case Retain(_, picks):
                claims = self._claims(number)
                kept = {claims[pick % len(claims)] for pick in picks if claims}
                await self._both(lambda side: side.session(number).retain([side.leases[claim] for claim in kept]))
                for claim in [claim for claim, owner in self._held.items() if owner == number and claim not in kept]:
                    self._lose(claim)
            case Remember(_, pick, step, value):
                if claims := self._claims(number):
                    claim = claims[pick % len(claims)]
                    await self._both(lambda side: side.session(number).remember(side.leases[claim], step, value))
            case Report(_, pick, progress):
                claims = self._claims(number)
                told = [(claims[pick % len(claims)], progress)] if claims else []
                await self._both(lambda side: side.session(number).beat(Pulse(tuple((side.leases[claim], word) for claim, word in told))))
            case Maintain():
                await self._both(lambda side: side.session(number).maintain())
            case _:
                assert_never(move)

    async def _settle(self, number: int, settled: Sequence[tuple[Claim, Outcome]]) -> None:
        await self._both(lambda side: side.session(number).settle([(side.leases[claim], outcome) for claim, outcome in settled]))
        for claim, _ in settled:
            self._lose(claim)

    async def _play_on_schedules(self, move: Plan | Unplan | PausePlan | Tick | Fire) -> None:
        match move:
            case Plan(schedule, after):
                await self._both(lambda side: side.store.schedule(schedule, self._after(after)))
            case Unplan(name):
                await self._both(lambda side: side.store.unschedule(name))
            case PausePlan(name, paused, after):
                await self._both(lambda side: side.store.pause_schedule(name, paused, None if paused else self._after(after)))
            case Tick():
                await self._tick(move, self._numbers[move.session % len(self._numbers)])
            case Fire(schedule, wish):
                job = self._job_of(schedule, wish, self._clock.now())
                await self._both(lambda side: side.store.fire(schedule.name, job))
            case _:
                assert_never(move)

    async def _tick(self, move: Tick, number: int) -> None:
        dues = await self._both(lambda side: side.session(number).due())
        if isinstance(dues, list):
            self._dues += dues
        if self._dues:
            due = self._dues[-1 - move.due % len(self._dues)]
            jobs = [self._job_of(due.schedule, wish, due.next_at) for wish in move.wishes]
            await self._both(lambda side: side.session(number).tick(due, self._after(move.after), jobs))

    async def _play_question(self, move: Find | Ask) -> None:
        match move:
            case Find(filter, limit, after):
                page = None if after is None else self._ids([after])[0]
                await self._both(lambda side: side.store.find(filter, limit, page))
            case Ask(picks):
                for id in self._ids(picks):
                    await self._both(lambda side, id=id: side.look(id))
            case _:
                assert_never(move)

    def _job(self, wish: Wish) -> Job:
        job, kept = self._wished(wish), self._sides[1].store.features
        if not {Feature.ORDER, Feature.LIMITS} <= kept:
            job = replace(job, order_by=None, on_dead="continue", limits=())
        if Feature.PARENTS not in kept:
            job = replace(job, workflow=None, parents=(), if_parent_fails="cancel")
        if Feature.BATCH not in kept:
            job = replace(job, batch=None)
        return job if Feature.FAIRNESS in kept else replace(job, fair_by=None)

    def _wished(self, wish: Wish) -> Job:
        if wish.again is not None and self._sent:
            (id,) = self._ids([wish.again % len(self._sent)])
            job = self._tied(wish, id)
            return _as_sent(job, self._sent[id]) if wish.exactly else job
        job = self._tied(wish, f"j{len(self._sent)}")
        self._sent[job.id] = job
        return job

    def _tied(self, wish: Wish, id: str) -> Job:
        """A job with its parents, of the same workflow, as far as there are such."""
        job = wish.job(id, self._clock.now())
        if job.workflow is None:
            return job
        mates = [
            f"j{len(self._sent) + 1}",
            *(each.id for each in reversed(self._sent.values()) if _flow(each) == wish.flow and each.id != id),
        ]
        picked = {pick + 1: wanted for pick, wanted in wish.parents if pick + 1 < len(mates)}
        ties = [Parent(mates[pick], ((f"p{place}",),) if wanted else ()) for place, (pick, wanted) in enumerate(picked.items())]
        return replace(job, parents=tuple(ties))

    def _job_of(self, schedule: Schedule, wish: Wish, moment: datetime) -> Job:
        return replace(self._job(wish), schedule=schedule.name, overlap=schedule.overlap, run_at=moment)

    def _ids(self, picks: Sequence[int]) -> list[str]:
        """Ids of jobs, the newest for 0; one that is unknown for picks beyond."""
        known = [*reversed(self._sent), "unknown"]
        return [known[min(pick, len(known) - 1)] for pick in picks]

    def _claims(self, number: int) -> list[Claim]:
        """All claims there were: first those that the session holds as far as it knows, then those of others, then lost ones."""
        newest = [*reversed(self._held)]
        return [*sorted(newest, key=lambda claim: self._held[claim] != number), *reversed(self._lost)]

    def _lose(self, claim: Claim) -> None:
        if self._held.pop(claim, None) is not None:
            self._lost.append(claim)

    def _after(self, seconds: float | None) -> datetime | None:
        return None if seconds is None else self._clock.now() + timedelta(seconds=seconds)


def _as_sent(job: Job, known: Job) -> Job:
    """A job with all that a repeated one has to have in common with the one that was sent."""
    job = replace(job, task=known.task, payload=known.payload, workflow=known.workflow, batch=known.batch, callback=known.callback)
    return job if job.workflow is not None else replace(job, parents=(), if_parent_fails="cancel")


def _flow(job: Job) -> str | None:
    return None if job.workflow is None else job.workflow.id


async def _answer(side: Side, act: Callable[[Side], Awaitable[T]]) -> T | OffloadError:
    try:
        return await act(side)
    except OffloadError as error:
        return error


def _compare(what: str, expected: object, got: object) -> None:
    if got != expected:
        raise AssertionError(f"{what} differ\n  model:   {_besides(expected, got)}\n  subject: {_besides(got, expected)}")


def _besides(answer: object, other: object) -> object:
    """What a list has besides another: all that is the same would hide it."""
    if not isinstance(answer, list) or not isinstance(other, list):
        return cast("object", answer)
    others = cast("list[object]", other)
    return [each for each in cast("list[object]", answer) if each not in others]
