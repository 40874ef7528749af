"""What statements must be like, and what they do where another transaction holds the row they meet."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg
import pytest
from tests.brokers.postgres.conftest import Ask, Opens
from tests.conftest import Eventually

from offload.broker import Statement, Work
from offload.brokers.postgres import PostgresBroker
from offload.brokers.postgres.work import Transaction, statements
from offload.errors import BrokerError
from offload.job import Dead, Done, Outcome, State
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import claim_one, info, job
from offload.testing.servers import PostgresServer

MOST_CACHED = 4_096
"""Characters of the longest statement that psycopg parses once and not at every call."""


def test_statements_are_short_enough_for_the_driver_to_remember() -> None:
    longest = "x" * 63
    assert {name: len(sql) for name, sql in statements(longest).items() if len(sql) > MOST_CACHED} == {}


@pytest.mark.anyio
@pytest.mark.parametrize("outcome", [Done(), Dead("broken")], ids=["done", "dead"])
@pytest.mark.parametrize("keep", [0.0, 100.0], ids=["forgotten", "kept"])
async def test_a_settle_that_meets_a_cancel_under_way_ends_the_attempt(
    server: PostgresServer, schema: str, opens: Opens, clock: TestClock, ask: Ask, eventually: Eventually, outcome: Outcome, keep: float
) -> None:
    broker = await opens()
    await broker.enqueue([job(clock, id="one", keep=keep)])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        canceller = await psycopg.AsyncConnection.connect(server.url)
        async with canceller:
            await canceller.execute(f'update "{schema}".running set cancel = true'.encode())
            settling = asyncio.create_task(session.settle([(lease, outcome)]))
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%running%'"
            await eventually(lambda: ask(waiting) != [(0,)] or settling.done())
            assert not settling.done()
            await canceller.commit()
        assert await settling == []
        assert ask("select count(*) from running") == [(0,)]
        clock.advance(timedelta(seconds=1))
        found = await broker.get(["one"])
        kept = {"one": State.CANCELLED} if isinstance(outcome, Dead) else {"one": State.SUCCEEDED} if keep else {}
        assert {id: record.state for id, record in found.items()} == kept


class Marks:
    """A table of numbers below ten, and a client that runs statements on it in a transaction of their own."""

    def __init__(self, broker: PostgresBroker, schema: str) -> None:
        self._broker = broker
        self._table = f'"{schema}".marks'

    async def run(self, *steps: int | str) -> list[object]:
        """A number is inserted without an answer, the word `count` is answered. Returns what was answered."""

        def operation(_: Transaction) -> Work[list[object]]:
            answers: list[object] = []
            for step in steps:
                if step == "count":
                    answers.append((yield Statement(f"select count(*) from {self._table}")))
                else:
                    answers.append((yield Statement(f"insert into {self._table} (n) values (%(n)s) returning n", {"n": step}, False)))
            return answers

        return await self._broker.opened.run(operation)


@pytest.fixture
async def marks(opens: Opens, schema: str, ask: Ask) -> Marks:
    broker = await opens()
    ask("create table marks (n integer check (n < 10))")
    return Marks(broker, schema)


@pytest.mark.anyio
async def test_statements_without_answers_go_with_the_next_and_in_order(marks: Marks, monkeypatch: pytest.MonkeyPatch) -> None:
    trips: list[None] = []
    pipeline = psycopg.AsyncConnection.pipeline
    monkeypatch.setattr(psycopg.AsyncConnection, "pipeline", lambda self: (trips.append(None), pipeline(self))[1])
    assert await marks.run(1, 2, "count", 3, 4, "count", 5) == [[], [], [(2,)], [], [], [(4,)], []]
    assert len(trips) == 3
    assert await marks.run("count") == [[(5,)]]


@pytest.mark.anyio
@pytest.mark.parametrize("behind", [[], [3], ["count"]], ids=["last", "without", "answered"])
async def test_a_statement_without_an_answer_that_fails_undoes_all(marks: Marks, behind: list[int | str]) -> None:
    with pytest.raises(BrokerError, match="check constraint"):
        await marks.run(1, 2, 10, *behind)
    assert await marks.run("count") == [[(0,)]]
