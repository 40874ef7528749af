"""The apps, brokers and folders of the worker's tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.worker import program as children

from offload import Offload
from offload.testing.clock import TestClock
from offload.worker import executor

SHARED = ["sqlite", "postgresql", "redis"]
"""The engines that other processes see."""
EVERYWHERE = ["memory", *SHARED]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a broker on the engines that its file names as `engines`: two unless it does; in a soak on all."""
    if "url" in metafunc.fixturenames:
        usual = EVERYWHERE if os.environ.get("OFFLOAD_SOAK") else ["memory", "sqlite"]
        metafunc.parametrize("url", getattr(metafunc.module, "engines", usual), indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, fresh_name: str) -> str:
    """An empty queue on one of the engines."""
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite:///{tmp_path}/offload.db?synchronous=normal"
        case "postgresql":
            return request.getfixturevalue("fresh_database")()
        case _:
            return f"{request.getfixturevalue('shared_valkey').url}?prefix={fresh_name}"


@pytest.fixture
async def app(url: str) -> AsyncIterator[Offload]:
    """An app without tasks, whose workers beat fast so that what beats bring is not waited for."""
    app = Offload(url, heartbeat=0.05, session_timeout=30)
    yield app
    await app.aclose()


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
async def timed(url: str, clock: TestClock) -> AsyncIterator[Offload]:
    """An app that goes by `clock`."""
    app = Offload(url, clock=clock)
    yield app
    await app.aclose()


@pytest.fixture
async def program(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Offload]:
    """The app of `tests.worker.program`, on the broker; child processes that import it use the same."""
    monkeypatch.setenv("OFFLOAD_URL", url)
    async with children.app.testing(url):
        yield children.app


@pytest.fixture
def marks(tmp_path: Path) -> children.Marks:
    """What tasks wrote down with `mark`, in whatever process they ran."""
    return children.Marks(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker tries again to stop an attempt, and gives up on it, within tenths of a second."""
    monkeypatch.setattr(executor, "NUDGE_EVERY", {"async": 0.1, "thread": 0.1, "process": 0.1})
    monkeypatch.setattr(executor, "STUCK_AFTER", 0.4)
    monkeypatch.setattr(executor, "CLEANUP", 0.3)
