"""What a worker meets when it starts: a server that is not there yet is waited for; what only a person can mend ends it with the reason."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest
from tests.chaos.accounts import sayings
from tests.chaos.conftest import Stage
from tests.chaos.places import SERVERS

from offload import Offload
from offload.testing.servers import PostgresServer, RedisServer

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_worker_started_before_its_server_waits_says_so_once_and_works_when_it_is_there(stage: Stage) -> None:
    stage.server.stop()
    worker = stage.start("worker")
    stage.until(lambda: sayings(stage), 60, "the worker says that it waits")
    noticed = time.monotonic()
    stage.until(lambda: time.monotonic() - noticed > 1.5, 60, "it tries some more")
    stage.server.start()
    handle = stage.app.enqueue("program.long", seconds=0.0)
    assert handle.result(timeout=60) == worker.pid
    assert sayings(stage) == {str(worker.pid): [("opening a session", "does not answer"), ("opening a session", "answers again")]}
    assert stage.log().index("answers again") < stage.log().index("serves all queues")


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_worker_with_a_wrong_password_ends_with_the_reason(stage: Stage) -> None:
    right, wrong = with_password(stage)
    worker = stage.command("worker", "program:app", CHAOS_URL=wrong)
    assert worker.wait(60) == 1
    assert "password" in stage.log()
    assert "Traceback" not in stage.log()
    for secret in ("hunter2", "hunter3"):
        assert secret not in stage.log()
    app = Offload(right)
    assert app.workers() == [], "the right password opens the same queue"
    app.close()


def with_password(stage: Stage) -> tuple[str, str]:
    """Have the server ask for a password. Returns the queue's URL with the right one, and with a wrong one."""
    server, parts = stage.server, urlsplit(stage.url)
    match server:
        case PostgresServer():
            server.ask("create role visitor superuser login password 'hunter2'")
            rules = server.data / "pg_hba.conf"
            rules.write_text(f"host all visitor 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
            server.ask("select pg_reload_conf()")
            user = "visitor"
        case RedisServer():
            server.ask("CONFIG", "SET", "requirepass", "hunter2")
            user = ""
        case _:
            raise AssertionError(server)
    right, wrong = (parts._replace(netloc=f"{user}:{password}@127.0.0.1:{server.port}").geturl() for password in ("hunter2", "hunter3"))
    return right, wrong


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
def test_a_worker_that_may_not_make_its_schema_ends_with_the_reason(stage: Stage) -> None:
    worker = stage.command("worker", "program:app", CHAOS_URL=f"{stage.url}?migrate=false")
    assert worker.wait(60) == 1
    assert "offload migrate" in stage.log()
    assert "Traceback" not in stage.log()
    migrated = stage.command("migrate", "program:app")
    assert migrated.wait(60) == 0
    worker = stage.command("worker", "program:app", "--burst", CHAOS_URL=f"{stage.url}?migrate=false")
    assert worker.wait(60) == 0


@pytest.mark.parametrize("place", ["redis", "valkey"], indirect=True)
def test_a_worker_whose_server_is_flushed_opens_a_new_session_and_goes_on(stage: Stage) -> None:
    server = stage.server
    assert isinstance(server, RedisServer)
    worker = stage.start("worker")
    running = [stage.app.enqueue("program.long", seconds=60.0) for _ in range(3)]
    ledger = lambda: {words[1] for _, words in stage.ledger() if words[0] == "started"}
    stage.until(lambda: ledger() == {handle.id for handle in running}, 60, "the jobs run")
    server.ask("FLUSHALL")
    stage.until(lambda: "lost its session" in stage.log(), 60, "the worker learns that its session is gone")
    handle = stage.app.enqueue("program.long", seconds=0.0)
    assert handle.result(timeout=60) == worker.pid
    assert len(stage.app.workers()) == 1
    assert "Traceback" not in stage.log()
