"""The one place where PostgreSQL's errors become ours."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from offload.brokers.postgres.address import Address
from offload.brokers.postgres.work import Doubt, quoted
from offload.errors import BrokerBusy, BrokerError, BrokerUnusable

STRIFE = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
"""What others do that hold locks, or change the same rows."""
AGAIN = (*STRIFE, errors.UniqueViolation, Doubt)
"""What another transaction caused: rolled back and run again, it goes another way."""

_POOLED = "between here and the server stands a pooler in transaction mode: add pgbouncer=true to the URL"
_ADVICE: dict[type[psycopg.Error], str] = {
    errors.InvalidPassword: "check user and password",
    errors.InvalidAuthorizationSpecification: "check the user, and the server's pg_hba.conf",
    errors.InvalidCatalogName: "create the database, or check its name",
    errors.InsufficientPrivilege: (
        "grant the user its schema, tables, sequences and functions: grant usage on schema {schema} to ROLE; grant select, insert, update, "
        "delete on all tables in schema {schema} to ROLE; grant usage, select on all sequences in schema {schema} to ROLE; grant execute "
        "on all functions in schema {schema} to ROLE (to make the schema, it takes the right to create in the database)"
    ),
    errors.UndefinedTable: "run: offload migrate",
    errors.UndefinedColumn: "run: offload migrate",
    errors.UndefinedFunction: "run: offload migrate",
    errors.InvalidSchemaName: "run: offload migrate",
    errors.DuplicatePreparedStatement: _POOLED,
    errors.InvalidSqlStatementName: _POOLED,
}
_ASKS_FOR_STANDBY = "target_session_attrs asks for a standby, which takes no jobs"
_REFUSALS = (
    ("password authentication failed", "check user and password"),
    ("no password supplied", "give a password in the URL, in PGPASSWORD or in ~/.pgpass"),
    ("no pg_hba.conf entry", "let the server's pg_hba.conf accept this user from here"),
    ('" does not exist', "create the database or the user, or check the URL"),
    ("session is not read-only", _ASKS_FOR_STANDBY),
    ("server is not in hot standby mode", _ASKS_FOR_STANDBY),
    ("permission denied for database", "grant the user the right to connect"),
)
"""By what a server refuses a connection for good: libpq tells it in words only."""

_NOBODY_THERE = re.compile(r" Is the server running [^?]*\?")
"""What libpq asks, for each host of the URL, where a connection is refused."""


_NO_PRIMARY = re.compile("session is read-only|server is in hot standby mode")
"""What libpq says of servers that target_session_attrs does not want."""


def only_reads(words: str, address: Address) -> BrokerError:
    """What to say of a server that takes no writes: a failover passes, a wrong URL does not."""
    if address.fails_over:
        return BrokerError(f"{address.place}: {words}; it only reads for now, as while a failover goes on")
    return BrokerUnusable(f"{address.place}: {words}; connect to the primary, for a standby and a read-only database take no jobs")


def told(error: psycopg.Error, address: Address) -> BrokerError:
    """The error as a broker tells it."""
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.ReadOnlySqlTransaction) or (error.sqlstate is None and _NO_PRIMARY.search(words)):
        return only_reads(words, address)
    for kind, advice in _ADVICE.items():
        if isinstance(error, kind):
            return BrokerUnusable(f"{address.place}: {words}; {advice.replace('{schema}', quoted(address.schema))}")
    if isinstance(error, STRIFE):
        return BrokerBusy(f"{address.place}: {words}")
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        for sign, advice in _REFUSALS:
            if sign in words:
                return BrokerUnusable(f"{address.place}: {words}; {advice}")
        if _NOBODY_THERE.search(words):
            return BrokerError(f"{address.place}: {_NOBODY_THERE.sub('', words)}; is the server running? check OFFLOAD_URL")
    return BrokerError(f"{address.place}: {words}")


@contextmanager
def translated(address: Address) -> Generator[None]:
    """Raise the driver's errors as ours."""
    try:
        yield
    except psycopg.Error as error:
        raise told(error, address) from error
