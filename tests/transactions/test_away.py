"""A database that is away when a block of `current.transaction()` begins, or goes away inside, costs the job no attempt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tests.transactions import program
from tests.transactions.conftest import Shop
from tests.transactions.test_stopping import task_of

from offload import State, completing, current
from offload.testing.servers import PostgresServer, Proxy


@pytest.fixture
def proxy(shared_postgres: Callable[[int | None], PostgresServer]) -> Iterator[Proxy]:
    with Proxy(shared_postgres(None).port) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: Proxy, shared_postgres: Callable[[int | None], PostgresServer]) -> str:
    return proxy.through(shared_postgres(None).database())


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "AGAIN_WITHIN", 0.0)


Blow = Callable[[int], None]
"""What happens to the connection of the server's process with that id."""


def forms(before: Blow, inside: Blow) -> list[Callable[[], Any]]:
    """A task of each form, with what is done before the block and inside, by the number of the run and of the process."""
    runs: list[int] = []

    def sync() -> None:
        runs.append(1)
        before(len(runs))
        with current.transaction() as mine:
            mine.execute(program.insert(7))
            if len(runs) == 1:
                inside(mine.info.backend_pid)
            mine.execute(program.insert(8))

    async def coroutine() -> None:
        runs.append(1)
        before(len(runs))
        async with current.atransaction() as mine:
            await mine.execute(program.insert(7))
            if len(runs) == 1:
                inside(mine.info.backend_pid)
            await mine.execute(program.insert(8))

    return [sync, coroutine]


def nothing(_: int) -> None: ...


@pytest.mark.parametrize("form", [0, 1], ids=["thread", "coroutine"])
@pytest.mark.parametrize("blow", ["refused", "cut", "ended by the server"])
def test_the_job_is_handed_back_and_runs_again(shop: Shop, proxy: Proxy, form: int, blow: str, caplog: pytest.LogCaptureFixture) -> None:
    def end(process: int) -> None:
        with psycopg.connect(shop.url.replace(f":{proxy.port}", f":{proxy.target}"), autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s, 10000)", [process])

    ways: dict[str, tuple[Blow, Blow]] = {
        "refused": (lambda run: proxy.refuse() if run == 1 else proxy.accept(), nothing),
        "cut": (nothing, lambda _: proxy.cut()),
        "ended by the server": (nothing, end),
    }
    with caplog.at_level(logging.WARNING, "offload.worker"), task_of(shop, forms(*ways[blow])[form]) as task:
        record = shop.ran(task.enqueue())
    assert (record.state, record.attempt, record.errors) == (State.SUCCEEDED, 1, ())
    assert shop.marks() == [7, 8]
    assert "is handed back: its database was away" in caplog.text


@pytest.mark.parametrize("form", [0, 1], ids=["thread", "coroutine"])
def test_another_connection_that_ends_is_the_tasks_own_trouble(shop: Shop, form: int) -> None:
    def fail(_: int) -> None:
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    with task_of(shop, forms(nothing, fail)[form]) as task:
        record = shop.ran(task.enqueue())
    assert (record.state, record.errors[0].type) == (State.DEAD, "psycopg.OperationalError")
    assert shop.marks() == []
