"""Random graphs to which all happens that can: every workflow ends, callbacks come once, and nobody starts before its parents allow it."""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from offload.broker import Feature, Session, Store
from offload.job import Cancelled, Dead, Done, Job, Lease, Outcome, Release, Retried, State, TallyKind
from offload.records import Tally
from offload.testing.clock import TestClock
from offload.testing.contract.families import node
from offload.testing.contract.fixtures import Fixtures, claim, failure, info, job, live, needs

GRAPHS = int(os.environ.get("OFFLOAD_GRAPHS", "3"))
"""How many are played; `make soak` plays many more."""
MOST_NODES = 50
MOVES = 80
CALLBACKS = ("success", "failure", "complete")
SILENCE = 20.0
"""Seconds after which a session that does not beat is dead."""


@dataclass
class Play:
    """What befalls the jobs of one graph, by chance, and what is known of them."""

    store: Store
    clock: TestClock
    chance: random.Random
    stack: AsyncExitStack
    nodes: dict[str, Job]
    sessions: list[Session] = field(default_factory=list[Session])
    held: dict[str, list[Lease]] = field(default_factory=dict[str, list[Lease]])
    """By session, of those that live."""
    gone: dict[str, State] = field(default_factory=dict[str, State])
    """How deleted jobs had ended, CANCELLED where they had not."""
    allowed: set[str] = field(default_factory=set[str])
    """The jobs that parents have let go at one time."""
    called: Counter[str] = field(default_factory=Counter[str])
    """How often each callback came to a good end."""
    failed: bool = False
    """Whether any job of the batch has ever been dead or expired."""

    async def begin(self) -> None:
        """Store the batch with its callbacks, and the graph in pieces, in any order."""
        await self.store.open_batch("b", "", [job(self.clock, f"on {each}", batch="b", callback=each) for each in CALLBACKS])
        jobs = self.chance.sample(list(self.nodes.values()), len(self.nodes))
        cut = self.chance.randrange(len(jobs))
        for piece in (jobs[:cut], jobs[cut:]):
            await self.store.enqueue(piece)
        assert await self.store.seal_batch("b")
        for _ in range(2):
            await self.join()
        await self.look()

    async def join(self) -> None:
        """One more session."""
        session = await self.stack.enter_async_context(self.store.session(info()))
        self.sessions.append(session)
        self.held[session.id] = []

    async def move(self) -> None:
        """Have something happen."""
        act = self.chance.choice([self.take] * 6 + [self.end] * 6 + [self.cancel, self.retry, self.retry, self.delete, self.die])
        await act()
        await self.look()

    async def take(self) -> None:
        session = self.chance.choice(self.sessions)
        leases = await claim(session, self.chance.randint(1, 5))
        await self.check(leases)
        self.held[session.id] += leases

    async def check(self, leases: list[Lease]) -> None:
        """Nobody starts whom a parent has not let go."""
        states = {id: each.state for id, each in (await self.store.get(list(self.nodes))).items()} | self.gone
        for lease in leases:
            if lease.job.callback is None:
                assert lease.job.id in self.allowed, f"{lease.job.id} starts before its parents allow it"
                if lease.job.if_parent_fails == "cancel":
                    assert {states[parent.id] for parent in lease.job.parents} <= {State.SUCCEEDED}, f"{lease.job.id} starts all the same"

    async def end(self) -> None:
        session = self.chance.choice(self.sessions)
        if not (held := self.held[session.id]):
            return
        leases = self.chance.sample(held, self.chance.randint(1, len(held)))
        settlements = [(lease, self.outcome(lease)) for lease in leases]
        assert await session.settle(settlements) == []
        self.held[session.id] = [lease for lease in held if lease not in leases]
        self.called.update(lease.job.id for lease, outcome in settlements if lease.job.callback and isinstance(outcome, Done))

    def outcome(self, lease: Lease) -> Outcome:
        again: list[Outcome] = [Release(), Retried(0, failure(self.clock))]
        if lease.job.callback:
            return self.chance.choice([Done(), Done(), *again])
        return self.chance.choice([Done(b"1")] * 6 + [Dead("no"), Cancelled("no"), *again])

    async def cancel(self) -> None:
        await self.store.cancel([self.one()])

    async def retry(self) -> None:
        await self.store.retry([self.one() for _ in range(5)])

    async def delete(self) -> None:
        id = self.one()
        before = (await self.store.get([id])).get(id)
        if before is not None and await self.store.delete([id]):
            self.gone[id] = before.state if before.state.terminal else State.CANCELLED

    async def die(self) -> None:
        """A session dies, and with it what it holds; another takes its place."""
        dead = self.sessions.pop(self.chance.randrange(len(self.sessions)))
        del self.held[dead.id]
        await self.join()
        await live(self.clock, SILENCE, *self.sessions)
        for session in self.sessions:
            await session.maintain()

    def one(self) -> str:
        return self.chance.choice(list(self.nodes))

    async def look(self) -> None:
        """Note whom parents have let go, and whether anything has failed."""
        states = {id: each.state for id, each in (await self.store.get(list(self.nodes))).items()} | self.gone
        for id, each in self.nodes.items():
            fates = [states[parent.id] for parent in each.parents]
            if all(fate is State.SUCCEEDED or (each.if_parent_fails == "run" and fate.terminal) for fate in fates):
                self.allowed.add(id)
        batch = await self.tally("batch", "b")
        self.failed |= batch.dead + batch.expired > 0

    async def tally(self, kind: TallyKind, id: str) -> Tally:
        (found,) = await self.store.tallies(kind, [id])
        return found

    async def finish(self) -> None:
        """Have all jobs run, and end well."""
        for _ in range(10 * MOST_NODES):
            for session in self.sessions:
                await session.maintain()
                leases = await claim(session)
                await self.check(leases)
                held = self.held[session.id] + leases
                assert await session.settle([(lease, Done(b"1")) for lease in held]) == []
                self.held[session.id] = []
                self.called.update(lease.job.id for lease in held if lease.job.callback)
                await self.look()
            if await self.is_over():
                return
        raise AssertionError("it does not come to an end")

    async def is_over(self) -> bool:
        """Whether all jobs have ended, and no callback is left that is due."""
        nodes, calls = await self.store.get(list(self.nodes)), await self.store.get([f"on {each}" for each in CALLBACKS])
        due = [each for each in calls.values() if not each.state.terminal and each.state is not State.WAITING]
        return not due and all(each.state.terminal for each in nodes.values())


def _unsuccessful(shown: Tally) -> int:
    return shown.dead + shown.cancelled + shown.expired


def _graph(clock: TestClock, chance: random.Random) -> dict[str, Job]:
    """Up to fifty jobs, each of which waits for up to three of those before it; some belong to a batch, too."""
    number = chance.randint(2, MOST_NODES)
    names = [f"n{n}" for n in range(number)]
    return {
        name: node(
            clock,
            name,
            *chance.sample(names[:n], min(n, chance.choice([0, 1, 1, 2, 3]))),
            flow="f",
            size=number,
            fails=chance.choice(["cancel", "cancel", "run"]),
            batch="b" if n == 0 or chance.random() < 0.4 else None,
        )
        for n, name in enumerate(names)
    }


class Graphs(Fixtures):
    @needs(Feature.PARENTS, Feature.BATCH)
    @pytest.mark.parametrize("seed", range(GRAPHS))
    async def test_a_random_graph_comes_to_its_end_whatever_befalls_it(self, store: Store, clock: TestClock, seed: int) -> None:
        chance = random.Random(seed)
        async with AsyncExitStack() as stack:
            play = Play(store, clock, chance, stack, _graph(clock, chance))
            await play.begin()
            for _ in range(MOVES):
                await play.move()
            await play.finish()
            flow, batch = await play.tally("workflow", "f"), await play.tally("batch", "b")
            for shown in (flow, batch):
                assert shown.finished_at is not None
                assert shown.succeeded + _unsuccessful(shown) == shown.total
            assert flow.total == len(play.nodes)
            assert batch.total == len([each for each in play.nodes.values() if each.batch])
            assert play.called["on complete"] == 1
            assert play.called["on success"] == (not _unsuccessful(batch))
            assert play.called["on failure"] == play.failed
