"""What `doctor` says of a PostgreSQL server."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.brokers.postgres.conftest import Ask, Opens
from tests.conftest import Eventually, Starts

from offload.brokers.postgres import PostgresBroker, health
from offload.brokers.postgres.migrating import SCHEMA
from offload.clock import SystemClock
from offload.testing.servers import PostgresServer, postgres

pytestmark = pytest.mark.anyio


async def notes(broker: PostgresBroker) -> dict[str, str]:
    """Text to advice, of what is neither about fsync nor about skew."""
    return {text: advice for _, text, advice in (await broker.inspect()).notes if "fsync" not in text and "clock" not in text}


async def test_it_tells_versions_and_the_place_without_a_password(opens: Opens, server: PostgresServer, schema: str) -> None:
    broker = await opens(server.url.replace("postgres@", "postgres:secret@") + f"?schema={schema}")
    facts = await broker.inspect()
    assert (facts.engine, facts.version, facts.schema, facts.newest_schema) == ("PostgreSQL", server.version, SCHEMA, SCHEMA)
    assert str(server.port) in facts.place
    assert "secret" not in facts.place
    assert facts.place.endswith(f" in the schema {schema!r}")


async def test_a_healthy_server_has_nothing_to_tell(broker: PostgresBroker) -> None:
    assert await notes(broker) == {}


async def test_a_server_that_does_not_sync_is_told(broker: PostgresBroker) -> None:
    assert [text for _, text, _ in (await broker.inspect()).notes] == ["the server runs with fsync = off"]


async def test_commits_that_wait_for_the_disk_are_told_too(started: Starts[Any]) -> None:
    server = started(lambda: postgres(durable=True))
    broker = PostgresBroker.connect(server.url, SystemClock())
    await broker.open()
    facts = await broker.inspect()
    await broker.close()
    assert facts.notes == (("info", "commits wait for the disk (synchronous_commit = on)", ""),)
    assert facts.place == server.url, "without the schema, which is the usual one"


async def test_commits_that_do_not_wait_are_told(started: Starts[Any]) -> None:
    server = started(lambda: postgres(durable=True, settings={"synchronous_commit": "off"}))
    broker = PostgresBroker.connect(server.url, SystemClock())
    await broker.open()
    [(severity, text, advice)] = (await broker.inspect()).notes
    await broker.close()
    assert (severity, text) == ("warning", "commits do not wait for the disk (synchronous_commit = off)")
    assert "alter role" in advice


async def test_a_transaction_that_is_left_open_is_told(
    broker: PostgresBroker, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(server.url, application_name="forgetful") as other:
        other.execute("set transaction isolation level repeatable read")
        other.execute("select 1")
        assert await notes(broker) == {}, "it is not open for long"
        monkeypatch.setattr(health, "LONG", 0.0)
        [(text, advice)] = (await notes(broker)).items()
        pid = other.info.backend_pid
        assert re.match(r"a transaction is open for \d+ s: process ", text)
        assert f"process {pid} (idle in transaction, user postgres, application forgetful, from 127.0.0.1)" in text
        assert f"pg_terminate_backend({pid})" in advice


def test_a_slot_that_keeps_a_snapshot_is_told() -> None:
    severity, text, advice = health.Holder("slot", "standby", None, "physical, not active").note()
    assert (severity, text) == ("warning", "the replication slot 'standby' keeps an old snapshot (physical, not active)")
    assert "pg_drop_replication_slot('standby')" in advice


async def test_a_prepared_transaction_is_told(started: Starts[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server = started(lambda: postgres(settings={"max_prepared_transactions": "5"}))
    broker = PostgresBroker.connect(server.url, SystemClock())
    await broker.open()
    monkeypatch.setattr(health, "LONG", 0.0)
    with psycopg.connect(server.url) as other:
        other.execute("create table t ()")
        other.execute("prepare transaction 'half done'")
    [(text, advice)] = (await notes(broker)).items()
    await broker.close()
    assert re.fullmatch(r"a prepared transaction is open for \d+ s: 'half done' \(owner postgres\)", text)
    assert "rollback prepared" in advice


async def test_tables_that_are_not_vacuumed_are_told(
    broker: PostgresBroker, ask: Ask, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    ask("alter table ready set (autovacuum_enabled = false)")
    assert list(await notes(broker)) == ["autovacuum is off for the table ready"]
    monkeypatch.setattr(health, "MANY_DEAD_ROWS", 50)
    ask("insert into ready (queue, rank, pos, n, ready_at) select 'q', 0, i, i, 0 from generate_series(1, 100) as i")
    ask("delete from ready")

    async def dead() -> list[str]:
        return [text for text in await notes(broker) if "dead rows" in text]

    [text] = await eventually(dead)
    assert text == "the table ready holds 100 dead rows beside 0 live ones"


@pytest.mark.parametrize(("skew", "said"), [(timedelta(seconds=-3), "behind"), (timedelta(seconds=3), "ahead of")])
async def test_a_clock_that_is_wrong_is_told(broker: PostgresBroker, skew: timedelta, said: str) -> None:
    broker.opened.clock.skew = skew
    [text] = [text for _, text, _ in (await broker.inspect()).notes if "clock" in text]
    assert text == f"this machine's clock is 3.0 s {said} the server's"
    broker.opened.clock.skew = skew / 2
    assert not [text for _, text, _ in (await broker.inspect()).notes if "clock" in text]


async def test_a_role_that_may_not_look_at_others_is_told_so(
    server: PostgresServer, fresh_name: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(health, "LONG", 0.01)
    url, role = server.database(), f"shop_{fresh_name}"
    server.ask(f"create role {role} login")
    server.ask(f"create schema offload authorization {role}", url.rpartition("/")[2])
    broker = PostgresBroker.connect(url.replace("postgres@", f"{role}@"), SystemClock())
    await broker.open()
    assert await notes(broker) == {}, "nobody else is there"
    with psycopg.connect(url) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1 from pg_class")
        [(text, advice)] = (await notes(broker)).items()
        assert text == "whether transactions of other roles are open for long cannot be seen: postgres is connected"
        assert "grant pg_read_all_stats" in advice
        server.ask(f"grant pg_read_all_stats to {role}")

        async def named() -> bool:
            return any(re.match(r"a transaction is open for \d+ s: process ", text) for text in await notes(broker))

        await eventually(named)
    await broker.close()
    server.ask(f"drop owned by {role} cascade", url.rpartition("/")[2])
    server.ask(f"drop role {role}")
