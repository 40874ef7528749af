"""A role that may make no tables, with exactly the grants that the guides list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from offload import BrokerUnusable, Offload, State, Worker
from offload.diagnosis import diagnose
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio

GUIDES = Path(__file__).parents[3] / "docs" / "guides"


def grants(guide: str) -> list[str]:
    """The statements in the guide that give the role `shop` its rights."""
    blocks = re.findall(r"```sql\n(.*?)```", (GUIDES / guide).read_text("utf-8"), re.DOTALL)
    [block] = [block for block in blocks if "grant usage on schema" in block]
    lines = [line.partition("--")[0] for line in block.splitlines()]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]


@pytest.fixture
def granted(server: PostgresServer, fresh_name: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database for the role that the guide `request.param` grants its rights."""
    url, role = server.database(), f"shop_{fresh_name}"
    with psycopg.connect(url, autocommit=True) as owner:  # as strict administrators have it
        owner.execute("alter default privileges revoke execute on functions from public")
    app = Offload(url)
    app.migrate()
    app.close()
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"create role {role} login".encode())
        for statement in grants(request.param):
            owner.execute(re.sub(r"\bshop\b", role, statement).encode())
        owner.execute("create table offload.later (n bigint generated always as identity)")
        owner.execute("create sequence offload.later_still")
    yield url.replace("postgres@", f"{role}@")
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"drop owned by {role}".encode())
        owner.execute(f"drop role {role}".encode())


@pytest.mark.parametrize("granted", ["postgresql.md", "enqueue-from-sql.md"], indirect=True)
async def test_the_grants_of_the_guides_are_enough_to_enqueue_to_work_and_to_look(granted: str) -> None:
    app = Offload(f"{granted}?migrate=false", heartbeat=0.05)
    app.task(name="greet")(lambda: 1)
    async with app:
        handles = [await app.aenqueue("greet"), await app.aenqueue("greet")]
        with psycopg.connect(granted, autocommit=True) as connection:
            connection.execute("select offload.enqueue('greet')")
            connection.execute("insert into offload.later default values")
            connection.execute("select last_value from offload.later_still")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("create table offload.mine ()")
        await Worker(app).drain()
        assert [(await handle.arecord()).state for handle in handles] == [State.SUCCEEDED] * 2
        store = await app.store()
        assert not [finding for finding in diagnose(await store.inspect()) if finding.severity == "error"]


@pytest.mark.parametrize("granted", ["postgresql.md"], indirect=True)
async def test_a_right_that_is_missing_is_told_with_the_grants(granted: str, server: PostgresServer) -> None:
    role = granted.partition("//")[2].partition("@")[0]
    with psycopg.connect(server.url_of(granted.rpartition("/")[2]), autocommit=True) as owner:
        owner.execute(f"revoke select on all sequences in schema offload from {role}".encode())
    app = Offload(granted)
    app.task(name="greet")(lambda: 1)
    async with app:
        with pytest.raises(BrokerUnusable, match="permission denied for sequence") as raised:
            await Worker(app).drain()
    assert "grant the user its schema, tables, sequences and functions" in str(raised.value)
    assert 'grant usage, select on all sequences in schema "offload" to ROLE' in str(raised.value)
