"""The database file: where it may lie, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Literal, TypeAlias, cast

from offload.brokers._sql import script
from offload.errors import BadDeclaration, BrokerError, BrokerNotInstalled, BrokerUnusable, SchemaTooNew

APPLICATION = 0x0FF10AD
"""Marks a database file as one of Offload."""
SCHEMA = 4
MIGRATIONS: dict[int, str] = {1: "schema.sql", 2: "gates_schema.sql", 3: "families_schema.sql", 4: "children_schema.sql"}
"""The script that brings a database to each version from the one before."""
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "lustre", "ocfs2", "gfs2"}
)
OLDEST = (3, 35)
"""The first SQLite with `returning`."""
CACHE_KIB = 16_384
PATIENCE = 30.0
"""Seconds that a call waits for other processes."""


def check_place(path: Path) -> None:
    """Refuse early what cannot become or be a database. Raises BrokerUnusable."""
    if sqlite3.sqlite_version_info < OLDEST:
        raise BrokerUnusable(
            f"this Python has SQLite {sqlite3.sqlite_version}; Offload needs 3.35 or newer: use a newer Python, or PostgreSQL or Redis"
        )
    if not path.parent.is_dir():
        raise BrokerUnusable(
            f"the folder {path.parent} for the database {path.name} does not exist; create it, or give another path in the URL"
        )
    if path.is_dir():
        raise BrokerUnusable(f"{path} is a folder; give the path of a file in it, as in sqlite:///{path}/offload.db")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise BrokerUnusable(f"{path} cannot be written by this user; give it read and write permission, or another path in the URL")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BrokerUnusable(
            f"the folder {path.parent} cannot be written by this user; SQLite keeps its log beside the database, so give write permission"
        )
    kind = file_system(path)
    if kind in NETWORK:
        raise BrokerUnusable(
            f"{path} lies on a network file system ({kind}), where SQLite's locks do not hold; "
            "put it on a local disk, or use PostgreSQL or Redis"
        )


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system that `path` lies on, by the longest mount point above it; empty where it cannot be told."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no such file but on Linux
        return ""
    above = {str(path), *map(str, path.parents)}
    found = [(fields[1].replace("\\040", " "), fields[2]) for fields in (line.split(" ") for line in lines) if len(fields) > 2]
    return max(((len(point), order, kind) for order, (point, kind) in enumerate(found) if point in above), default=(0, 0, ""))[2]


class Lent(sqlite3.Connection):
    """A connection for code of a task, in a transaction that is not its to end."""

    def commit(self) -> None:
        """Refuse."""
        raise BadDeclaration("the block of current.transaction() commits at its end, together with the job; leave that to it")

    def rollback(self) -> None:
        """Refuse."""
        raise BadDeclaration("the block of current.transaction() rolls back when an exception leaves it; raise one")


Driver: TypeAlias = Literal["sqlite3", "apsw"]
"""The library that opens the file: the standard one, or the other."""


def sqlite_version(driver: Driver) -> str:
    """The version of SQLite that the library contains. Raises BrokerNotInstalled when it is missing."""
    if driver == "sqlite3":
        return sqlite3.sqlite_version
    try:
        from offload.brokers.sqlite import apsw
    except ImportError as error:
        raise BrokerNotInstalled(
            "?driver=apsw needs the package 'apsw'; install it from a clone of Offload: pip install '.[sqlite]'"
        ) from error
    return apsw.sqlite_version()


def _opened(path: Path, driver: Driver, *, lent: bool) -> sqlite3.Connection:
    if driver == "sqlite3":
        return sqlite3.connect(
            path,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
            factory=Lent if lent else sqlite3.Connection,
        )
    from offload.brokers.sqlite.apsw import ApswConnection

    return cast(sqlite3.Connection, ApswConnection(path, PATIENCE))  # the same in all that is used of it here


def connect(path: Path, synchronous: str, driver: Driver = "sqlite3", *, lent: bool = False) -> sqlite3.Connection:
    """A connection as this engine uses them: transactions by hand, write locks waited for by ourselves, checkpoints by election.

    Memory-mapped reading stays off: with it an I/O error kills the process, and a truncated log can. SQLite's own patience is for
    short moments only, when a process opens the log as the first or closes it as the last.
    """
    connection = _opened(path, driver, lent=lent)
    try:
        for setting in ("wal_autocheckpoint=0", "temp_store=memory", "secure_delete=off"):
            connection.execute(f"pragma {setting}")
        connection.execute(f"pragma synchronous={synchronous}")
        connection.execute(f"pragma cache_size=-{CACHE_KIB}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of the database; 0 for an empty one. Raises BrokerUnusable for another program's, SchemaTooNew."""
    application = connection.execute("pragma application_id").fetchone()[0]
    version: int = connection.execute("pragma user_version").fetchone()[0]
    if application != APPLICATION and connection.execute("select count(*) from sqlite_master").fetchone()[0]:
        raise BrokerUnusable(f"{path} is a database of another program; give Offload a file of its own, as in sqlite:///offload.db")
    if version > SCHEMA and application == APPLICATION:
        raise SchemaTooNew(f"{path} has schema {version}, this Offload knows {SCHEMA}; install the newer Offload here too")
    return version if application == APPLICATION else 0


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the schema to this version. The write lock is held."""
    for step in range(version + 1, SCHEMA + 1):
        for statement in statements(script("offload.brokers.sqlite", MIGRATIONS[step])):
            connection.execute(statement)
    connection.execute(f"pragma application_id={APPLICATION}")
    connection.execute(f"pragma user_version={SCHEMA}")


def statements(text: str) -> list[str]:
    """The statements of a script, each with no semicolon but the one at its end; `executescript` would commit."""
    bare = "\n".join(line.partition("--")[0] for line in text.splitlines())
    return [statement.strip() for statement in bare.split(";") if statement.strip()]


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that came to its path; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino)


LASTING = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
"""What will not pass by itself."""


def busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds a lock that will pass."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def told(error: sqlite3.Error, path: Path) -> BrokerError:
    """The error that tells what went wrong with which file and what to do; raise it from `error`."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            text = f"the disk of {path} is full; nothing of this operation was stored: free some space and call again"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            text = f"{path} cannot be written; give this user write permission on the file and its folder"
        case sqlite3.SQLITE_CANTOPEN:
            text = f"{path} cannot be opened; check that its folder exists and that this user may read and write there"
        case sqlite3.SQLITE_NOTADB:
            text = f"{path} is not an SQLite database; move it away, or give another path in the URL"
        case sqlite3.SQLITE_CORRUPT:
            text = f"the database {path} is damaged; stop all workers, keep a copy, and save what can be read with: sqlite3 {path} .recover"
        case sqlite3.SQLITE_IOERR:
            text = f"the disk failed on {path}; look for its errors in the system log, then call again"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            text = f"{path} is locked by {holder(path)}; end that transaction, or that process, and call again"
        case _:
            text = f"SQLite failed on {path}"
    kind = BrokerUnusable if getattr(error, "sqlite_errorcode", 0) & 0xFF in LASTING else BrokerError
    return kind(f"{text} ({error})")


def holder(path: Path, locks: Path = Path("/proc/locks")) -> str:
    """Which process holds the write lock, as far as the system tells."""
    try:
        inode = Path(f"{path}-shm").stat().st_ino
        lines = locks.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return "another connection"
    for fields in map(str.split, lines):
        if len(fields) > 5 and fields[3] == "WRITE" and fields[5].endswith(f":{inode}"):
            return "this process" if int(fields[4]) == os.getpid() else f"process {fields[4]}"
    return "another connection"
