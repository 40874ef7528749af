"""The primary is killed under load: a replica takes over, all go on by themselves, and losses are as documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.accounts import accepted
from tests.chaos.conftest import Stage
from tests.chaos.places import SOAK, Place
from tests.conftest import Starts

from offload import State
from offload.testing.servers import PostgresServer, Sentinels, postgres, sentinel

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

FAILOVERS = 5 if SOAK else 1


@pytest.fixture
def sentinels(started: Starts[Sentinels]) -> Sentinels:
    return started(lambda: sentinel(durable=True))


@pytest.fixture
def place(sentinels: Sentinels, request: pytest.FixtureRequest) -> Place:
    """A queue under sentinels, with the durability asked for."""
    durability: str = request.param
    return Place("sentinel", f"{sentinels.url}?durability={durability}")


@pytest.fixture
def stage(tmp_path: Path, place: Place) -> Iterator[Stage]:
    stage = Stage(tmp_path, place, CHAOS_SESSION_TIMEOUT="2")
    yield stage
    stage.close()


@pytest.mark.timeout(600 if SOAK else 300)
@pytest.mark.parametrize("place", ["none", "replicated:1"], indirect=True)
def test_a_failover_under_load_needs_nobody(stage: Stage, sentinels: Sentinels) -> None:
    stage.produce(2, chunk=5, pause=0.02)
    for _ in range(2):
        stage.start("worker")
    for failover in range(1, FAILOVERS + 1):
        due = len(stage.ran()) + 300
        stage.until(lambda due=due: len(stage.ran()) >= due, 60, f"enough jobs ran for failover {failover}")
        primary = sentinels.current()
        primary.kill()
        before, stored = len(stage.ran()), accepted(stage)
        stage.until(lambda primary=primary: sentinels.current() is not primary, 60, "the replica takes over")
        primary.start()  # as a replica of the new primary, as the sentinels tell it
        stage.until(lambda before=before: len(stage.ran()) > before + 100, 60, "workers go on by themselves")
        stage.until(lambda stored=stored: accepted(stage) > stored + 100, 60, "producers go on by themselves")
    jobs = stage.enough()
    stage.until(lambda: set(stage.counts()) == {State.SUCCEEDED}, 60, "all that the new primary knows of succeeds")

    known = {int(record.id.removeprefix("short-")) for record in stage.app.find(limit=len(jobs) + 1)}
    lost, again = jobs - known, {n for n, pids in stage.ran().items() if len(pids) > 1}
    replicated = "replicated" in stage.url
    assert known <= jobs
    assert known <= set(stage.ran()), "what is recorded as a success ran"
    if replicated:
        assert lost == set(), "what a replica had confirmed was lost"
    assert "Traceback" not in stage.log()
    how = "replicated" if replicated else "unconfirmed"
    print(f"{len(jobs)} {how} jobs, {FAILOVERS} failovers, {len(lost)} accepted and lost, {len(again)} ran again")


@pytest.fixture
def primary(started: Starts[PostgresServer]) -> PostgresServer:
    return started(lambda: postgres(durable=True))


@pytest.fixture
def standby(started: Starts[PostgresServer], primary: PostgresServer) -> PostgresServer:
    """A standby of `primary`, for which its commits wait from now on."""
    standby = started(lambda: postgres(durable=True))
    primary.database("shop")
    standby.follow(primary)
    primary.ask("alter system set synchronous_standby_names = '*'")
    primary.ask("select pg_reload_conf()")
    return standby


@pytest.mark.parametrize("attributes", ["", "?target_session_attrs=read-write"], ids=["hosts alone", "read-write"])
def test_a_standby_of_postgresql_that_is_promoted_is_found(
    tmp_path: Path, primary: PostgresServer, standby: PostgresServer, attributes: str
) -> None:
    url = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/shop{attributes}"
    stage = Stage(tmp_path, Place("postgresql", url), CHAOS_SESSION_TIMEOUT="2")
    try:
        stage.until(lambda: standby.ask("select 1 from pg_stat_wal_receiver where status = 'streaming'"), 30, "the standby follows")
        stage.produce(1, chunk=5, pause=0.02)
        workers = [stage.start("worker") for _ in range(2)]
        stage.until(lambda: len(stage.ran()) >= 300, 60, "enough jobs ran")
        primary.kill()
        stage.until(lambda: stage.log().count("does not answer") >= 2, 30, "both workers meet a standby alone")
        before, stored = len(stage.ran()), accepted(stage)
        standby.ask("select pg_promote()")
        stage.until(lambda: len(stage.ran()) > before + 100, 60, "workers go on by themselves")
        stage.until(lambda: accepted(stage) > stored + 100, 60, "the producer goes on by itself")
        assert [worker.poll() for worker in workers] == [None, None]
        jobs = stage.enough()
        stage.until(lambda: set(stage.counts()) == {State.SUCCEEDED}, 60, "all succeed")
        assert stage.counts() == {State.SUCCEEDED: len(jobs)}
        assert jobs <= set(stage.ran())
        assert "a call was refused" not in stage.log(), "a failover shorter than `timeout` is none for producers"
        assert "Traceback" not in stage.log()
    finally:
        stage.close()
