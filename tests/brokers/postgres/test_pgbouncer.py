"""The contract holds behind pgbouncer in transaction mode, with `?pgbouncer=true`; with `listen=` workers are still woken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import pytest
from tests.conftest import Schemas, Starts

from offload.brokers.postgres import PostgresBroker, wake
from offload.errors import BrokerUnusable
from offload.testing.clock import TestClock
from offload.testing.contract import BrokerContract
from offload.testing.contract.fixtures import PATIENCE, claim, ids, info, job
from offload.testing.servers import PostgresServer, Server, pgbouncer


@pytest.fixture(scope="session")
def server(shared_postgres: Callable[[int | None], PostgresServer]) -> PostgresServer:
    return shared_postgres(None)


@pytest.fixture(scope="session")
def bouncer(shared: Starts[Server], server: PostgresServer) -> Server:
    return shared(lambda: pgbouncer(server))


class TestBehindPgbouncer(BrokerContract):
    @pytest.fixture
    async def broker(self, clock: TestClock, bouncer: Server, server: PostgresServer, schemas: Schemas) -> AsyncIterator[PostgresBroker]:
        with schemas.lent(server) as schema:
            broker = PostgresBroker.connect(f"{bouncer.url}?schema={schema}&pgbouncer=true", clock)
            await broker.open()
            yield broker
            await broker.close()


@pytest.mark.anyio
async def test_notifications_come_from_the_server_itself(
    bouncer: Server, server: PostgresServer, fresh_name: str, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake, "POLL", 3_600.0)
    monkeypatch.setattr(wake, "POLL_DEAF", 3_600.0)
    url = f"{bouncer.url}?schema={fresh_name}&pgbouncer=true&listen={quote(server.url, safe='')}"
    broker = PostgresBroker.connect(url, clock)
    await broker.open()
    async with broker.session(info()) as session, asyncio.timeout(PATIENCE):
        assert await claim(session) == []
        waiting = asyncio.ensure_future(session.wait(3_600))
        await asyncio.sleep(0.2)
        await broker.enqueue([job(clock, "a")])
        await waiting
        assert ids(await claim(session)) == ["a"]
    await broker.close()


@pytest.mark.anyio
async def test_a_url_that_does_not_say_so_is_told(bouncer: Server, server: PostgresServer, schemas: Schemas, clock: TestClock) -> None:
    """Statements that one client prepared are met by others, on the connection that is theirs for the next transaction."""
    with schemas.lent(server) as schema:
        brokers = [PostgresBroker.connect(f"{bouncer.url}?schema={schema}", clock) for _ in range(3)]
        with pytest.raises(BrokerUnusable, match="a pooler in transaction mode: add pgbouncer=true to the URL"):
            for broker in brokers:
                await broker.open()
                for _ in range(10):
                    await broker.counts()
        for broker in brokers:
            await broker.close()
