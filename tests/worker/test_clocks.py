"""A machine whose own clock is wrong: jobs are due, expire and age by the server's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.worker.running import ended

from offload import Offload, Retry, State, Worker
from offload.clock import SystemClock

pytestmark = pytest.mark.anyio

engines = ["postgresql", "redis"]
SOON = timedelta(seconds=30)


@pytest.fixture(params=[-2, 2], ids=["behind", "ahead"])
def wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is two hours behind or ahead."""
    right = SystemClock.now
    monkeypatch.setattr(SystemClock, "now", lambda clock: right(clock) + timedelta(hours=request.param))


async def test_a_producer_enqueues_by_the_servers_clock(app: Offload, wrong: None) -> None:
    @app.task
    async def mail() -> None: ...

    for _ in range(2):  # also the first job of all, before which the server's clock is not known
        record = await (await mail.using(delay=600, expires_in=3600).aenqueue()).arecord()
        assert record.state is State.SCHEDULED
        assert record.run_at is not None
        assert record.expires_at is not None
        for moment, after in ((record.enqueued_at, 0), (record.run_at, 600), (record.expires_at, 3600)):
            assert abs(moment - datetime.now(UTC) - timedelta(seconds=after)) < SOON


async def test_a_worker_judges_the_age_of_a_job_by_the_servers_clock(app: Offload, wrong: None) -> None:
    runs: list[int] = []

    @app.task(retry=Retry(max_retries=1, initial=0, within=3600))
    async def fail() -> None:
        runs.append(1)
        raise ValueError

    async with Worker(app):
        record = await ended(await fail.aenqueue())
    assert len(runs) == 2
    assert all(abs(failure.at - datetime.now(UTC)) < SOON for failure in record.errors)
