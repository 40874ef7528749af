"""What `doctor` and `why` look at besides a store's own account of itself, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from offload import Concurrency, Offload, Rate, Worker

ENGINES = ("memory", "sqlite", "postgres", "redis")


@pytest.fixture(params=ENGINES)
def app(request: pytest.FixtureRequest, tmp_path: Path, fresh_name: str) -> Iterator[Offload]:
    match request.param:
        case "memory":
            url = "memory://"
        case "sqlite":
            url = f"sqlite:///{tmp_path}/offload.db"
        case "postgres":
            url = request.getfixturevalue("shared_postgres")(None).database()
        case _:
            url = f"{request.getfixturevalue('shared_valkey').url}?prefix={fresh_name}"
    with closing(Offload(url)) as made:
        yield made


def test_a_job_behind_one_that_nobody_will_start_is_told_which(app: Offload) -> None:
    @app.task(limits=Concurrency(1, key="shared"))
    def report() -> None: ...

    app.pause("night")
    held = report.using(queue="night").enqueue()
    waits = report.using(queue="day").enqueue()
    told = f"Job {held.id} is READY in queue 'night', which is paused, and so keeps it: `offload why {held.id}` tells more."
    assert told in app.why(waits.id)
    assert "key 'shared' is held by a job that nobody will start" in [finding.title for finding in app.doctor()]
    app.resume("night")
    before, said, after = app.why(waits.id).partition("first served.")
    assert before
    assert said
    assert "Job" not in after
    assert "key 'shared' is held by a job that nobody will start" not in [finding.title for finding in app.doctor()]


@pytest.mark.anyio
async def test_doctor_counts_dead_jobs_and_names_what_was_set_for_nobody(app: Offload) -> None:
    @app.task(name="fails", queue="bad", retry=False, limits=Rate("100/s", key="api", burst=10))
    async def fails() -> None:
        raise ValueError

    async with app:
        await fails.aenqueue()
        await Worker(app).drain()
        await app.aset_limit("api", concurrency=3)
        async with Worker(app):
            details = {finding.title: finding.detail for finding in await app.adoctor()}
    assert details["1 job is dead"] == "By queue: bad (1). Tasks: fails."
    assert details["what was set for key 'api' counts for nobody now"].endswith("known for it: a rate (100/s, burst 10).")
