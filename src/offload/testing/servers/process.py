"""Runs one server: on a free port, in its own process group, its log in a file; ready when it answers, gone when its program is gone."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self, TypeVar

from offload.testing.servers import folders

Result = TypeVar("Result")

START_WITHIN = 30.0
"""Seconds that a server has until it answers."""
STOP_WITHIN = 20.0
"""Seconds that a server has to stop before it is killed."""


class ServerFailed(Exception):
    """A server did not start, or did not answer in time; the text ends with the end of its log."""


class PortTaken(ServerFailed):
    """Another process was quicker to take the port."""


class Server(ABC):
    """One private server. Runs when you get it; as a context manager it is stopped, and its folder removed, at the end.

    `stop`, `kill` and `start` may be called as often as a test likes: port and data stay.
    """

    name: ClassVar[str]
    stops_by: ClassVar[signal.Signals] = signal.SIGTERM
    dies_by: ClassVar[signal.Signals] = signal.SIGKILL
    """What the server gets when the program that started it is killed."""

    def __init__(self) -> None:
        self.folder = folders.new(self.name)
        self.log: Path = self.folder / "log"
        self.port: int = 0
        self.version: str = ""
        self.user = (0, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self.choose_ports()
        _all(os.getpid()).add(self)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where Offload finds it."""

    @property
    def pid(self) -> int:
        """The process id of the server; of its last run if it does not run now."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; a server that was frozen or is still starting counts."""
        return self._process is not None and self._process.poll() is None

    def choose_ports(self) -> None:
        """Set the port, before the first start and again when another process was quicker to take it."""
        self.port = free_port()

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments; written anew at each start."""

    @abstractmethod
    def ask_version(self) -> str:
        """Ask the server for its version, and make sure that it is this server that answers. Raises OSError while it does not."""

    def start(self) -> None:
        """Start it, on the same port and data if it ran before, and wait until it answers. Raises ServerFailed.

        Does nothing where it runs.
        """
        if self.running:
            return
        deadline = time.monotonic() + START_WITHIN
        while True:
            try:
                self._start(deadline)
                return
            except PortTaken:
                if time.monotonic() > deadline:
                    raise
                if not self.version:  # it never ran, so nobody knows its port yet
                    self.choose_ports()

    def stop(self) -> None:
        """Ask it to stop, and wait until it and its children are gone; kills it if it does not stop."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        children = descendants(process.pid)
        process.send_signal(self.stops_by)
        process.send_signal(signal.SIGCONT)  # a frozen server would never read the signal
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
        _wait_until_gone(children)

    def kill(self) -> None:
        """SIGKILL to it and its children, as a crash of the machine would end them, and wait until they are gone."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)  # so that it starts no child between the look and the blow
        children = descendants(process.pid)
        for pid in (process.pid, *children):
            _send(pid, signal.SIGKILL)
        process.wait()
        _wait_until_gone(children)

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        _all(os.getpid()).discard(self)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.name} {self.version} at {self.url}>"

    def _start(self, deadline: float) -> None:
        self._process = launch(self.command(), self.folder, self.log, self.dies_by, self.user)
        while True:
            code = self._process.poll()
            if code is not None:
                raise self._failed(f"ended at once with code {code}")
            try:
                self.version = self.ask_version()
                return
            except OSError as error:
                if time.monotonic() > deadline and self.running:
                    self.kill()
                    raise self._failed(f"did not answer within {START_WITHIN:g} s: {error}") from error
            time.sleep(0.01)

    def _failed(self, how: str) -> ServerFailed:
        end = self.log.read_text(errors="replace")[-2000:]
        kind = PortTaken if " in use" in end[-500:] else ServerFailed
        return kind(f"{self.name} {how}; its port was {self.port}, and its log ends:\n{end}")


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens.

    Not one of those that the system hands out for outgoing connections, where it has others: such a connection could take the port while
    its server is down.
    """
    with socket.socket() as probe:
        for _ in range(50):
            try:
                # Not from `random` itself: tests seed it, and programs side by side would then ask for the same ports.
                probe.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, _first_outgoing())))
            except OSError:
                continue
            return probe.getsockname()[1]
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@cache
def _first_outgoing() -> int:
    try:
        return max(10_001, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    except OSError:
        return 49_152


def launch(command: list[str], folder: Path, log: Path, dies_by: int, user: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Start a program in `folder`, in a session of its own, as `user` (user id, group id; zeros: ours), with its output in `log`."""
    launcher = Path(__file__).with_name("launch.py")
    words = [sys.executable, "-I", "-S", str(launcher), str(int(dies_by)), str(os.getpid()), *map(str, user), *command]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - the programs that were asked for
                words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    return _starter(os.getpid()).call(start)


class Starter:
    """Calls functions in a thread that lives as long as this process: the system counts the death of that thread as the parent's."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="offload-servers", daemon=True).start()

    def call(self, function: Callable[[], Result]) -> Result:
        answer: Future[Result] = Future()

        def order() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                answer.set_exception(error)

        self._orders.put(order)
        return answer.result()

    def _run(self) -> None:
        while True:
            self._orders.get()()


@cache
def _starter(_process: int) -> Starter:
    # Keyed by the process: threads do not survive a fork.
    return Starter()


@cache
def _all(process: int) -> set[Server]:
    """The servers of this process, closed at its end."""
    servers: set[Server] = set()

    def close() -> None:
        if os.getpid() == process:
            for server in tuple(servers):
                server.close()

    atexit.register(close)
    return servers


def descendants(pid: int) -> list[int]:
    """The process ids of a process's children, and of theirs."""
    found: list[int] = []
    parents = _parents()
    wanted = {pid}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        found.extend(wanted)
    return found


def _parents() -> dict[int, int]:
    """The parent of each process of the machine."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout  # noqa: S607 - in every PATH
        return {int(pid): int(parent) for pid, parent in (line.split() for line in listed.splitlines())}
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            found[int(entry.name)] = int(fields[1])
    return found


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; empty when it is gone. The name before may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be buried has."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return not fields or fields[0] in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + STOP_WITHIN
    for pid in pids:
        while not gone(pid):
            if time.monotonic() > deadline:
                raise ServerFailed(f"the server's process {pid} is still there {STOP_WITHIN:g} s after the server")
            time.sleep(0.002)
