"""The SQLite broker keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from offload.brokers.sqlite import SqliteBroker
from offload.testing.clock import TestClock
from offload.testing.contract import BrokerContract


class TestSqlite(BrokerContract):
    @pytest.fixture
    async def broker(self, clock: TestClock, tmp_path: Path) -> AsyncIterator[SqliteBroker]:
        broker = SqliteBroker.connect(f"sqlite:///{tmp_path}/offload.db?synchronous=normal", clock)
        await broker.open()
        yield broker
        await broker.close()
