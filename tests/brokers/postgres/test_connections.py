"""Where a URL leads, what a refusal advises, and connections that are left in order whatever becomes of their callers."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from tests.brokers.postgres.conftest import Opens
from tests.conftest import Eventually

from offload import Offload
from offload.brokers.postgres import PostgresBroker
from offload.brokers.postgres.address import Address, address
from offload.brokers.postgres.errors import told
from offload.clients import without_secrets
from offload.errors import BadDeclaration, BrokerError, BrokerUnusable
from offload.job import State
from offload.testing.clock import TestClock
from offload.testing.contract.fixtures import ROOM, info, job, state
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio

HOSTS = "postgres://me:pw@a:1,b:2/shop?target_session_attrs=read-write"


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgresql://localhost/shop", "postgresql://localhost/shop"),
        (HOSTS, HOSTS.replace("postgres:", "postgresql:")),
        ("postgresql:///shop?host=/run/postgresql&schema=jobs", "postgresql:///shop?host=/run/postgresql"),
        ("postgresql://", "postgresql://"),
    ],
)
async def test_a_url_is_libpqs_but_for_our_options(url: str, dsn: str) -> None:
    assert address(url).dsn == dsn
    assert conninfo_to_dict(dsn) == conninfo_to_dict(url.replace("&schema=jobs", ""))


async def test_our_options_are_understood() -> None:
    found = address("postgresql://me:pw@h/d?schema=jobs&migrate=false&pgbouncer=true&timeout=2.5&password=pw2")
    assert (found.schema, found.migrate, found.pgbouncer, found.listen, found.timeout) == ("jobs", False, True, None, 2.5)
    assert found.place == "postgresql://me@h/d"
    assert address("postgresql://h/d").listen == "postgresql://h/d"
    assert address("postgresql://h/d?pgbouncer=true&listen=postgresql://direct/d").listen == "postgresql://direct/d"


@pytest.mark.parametrize(
    "option", ["migrate=perhaps", "schema=", "schema=a.b", f"schema={'x' * 64}", "timeout=soon", "timeout=-1", "pgbouncer=2"]
)
async def test_an_option_that_makes_no_sense_is_refused(option: str) -> None:
    with pytest.raises(BadDeclaration) as caught:
        address(f"postgresql://me:secret@h/d?{option}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "named"),
    [
        ("h/d?sslmode=foo", "sslmode is disable, allow, prefer, require, verify-ca or verify-full, not 'foo'"),
        ("h/d?target_session_attrs=writable", "target_session_attrs is any"),
        ("h/d?connect_timeout=abc", "connect_timeout is a whole number, not 'abc'"),
        ("h/d?keepalives_idle=", "keepalives_idle is a whole number"),
        ("h:notaport/d", "a port is a number from 1 to 65535, not 'notaport'"),
        ("h:70000/d", "a port is a number"),
        ("a:5432,b:x/d", "a port is a number from 1 to 65535, not 'x'"),
        ("[::1/d", "an IPv6 address stands in brackets"),
        ("h/d?listen=postgresql://me:secret@h:x/d", "a port is a number"),
        ("h/d?listen=h", "`listen`"),
    ],
)
async def test_what_libpq_would_refuse_at_every_connection_is_refused_at_once(rest: str, named: str) -> None:
    with pytest.raises(BadDeclaration) as caught:
        Offload(f"postgresql://me:secret@{rest}")
    assert named in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "rest", ["h/d?connect_timeout=3&sslmode=require&keepalives=0", "a:5432,b/d", "a,b:6000/d", "[::1]:5432/d", "/d", ""]
)
async def test_what_libpq_takes_is_taken(rest: str) -> None:
    assert address(f"postgresql://{rest}").dsn.startswith(f"postgresql://{rest.partition('?')[0]}")


async def test_what_may_be_secret_is_not_shown() -> None:
    secret = {option.keyword.decode() for option in Conninfo.get_defaults() if option.dispchar == b"*"}
    assert {"password", "sslpassword"} <= secret
    for name in secret | ({"scram_client_key", "scram_server_key"} & {option.keyword.decode() for option in Conninfo.get_defaults()}):
        url = f"postgresql://me@h/d?{name}=hush&application_name=shop"
        assert address(url).place == "postgresql://me@h/d?application_name=shop"
        assert without_secrets(url) == f"postgresql://me@h/d?{name}=***&application_name=shop"


async def test_an_option_that_nobody_knows_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadDeclaration) as caught:
        address("postgresql://me:secret@h/d?sslmode=prefer&ssl=true&pasword=secret2&shema=jobs&timeout=1")
    assert str(caught.value) == (
        "postgresql://me@h/d: unknown option pasword, shema; known are listen, migrate, pgbouncer, schema, timeout and libpq's own"
    )


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ('connection failed: FATAL:  password authentication failed for user "me"', "check user and password"),
        ("fe_sendauth: no password supplied", "give a password"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1"', "pg_hba.conf accept"),
        ('FATAL:  role "me" does not exist', "create the database or the user"),
    ],
)
async def test_a_refusal_says_what_to_do(words: str, advice: str) -> None:
    error = told(psycopg.OperationalError(words), Address(dsn="", place="postgresql://here/shop"))
    assert isinstance(error, BrokerUnusable)
    assert advice in str(error)


async def test_a_producer_gives_up_on_a_statement_that_hangs(
    server: PostgresServer, broker: PostgresBroker, opens: Opens, url: str, clock: TestClock
) -> None:
    hasty = await opens(f"{url}&timeout=0.3")
    with psycopg.connect(server.url) as other:
        other.execute(f'lock table "{broker.address.schema}".jobs'.encode())
        with pytest.raises(BrokerError, match=r"no answer for 0\.3 s"):
            await hasty.enqueue([job(clock, "a")])
    assert await hasty.enqueue([job(clock, "a")]) == ["a"]


async def test_what_a_cancelled_fetch_claimed_goes_back(
    broker: PostgresBroker, server: PostgresServer, clock: TestClock, eventually: Eventually
) -> None:
    waits = "select 1 from pg_stat_activity where application_name = 'offload' and wait_event_type = 'Lock'"
    await broker.enqueue([job(clock, "a")])
    async with broker.session(info()) as session:
        with psycopg.connect(server.url) as other:
            other.execute(f'lock table "{broker.address.schema}".running in share mode'.encode())
            fetch = asyncio.create_task(session.fetch(None, 1, ROOM))
            await eventually(lambda: server.ask(waits))
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
        (lease,) = await eventually(lambda: session.fetch(None, 1, ROOM))
        assert (lease.job.id, lease.attempt) == ("a", 1)
    assert await state(broker, "a") is State.READY
