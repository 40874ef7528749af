"""One worker's standing with a Redis or Valkey store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

import msgspec

from offload.broker import Session
from offload.brokers.redis import planning
from offload.brokers.redis.rows import SECOND, leases_of, moment, optional_stored, stored, tail
from offload.brokers.redis.script import Script, refuse
from offload.brokers.redis.settling import Words, lost_of, words_of
from offload.errors import BrokerError, SessionLost
from offload.gates import rule_id
from offload.job import MOST_ATOMIC, Beat, Due, Isolation, Job, Lease, Outcome, Pulse, Release, Touched, Upkeep, WorkerInfo
from offload.liveness import Watch

POLL = (1.6, 2.4)
"""Seconds, at random between the two, after which a sleeper looks for work although nothing woke it."""
LONGEST_WAIT = 60.0
SOONEST = 0.005
"""Seconds within which tokens are not looked for again: those that come meanwhile are taken together, and none is late for it."""
CRASHES_BEFORE_ISOLATION = 2
"""As in the script."""

_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class RedisSession(Session):
    """Leases are fenced by this session's id and the claim; calls are numbered, so that none is carried out twice or too late."""

    def __init__(self, script: Script, id: str, info: WorkerInfo) -> None:
        self.id = id
        self._script = script
        self._info = info
        self._asleep = "\n".join((id, *(info.queues or ()), ""))
        self._bell = script.key(f"bell:{id}")
        self._watch = Watch(info.session_timeout, info.heartbeat)
        self._dead: list[tuple[str, int]] = []
        self._rotation = 0
        self._calls = 0
        self._wake_at: int | None = None
        self._handing_back: set[asyncio.Task[None]] = set()
        self._pulse: tuple[asyncio.AbstractEventLoop, Script] | None = None

    async def fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        """Claim ready jobs; see `Session.fetch`."""
        claim = asyncio.create_task(self._fetch(queues, limit, room))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            claim.add_done_callback(self._hand_back)
            raise

    async def _fetch(self, queues: Sequence[str] | None, limit: int, room: Mapping[Isolation, int]) -> list[Lease]:
        turn = self._rotation
        self._rotation += queues is None
        if queues is not None and not queues:
            limit = 0
        left = dict(room)
        leases: list[Lease] = []
        rest: list[bytes] = []
        while True:
            most = min(limit - len(leases), MOST_ATOMIC)
            taken, rest = await self._claim(rest or queues or (), most, left, turn, goes_on=bool(rest))
            leases += taken
            for lease in taken:
                left[self._isolation(lease)] -= 1
            if len(leases) >= limit or (len(taken) < most and not rest):
                return leases

    async def _claim(
        self, queues: Sequence[str | bytes], limit: int, room: Mapping[Isolation, int], turn: int, *, goes_on: bool
    ) -> tuple[list[Lease], list[bytes]]:
        """One call: what it claimed, and the queues that it did not come to because it had looked at enough in vain."""
        self._calls += 1
        rooms = (room.get("async", 0), room.get("thread", 0), room.get("process", 0))
        reply = await self._script.ask("fetch", self.id, self._calls, turn, limit, *rooms, self._asleep, int(goes_on), *queues)
        self._heard(reply)
        words, again, rest, self._wake_at, families, unknown = reply
        for name in unknown:
            queue, _, task = name.decode().partition("\0")
            self.unknown.add((queue, task))
        return leases_of(words, again, families), rest

    def _isolation(self, lease: Lease) -> Isolation:
        return "process" if lease.crashes >= CRASHES_BEFORE_ISOLATION else self._info.tasks[lease.job.task]

    def _heard(self, reply: object) -> None:
        """Raise what the script says of the call itself."""
        if reply == b"gone":
            raise SessionLost(f"session {self.id} of worker {self._info.name} is gone; open a new one")
        if reply == b"late":
            raise BrokerError(f"{self._script.link.address}: an answer was lost on its way, or in a failover")

    def _hand_back(self, claim: asyncio.Task[list[Lease]]) -> None:
        """What a cancelled fetch still claimed goes back at once."""
        if not claim.cancelled() and claim.exception() is None and claim.result():
            task = asyncio.create_task(self._release(claim.result()))
            self._handing_back.add(task)
            task.add_done_callback(self._handing_back.discard)

    async def _release(self, leases: Sequence[Lease]) -> None:
        try:
            await self.settle([(lease, Release()) for lease in leases])
        except BrokerError:  # leaving does it, or whoever finds this session dead
            return

    async def retain(self, held: Sequence[Lease]) -> int:
        """Hand back what is not among `held`; see `Session.retain`."""
        words = [word for lease in held for word in (lease.ref, lease.claim)]
        returned = await self._script.ask("retain", self.id, self._calls, *words)
        self._heard(returned)
        return returned

    async def settle(self, settlements: Sequence[tuple[Lease, Outcome]]) -> list[Lease]:
        """Record outcomes; see `Session.settle`."""
        if not settlements:
            return []
        words, order = words_of(settlements)
        self._calls += 1
        lost = await self._script.ask("settle", self.id, self._calls, *words)
        if lost == b"gone":
            return [lease for lease, _ in settlements]
        self._heard(lost)
        return lost_of(settlements, order, lost) if lost else []

    async def beat(self, pulse: Pulse) -> Beat:
        """Show life; see `Session.beat`. Runs in the keeper's thread, over a link of its own."""
        words: Words = []
        for lease, progress in pulse.progress:
            words += (lease.ref, lease.claim, _json(progress))
        reply = await self._pulse_script().ask("beat", self.id, *words)
        if reply is None:
            return Beat(alive=False)
        now, beats, stops = reply
        self._script.read_clock(now)
        others = {id.decode(): int(beat) for id, beat in zip(beats[::2], beats[1::2], strict=True)}
        others.pop(self.id, None)
        self._dead = self._watch.observe(others, self._script.clock.monotonic())
        stop = tuple((id.decode(), int(claim)) for id, claim in zip(stops[::2], stops[1::2], strict=True))
        return Beat(alive=True, stop=stop, rescue=bool(self._dead))

    def _pulse_script(self) -> Script:
        """What the thread that beats asks with: its event loop is not the worker's."""
        loop = asyncio.get_running_loop()
        if self._pulse is None or self._pulse[0] is not loop:
            if self._pulse is not None:
                self._pulse[1].link.abandon()
            self._pulse = (loop, self._script.second())
        return self._pulse[1]

    async def remember(self, lease: Lease, step: str, value: bytes) -> bool:
        """Store a step's result; see `Session.remember`."""
        return bool(await self._script.tell("remember", self.id, lease.ref, lease.claim, step, value))

    async def wait(self, timeout: float) -> None:
        """Return when there may be work for this worker, and now and then although nothing is known of any."""
        timeout = min(timeout, random.uniform(*POLL))
        if self._wake_at is None:
            await self._script.link.pop_marker(self._bell, timeout)
            return
        wakes_in = max((self._wake_at - stored(self._script.clock.now())) / SECOND, SOONEST)
        with suppress(TimeoutError):  # of our own clock: a server looks only every 100 ms who has waited for long enough
            async with asyncio.timeout(wakes_in):
                await self._script.link.pop_marker(self._bell, timeout)

    async def maintain(self) -> Upkeep:
        """One round of upkeep; see `Session.maintain`."""
        dead, self._dead = self._dead, []
        now, wait, touched = await self._script.ask("maintain", *(word for pair in dead for word in pair))
        self._script.read_clock(now)
        seconds = LONGEST_WAIT if wait < 0 else min(wait / 1_000_000, LONGEST_WAIT)
        return Upkeep(seconds, tuple(Touched(*(word.decode() for word in each)) for each in touched))

    async def due(self) -> list[Due]:
        """The schedules whose tick has come."""
        found = await self._script.ask("due")
        return [Due(planning.rule_of(rule), moment(int(next_at))) for _, rule, next_at in sorted(found)]

    async def tick(self, due: Due, next_at: datetime | None, jobs: Sequence[Job]) -> bool:
        """Fire a tick once; see `Session.tick`."""
        last_at = optional_stored(jobs[-1].run_at) if jobs else ""
        words = [word for job in jobs for word in (job.id, tail(job))]
        rule = planning.text_of(due.schedule)
        refusal, ticked = await self._script.tell(
            "tick", due.schedule.name, rule, stored(due.next_at), optional_stored(next_at), last_at, *words
        )
        if refusal:
            refuse(refusal)
        return bool(ticked)

    async def enter(self) -> None:
        """Be known to the store, with the schedules and limits that the worker declares."""
        info = self._info
        declares = _pack([schedule.name for schedule, _ in info.schedules])
        words: Words = []
        for schedule, next_at in info.schedules:
            words += (schedule.name, planning.text_of(schedule), optional_stored(next_at))
        for limit in info.limits:
            words += (rule_id(limit), _pack(limit))
        for task, isolation in info.tasks.items():
            words += (task, isolation)
        numbers = (len(info.schedules), len(info.limits))
        await self._script.ask("enter", self.id, info.name, _json(info), declares, self._asleep, *numbers, *words)

    async def leave(self) -> None:
        """Be gone; what is still held goes back unharmed."""
        if self._handing_back:
            await asyncio.wait(self._handing_back)
        while await self._script.ask("leave", self.id):
            pass

    async def close(self) -> None:
        """Let go of the connections."""
        await self._script.link.close()
        if self._pulse is not None:
            loop, script = self._pulse
            if loop is asyncio.get_running_loop():
                await script.link.close()
            else:  # that of the thread that beat, which has ended
                script.link.abandon()
