"""The memory broker keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from offload.brokers.memory import MemoryBroker
from offload.testing.clock import TestClock
from offload.testing.contract import BrokerContract


class TestMemory(BrokerContract):
    @pytest.fixture
    async def broker(self, clock: TestClock) -> AsyncIterator[MemoryBroker]:
        broker = MemoryBroker.connect("memory://", clock)
        await broker.open()
        yield broker
        await broker.close()
