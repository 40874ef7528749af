"""`autocommit=`, which sqlite3 has from Python 3.12 on: with True its `commit` does nothing, with False a transaction is always open."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from tests.transactions import program
from tests.transactions.conftest import Shop
from tests.transactions.kinds import Kind
from tests.transactions.test_databases import of
from tests.transactions.test_stopping import task_of

from offload import BadDeclaration, State, current
from offload.portal import portal

pytestmark = pytest.mark.skipif(not hasattr(sqlite3.Connection, "autocommit"), reason="sqlite3 has autocommit= from Python 3.12 on")


def path_of(shop: Shop) -> str:
    return shop.url.removeprefix("sqlite:///")


def opened(shop: Shop, *, autocommit: bool) -> Any:
    connect: Any = sqlite3.connect  # the types of Python 3.11 do not know of it
    return connect(path_of(shop), autocommit=autocommit)


@of("sqlite3")
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_block_commits_and_rolls_back_whatever_autocommit_says(shop: Shop, kind: Kind, autocommit: bool) -> None:
    def work(n: int) -> None:
        with closing(opened(shop, autocommit=autocommit)) as connection:
            if n == 3:
                connection.execute("begin") if autocommit else None
                connection.execute(program.insert(30))
            with current.transaction(connection):
                connection.execute(program.insert(n))
                program.note.enqueue(n)
                if n == 2:
                    raise ValueError("wrong")
            assert connection.in_transaction is not autocommit

    with task_of(shop, work) as task:
        records = [shop.ran(task.enqueue(n)) for n in (1, 2, 3)]
    assert [record.state for record in records] == [State.SUCCEEDED, State.DEAD, State.SUCCEEDED]
    assert (shop.marks(), shop.jobs()) == ([1, 3, 30], [1, 3])


@of("aiosqlite")
def test_a_block_on_aiosqlite_commits_whatever_autocommit_says(shop: Shop, kind: Kind) -> None:
    async def work(n: int) -> None:
        async with aiosqlite.connect(path_of(shop), autocommit=True) as connection, current.atransaction(connection):
            await connection.execute(program.insert(n))
            await program.note.aenqueue(n)
            if n == 2:
                raise ValueError("wrong")

    with task_of(shop, work) as task:
        records = [shop.ran(task.enqueue(n)) for n in (1, 2)]
    assert [record.state for record in records] == [State.SUCCEEDED, State.DEAD]
    assert (shop.marks(), shop.jobs()) == ([1], [1])


@of("sqlite3")
def test_with_autocommit_a_job_is_refused_without_a_transaction_and_joins_one(shop: Shop, kind: Kind) -> None:
    with closing(opened(shop, autocommit=True)) as connection:
        with pytest.raises(BadDeclaration, match="in autocommit mode has no transaction"):
            program.note.using(connection=connection).enqueue(1)
        for n, end in ((2, "rollback"), (3, "commit")):
            connection.execute("begin")
            program.note.using(connection=connection).enqueue(n)
            connection.execute(end)
    with closing(opened(shop, autocommit=False)) as connection:
        for n, end in ((4, connection.rollback), (5, connection.commit)):
            program.note.using(connection=connection).enqueue(n)
            end()
    assert shop.jobs() == [3, 5]


@of("aiosqlite", "aiosqlite: AsyncConnection", "aiosqlite: AsyncSession", "pysqlite: Session")
def test_where_autocommit_hides_behind_a_library_it_is_refused_too(shop: Shop, kind: Kind) -> None:
    """Nothing would commit the transaction that enqueueing began: the library's `commit` does nothing there."""
    match = "autocommit"
    given = {"connect_args": {"autocommit": True}}

    async def bare() -> None:
        async with aiosqlite.connect(path_of(shop), autocommit=True) as connection:
            await program.note.using(connection=connection).aenqueue(1)

    async def coroutine() -> None:
        engine = create_async_engine(shop.url.replace("sqlite", "sqlite+aiosqlite", 1), **given)
        try:
            async with AsyncSession(engine) if kind.name.endswith("Session") else engine.connect() as connection:
                await program.note.using(connection=connection).aenqueue(1)
        finally:
            await engine.dispose()

    def sync() -> None:
        engine = create_engine(shop.url, **given)
        try:
            with Session(engine) as session:
                program.note.using(connection=session).enqueue(1)
        finally:
            engine.dispose()

    with pytest.raises(BadDeclaration, match=match):
        portal.run(bare) if kind.name == "aiosqlite" else portal.run(coroutine) if kind.is_async else sync()
    assert shop.jobs() == []
