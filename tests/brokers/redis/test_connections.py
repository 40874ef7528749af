"""A link's calls, and what it says and does when servers refuse, vanish, freeze or come back."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest
from tests.conftest import Eventually, Starts

from offload.brokers.redis import wire
from offload.brokers.redis.address import Address
from offload.brokers.redis.connections import Link
from offload.errors import BrokerError, BrokerUnusable
from offload.testing.servers import Proxy, RedisServer, redis, valkey

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("counting")]

MARKS = b"{offload}:marks"


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[Link]:
    """A link that is not opened by more than its first use."""
    link = Link(Address.parse(url))
    try:
        yield link
    finally:
        await link.close()


async def refusal(url: str, kind: type[BrokerError] = BrokerUnusable) -> str:
    """What opening a link to `url` is refused with, exactly of this kind."""
    async with linked(url) as link:
        with pytest.raises(kind) as refused:
            await link.open()
    assert type(refused.value) is kind
    return str(refused.value)


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def own(started: Starts[RedisServer]) -> RedisServer:
    """A server of this test's own, to be stopped and set otherwise."""
    return started(lambda: valkey(durable=True))


# --- calls


async def test_a_call_loads_the_script_where_the_server_does_not_know_it(link: Link, server: RedisServer) -> None:
    assert await link.call("add", 2) == 2
    server.ask("SCRIPT", "FLUSH")
    assert await link.call("add", 3) == 5
    assert await link.call("read") == 5


async def test_the_prefix_keeps_apps_apart(server: RedisServer) -> None:
    async with linked(server.url) as one, linked(f"{server.url}?prefix=shop") as other:
        await one.call("add", 1)
        assert await other.call("read") == 0
    assert server.ask("KEYS", "*") == [b"{offload}:test"]


async def test_many_calls_at_once_get_each_its_own_answer(link: Link) -> None:
    assert sorted(await asyncio.gather(*[link.call("add", 1) for _ in range(500)])) == list(range(1, 501))


async def test_a_cancelled_call_leaves_the_others_their_answers(link: Link) -> None:
    calls = [asyncio.create_task(link.command("ECHO", str(number))) for number in range(50)]
    await asyncio.sleep(0)  # all are written, none is answered
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[1::2] == [str(number).encode() for number in range(1, 50, 2)]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])


async def test_an_error_of_the_script_is_raised_with_its_text(link: Link) -> None:
    with pytest.raises(BrokerError, match="the server answered: ERR no operation dance") as failed:
        await link.call("dance")
    assert failed.value.__cause__ is not None


async def test_a_link_is_for_the_database_that_its_url_names(server: RedisServer) -> None:
    async with linked(server.url.replace("/0", "/5")) as link:
        await link.call("add", 1)
    assert server.ask("DBSIZE") == 0


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "valkey.sock"
    with valkey(arguments=["--unixsocket", str(path)]):
        async with linked(f"redis://{path}") as link:
            await link.open()
            assert await link.call("add", 1) == 1


async def test_an_abandoned_link_of_a_closed_loop_says_nothing(server: RedisServer) -> None:
    link = Link(Address.parse(server.url))

    async def use() -> None:
        await link.open()
        await link.pop_marker(MARKS, 0.01)

    await asyncio.to_thread(asyncio.run, use())
    link.abandon()


async def test_a_second_link_has_connections_of_its_own(link: Link) -> None:
    other = link.second()
    assert await other.command("CLIENT", "ID") != await link.command("CLIENT", "ID")
    await other.close()
    assert await link.command("PING") == b"PONG"


async def test_a_closed_link_says_so_and_can_be_opened_again(server: RedisServer) -> None:
    link = Link(Address.parse(server.url))
    await link.open()
    await link.close()
    with pytest.raises(BrokerError, match="the client is closed; call open"):
        await link.call("add", 1)
    await link.open()
    assert await link.call("add", 1) == 1
    await link.close()


async def test_whoever_waits_for_the_connection_of_a_link_that_is_closed_is_told(
    proxy: Proxy, server: RedisServer, eventually: Eventually
) -> None:
    proxy.freeze()
    link = Link(Address.parse(f"{proxy.through(server.url)}?db=1"))  # so that it waits for an answer before it is connected
    opening = asyncio.create_task(link.open())
    await eventually(lambda: proxy.connections == 1)
    await link.close()
    with pytest.raises(BrokerError, match="the client is closed"):
        await opening


# --- waiting for markers


async def test_a_marker_is_taken_or_waited_for_in_vain(link: Link, server: RedisServer) -> None:
    assert not await link.pop_marker(MARKS, 0.01)
    server.ask("ZADD", MARKS.decode(), "0", "work")
    assert await link.pop_marker(MARKS, 5)
    waiting = asyncio.create_task(link.pop_marker(MARKS, 5))
    await link.command("PING")  # others go on meanwhile
    server.ask("ZADD", MARKS.decode(), "0", "work")
    assert await waiting


async def test_whoever_is_cancelled_takes_no_marker_from_others(link: Link, server: RedisServer, eventually: Eventually) -> None:
    for turns in range(60):
        waiting = asyncio.create_task(link.pop_marker(MARKS, 30))
        for _ in range(turns % 12):
            await asyncio.sleep(0)
        if turns % 3 == 2:
            await eventually(lambda: _blocked(server) == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: _blocked(server) == 0)
    server.ask("ZADD", MARKS.decode(), "0", "work")
    other = link.second()
    assert await other.pop_marker(MARKS, 5)
    await other.close()


async def test_a_marker_that_came_as_its_taker_was_cancelled_is_put_back(link: Link, server: RedisServer, eventually: Eventually) -> None:
    for _ in range(20):
        waiting = asyncio.create_task(link.pop_marker(MARKS, 30))
        await eventually(lambda: _blocked(server) == 1)
        server.ask("ZADD", MARKS.decode(), "7", "work")  # answered at once to the one who waits, who has not read it yet
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: server.ask("ZSCORE", MARKS.decode(), "work") == b"7")
        await eventually(lambda: server.ask("PTTL", MARKS.decode()) != -1)
        server.ask("DEL", MARKS.decode())


async def test_waiting_goes_on_after_cancelling_where_the_user_may_not_unblock(own: RedisServer, eventually: Eventually) -> None:
    own.ask("ACL", "SETUSER", "humble", "on", ">pw", "~*", "+@all", "-client|unblock")
    async with linked(own.url.replace("//", "//humble:pw@")) as link:
        await link.open()
        waiting = asyncio.create_task(link.pop_marker(MARKS, 30))
        await eventually(lambda: _blocked(own) == 1)
        waiting.cancel()
        await eventually(lambda: _blocked(own) == 0)
        own.ask("ZADD", MARKS.decode(), "0", "work")
        assert await link.pop_marker(MARKS, 5)


def _blocked(server: RedisServer) -> int:
    info = server.ask("INFO", "clients")
    assert isinstance(info, bytes)
    return int(info.partition(b"blocked_clients:")[2].split()[0])


# --- what is wrong from the start


async def test_nothing_listens(proxy: Proxy, server: RedisServer) -> None:
    proxy.refuse()
    text = await refusal(proxy.through(server.url), BrokerError)
    assert text.startswith(f"redis://127.0.0.1:{proxy.port}/0: no connection: connection refused; ")
    assert text.endswith("is the server running? check OFFLOAD_URL")


async def test_a_server_is_no_sentinel(server: RedisServer) -> None:
    assert "this is no sentinel; use redis://" in await refusal(f"redis+sentinel://127.0.0.1:{server.port}/mymaster", BrokerUnusable)


async def test_the_name_is_unknown() -> None:
    assert "the name 'no-such-host.invalid' cannot be resolved" in await refusal("redis://no-such-host.invalid", BrokerError)


async def test_no_such_socket(tmp_path: Path) -> None:
    assert "no such socket; is the server running?" in await refusal(f"redis://{tmp_path}/none.sock", BrokerError)


async def test_something_else_listens() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with other:
        text = await refusal(f"redis://127.0.0.1:{other.sockets[0].getsockname()[1]}", BrokerError)
    assert "does not speak the Redis protocol" in text


async def test_passwords(own: RedisServer) -> None:
    assert "the server asks for none" in await refusal(own.url.replace("//", "//:secret@"))
    own.ask("CONFIG", "SET", "requirepass", "secret")
    assert "the server asks for a password; write it into the URL" in await refusal(own.url)
    text = await refusal(own.url.replace("//", "//:guess@"))
    assert "user name or password are wrong" in text
    assert "guess" not in text
    async with linked(own.url.replace("//", "//:secret@")) as link:
        await link.open()


async def test_a_user_who_may_not(own: RedisServer) -> None:
    own.ask("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+info")
    async with linked(own.url.replace("//", "//reader:pw@")) as link:
        await link.open()
        with pytest.raises(BrokerUnusable, match=r"this user may not do what Offload needs; allow it: ACL SETUSER <user> ~{offload}:\*"):
            await link.call("add", 1)
    own.ask("ACL", "SETUSER", "elsewhere", "on", ">pw", "~{shop}:*", "+@all")
    async with linked(own.url.replace("//", "//elsewhere:pw@")) as link:
        with pytest.raises(BrokerUnusable, match=r"this user may not do what Offload needs; allow it: ACL SETUSER <user> ~{offload}:\*"):
            await link.call("add", 1)


async def test_the_acl_that_the_error_recommends_is_enough(own: RedisServer, eventually: Eventually) -> None:
    own.ask("ACL", "SETUSER", "jobs", "on", ">pw", "~{offload}:*", "+@all", "-@dangerous", "+info", "+client|unblock")
    async with linked(own.url.replace("//", "//jobs:pw@")) as link:
        await link.open()
        assert await link.call("add", 1) == 1
        waiting = asyncio.create_task(link.pop_marker(MARKS, 30))
        await eventually(lambda: _blocked(own) == 1)
        waiting.cancel()
        await eventually(lambda: _blocked(own) == 0)
        assert own.ask("CLIENT", "LIST").count(b"user=jobs") == 2  # type: ignore[union-attr]


async def test_no_such_database(server: RedisServer) -> None:
    assert "the server has no database of that number" in await refusal(server.url.replace("/0", "/99"))


async def test_a_replica_is_refused_and_its_primary_named(own: RedisServer, server: RedisServer) -> None:
    own.ask("REPLICAOF", "127.0.0.1", str(server.port))
    assert f"is a replica, which takes no writes; use its primary, 127.0.0.1:{server.port}" in await refusal(own.url)


async def test_an_eviction_policy_is_warned_of_once(own: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    own.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with caplog.at_level(logging.WARNING, "offload"):
        for _ in range(2):
            async with linked(own.url) as link:
                await link.open()
    assert [record.getMessage() for record in caplog.records] == [
        f"{own.url}: maxmemory-policy is allkeys-lru, so jobs may be thrown away when memory is short; set noeviction"
    ]


# --- what goes wrong later, and passes


async def test_a_connection_that_was_closed_meanwhile_is_made_anew_unnoticed(link: Link, server: RedisServer) -> None:
    await link.call("add", 1)
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    assert await link.call("add", 1) == 2


@pytest.mark.parametrize("answers", [False, True])
async def test_a_connection_cut_in_mid_call_is_made_anew_and_the_call_repeated(proxy: Proxy, server: RedisServer, answers: bool) -> None:
    async with linked(proxy.through(server.url)) as link:
        await link.call("read")
        proxy.cut_after(0 if answers else 20, answers=answers)
        assert await link.call("add", 1) == (2 if answers else 1)  # repeated although it was done: callers' operations are made for that
        assert proxy.cuts == 1


async def test_a_call_that_answers_otherwise_the_second_time_is_not_repeated(proxy: Proxy, server: RedisServer) -> None:
    async with linked(proxy.through(server.url)) as link:
        await link.call("read")
        proxy.cut_after(len(b"+PONG\r\n:"), answers=True)  # in the midst of the answer, so it was done
        with pytest.raises(BrokerError):
            await link.call("add", 1, once=True)
        assert proxy.cuts == 1
        assert await link.call("read") == 1


async def test_what_is_done_only_once_is_done_over_a_new_connection_where_the_old_one_is_gone(link: Link, server: RedisServer) -> None:
    await link.call("add", 1)
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    assert await link.call("add", 1, once=True) == 2


async def test_calls_fail_while_the_server_is_away_and_work_when_it_is_back(own: RedisServer) -> None:
    async with linked(own.url) as link:
        await link.call("add", 1)
        own.kill()
        for call in (link.call("add", 1), link.pop_marker(MARKS, 1)):
            with pytest.raises(BrokerError) as failed:
                await call
            assert not isinstance(failed.value, BrokerUnusable)
        own.start()
        assert await link.call("add", 1, patient=True) == 2
        assert not await link.pop_marker(MARKS, 0.01)


async def test_a_patient_call_waits_for_the_server_to_come_back(own: RedisServer) -> None:
    async with linked(f"{own.url}?timeout=60") as link:
        await link.call("add", 1)
        own.kill()
        call = asyncio.create_task(link.call("add", 1, patient=True))
        with pytest.raises(BrokerError):
            await link.call("read")
        await asyncio.to_thread(own.start)
        assert await call == 2


async def test_a_patient_call_gives_up_after_the_time_its_url_allows(proxy: Proxy, server: RedisServer) -> None:
    proxy.refuse()
    began = monotonic()
    async with linked(f"{proxy.through(server.url)}?timeout=0.4") as link:
        with pytest.raises(BrokerError, match=r"no connection: .* \(tried for 0.4 seconds\)") as failed:
            await link.open(patient=True)
    assert failed.value.__cause__ is not None
    assert 0.3 < monotonic() - began < 5


async def test_a_patient_call_does_not_wait_for_a_person(own: RedisServer) -> None:
    own.ask("CONFIG", "SET", "requirepass", "secret")
    async with linked(f"{own.url}?timeout=60") as link:
        with pytest.raises(BrokerUnusable):
            await asyncio.wait_for(link.open(patient=True), 5)


async def test_a_silent_server_is_noticed(proxy: Proxy, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PATIENCE", 0.2)
    async with linked(proxy.through(server.url)) as link:
        await link.call("add", 1)
        proxy.freeze()
        for call in (link.call("add", 1), link.pop_marker(MARKS, 0.2)):
            with pytest.raises(BrokerError, match="the server did not answer for"):
                await call
        proxy.thaw()
        assert await link.call("read") >= 1


async def test_a_patient_call_to_a_silent_server_ends_in_time(proxy: Proxy, server: RedisServer) -> None:
    async with linked(f"{proxy.through(server.url)}?timeout=0.3") as link:
        await link.call("add", 1)
        proxy.freeze()
        with pytest.raises(BrokerError, match=r"no answer \(tried for 0.3 seconds\)"):
            await link.call("add", 1, patient=True)
        proxy.thaw()


REFUSALS: list[tuple[str, Callable[[RedisServer], object], Callable[[RedisServer], object]]] = [
    (
        "the server is out of memory",
        lambda server: server.ask("CONFIG", "SET", "maxmemory", "1"),
        lambda server: server.ask("CONFIG", "SET", "maxmemory", "0"),
    ),
    (
        "the server has become a replica",
        lambda server: server.ask("REPLICAOF", "127.0.0.1", "1"),
        lambda server: server.ask("REPLICAOF", "NO", "ONE"),
    ),
    (
        "the server has too few good replicas",
        lambda server: server.ask("CONFIG", "SET", "min-replicas-to-write", "1"),
        lambda server: server.ask("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
]


@pytest.mark.parametrize(("complaint", "break_", "mend"), REFUSALS, ids=[complaint for complaint, _, _ in REFUSALS])
async def test_a_refusal_that_may_pass_is_explained_and_passes(
    own: RedisServer, complaint: str, break_: Callable[[RedisServer], object], mend: Callable[[RedisServer], object]
) -> None:
    async with linked(own.url) as link:
        await link.call("add", 1)
        break_(own)
        with pytest.raises(BrokerError, match=complaint) as failed:
            await link.call("add", 1)
        assert type(failed.value) is BrokerError
        mend(own)
        assert await link.call("add", 1) == 2


async def test_a_server_that_cannot_save_is_explained(eventually: Eventually) -> None:
    with valkey(arguments=["--save", "3600", "1"]) as server:
        async with linked(server.url) as link:
            await link.call("add", 1)
            (server.folder / "dump.rdb").mkdir()
            server.ask("BGSAVE")
            await eventually(lambda: _says(server, "persistence", "rdb_last_bgsave_status:err"))
            with pytest.raises(BrokerError, match="the server cannot save to its disk") as failed:
                await link.call("add", 1)
            assert type(failed.value) is BrokerError
        server.kill()  # it will not end by itself while it cannot save


async def test_a_server_that_still_loads_is_explained_and_waited_for() -> None:
    slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
    with valkey(arguments=["--enable-debug-command", "local", *slow]) as server:
        server.ask("DEBUG", "POPULATE", "1000")
        async with linked(f"{server.url}?timeout=60") as link:
            await link.open()
            loading = asyncio.create_task(asyncio.to_thread(server.ask, "DEBUG", "RELOAD"))
            with pytest.raises(BrokerError, match="still loads its data") as failed:
                while not loading.done():
                    await link.call("read")
            assert type(failed.value) is BrokerError
            assert await link.call("add", 1, patient=True) == 1
            await loading


def _says(server: RedisServer, section: str, fact: str) -> bool:
    info = server.ask("INFO", section)
    assert isinstance(info, bytes)
    return fact.encode() in info


# --- TLS


@pytest.fixture
def secured(started: Starts[RedisServer], tmp_path: Path) -> tuple[RedisServer, int, Path]:
    """A Redis with TLS: (server, its port for TLS, the certificate that it shows, which vouches for itself)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=cache.example"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*request, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with Proxy(1) as reserved:
        port = reserved.port
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no"]
    return started(lambda: redis(arguments=options)), port, certificate


async def test_tls(secured: tuple[RedisServer, int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server, port, certificate = secured
    async with linked(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}") as link:
        await link.open()
        assert await link.call("add", 1) == 1
    async with linked(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none") as link:
        assert await link.call("read") == 1
    assert "no TLS connection" in await refusal(f"rediss://127.0.0.1:{port}", BrokerError)
    assert "no TLS connection" in await refusal(f"rediss://localhost:{port}?ssl_ca_certs={certificate}", BrokerError)  # another name
    monkeypatch.setattr(wire, "PATIENCE", 0.2)
    assert "does the server speak TLS on this port?" in await refusal(f"rediss://127.0.0.1:{server.port}", BrokerError)
