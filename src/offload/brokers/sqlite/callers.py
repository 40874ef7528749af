"""What is done on connections of callers: they must be on the queue's own file, and keep the settings that keep it safe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offload.broker import Execute
from offload.brokers.sqlite import enqueueing, file, settling
from offload.brokers.sqlite.transaction import SQL, Transaction
from offload.errors import BadDeclaration, BrokerUnusable
from offload.job import Job, Lease, Outcome


def enqueue(execute: Execute, path: Path, now: int, jobs: Sequence[Job]) -> list[str]:
    """Store jobs: at once where nothing stands in their way, else one by one."""
    _settle_in(execute, path)
    execute("savepoint optimistic", ())
    try:
        ids = enqueueing.store(Transaction(execute, careful=False), now, jobs)
    except Exception:  # noqa: BLE001 - of whichever driver; the careful run meets it again
        execute("rollback to optimistic", ())
        ids = enqueueing.store(Transaction(execute, careful=True), now, jobs)
    execute("release optimistic", ())
    return ids


def settle(execute: Execute, path: Path, now: int, session: str, lease: Lease, outcome: Outcome) -> bool:
    """Record how an attempt ended. False, and nothing done, when its lease is lost. Raises what the jobs that it adds are refused by."""
    _settle_in(execute, path)
    return not settling.settle(Transaction(execute, careful=True, joined=True), now, session, [(lease, outcome)], frozenset())


def _settle_in(execute: Execute, path: Path) -> None:
    """Refuse a connection to another file, take the write lock, and see that two checkpoints never race."""
    main = next((row[2] for row in execute("pragma database_list", ()).fetchall() if row[1] == "main"), "")
    here = file.identity(path)
    if here is None or not main or file.identity(Path(main)) != here:
        raise BadDeclaration(
            f"the connection is to {main or 'a database in memory'}, the jobs are kept in {path.resolve()}: on SQLite one transaction "
            "holds one file, so open the connection on that file, or leave out connection= to enqueue at once"
        )
    execute("pragma wal_autocheckpoint=0", ()).fetchall()
    try:
        execute(SQL["lock"], ())  # before anything is read: what was committed between would keep this transaction from writing
    except Exception:
        _check_schema(execute, path)
        raise
    _check_schema(execute, path)


def _check_schema(execute: Execute, path: Path) -> None:
    """Raise BrokerUnusable where the tables are not there, or are another version's."""
    schema = _schema(execute)
    if schema != file.SCHEMA:
        raise BrokerUnusable(
            f"{path} holds no jobs yet, or those of another version of Offload (schema {schema}, not {file.SCHEMA}): "
            "run `offload migrate`, or app.migrate(), before the first transaction"
        )


def _schema(execute: Execute) -> int:
    """The version of Offload's tables in the database; 0 where there are none."""
    if execute("pragma application_id", ()).fetchall()[0][0] != file.APPLICATION:
        return 0
    return execute("pragma user_version", ()).fetchall()[0][0]
