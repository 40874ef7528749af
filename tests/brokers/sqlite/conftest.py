"""What the tests of the SQLite engine alone need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from offload.brokers.sqlite import SqliteBroker
from offload.testing.clock import TestClock


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def broker(path: Path, clock: TestClock) -> AsyncIterator[SqliteBroker]:
    broker = SqliteBroker.connect(f"sqlite:///{path}", clock)
    await broker.open()
    yield broker
    await broker.close()
