"""The PostgreSQL broker keeps the contract, on the oldest and the newest server at hand."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.conftest import Schemas

from offload.brokers.postgres import PostgresBroker
from offload.testing.clock import TestClock
from offload.testing.contract import BrokerContract
from offload.testing.servers import PostgresServer


class TestPostgres(BrokerContract):
    @pytest.fixture
    async def broker(self, clock: TestClock, each_postgres: PostgresServer, schemas: Schemas) -> AsyncIterator[PostgresBroker]:
        with schemas.lent(each_postgres) as schema:
            broker = PostgresBroker.connect(f"{each_postgres.url}?schema={schema}", clock)
            await broker.open()
            yield broker
            await broker.close()
