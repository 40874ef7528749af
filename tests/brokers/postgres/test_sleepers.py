"""Who sleeps until there is work: how soon it looks where no notifications arrive, and once they do."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from tests.brokers.postgres.conftest import Ask, Opens

from offload.brokers.postgres import wake
from offload.brokers.postgres.wake import POLL_DEAF
from offload.testing.contract.fixtures import PATIENCE
from offload.testing.servers.process import free_port

pytestmark = pytest.mark.anyio


async def test_while_the_listener_is_down_it_looks_as_often_as_without_one(opens: Opens, url: str) -> None:
    broker = await opens(f"{url}&pgbouncer=true&listen=postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    ear = broker.opened.ear
    looks: list[float] = []

    async def look() -> bool:
        looks.append(monotonic())
        return len(looks) == 4

    begun = monotonic()
    await ear.sleep("work", ear.count("work"), 60.0, look)
    assert looks[-1] - begun < 3 * POLL_DEAF * 1.2 + 0.5


async def test_who_sleeps_looks_again_when_notifications_begin_to_arrive(opens: Opens, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "POLL_DEAF"):
        monkeypatch.setattr(wake, name, 3_600.0)
    ear = (await opens()).opened.ear
    asked: list[bool] = []

    async def look() -> bool:
        asked.append(bool(ask("select 1 from sleepers")))
        return asked[-1]

    async with asyncio.timeout(PATIENCE):
        await ear.sleep("work", ear.count("work"), 3_600.0, look)
    assert asked in ([False, True], [True])
