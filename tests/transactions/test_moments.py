"""A thread may be stopped at any moment at which the interpreter looks for that: each is tried, one after the other."""

from __future__ import annotations

import _weakrefset
import contextlib
import dis
import inspect
import sqlite3
import sys
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import pytest
from tests.transactions import program
from tests.transactions.conftest import Shop
from tests.transactions.kinds import KINDS, Kind
from tests.transactions.test_stopping import nobody_holds_a_lock, task_of

from offload import State, completing, current, joining
from offload.connections import sqlite
from offload.current import attempt_var
from offload.worker import attempt as attempts
from offload.worker.outcome import AttemptStopped

WATCHED = {module.__file__ for module in (completing, sys.modules["offload.current"], joining, attempts, contextlib)}
WATCHED.add(__file__)


class Strike:
    """Raises AttemptStopped in the thread that it profiles, at the moment of that number, counted while nothing shields the attempt.

    The interpreter looks for an exception from outside where a function or generator begins or goes on, and after a call (and where a
    loop goes on, of which there is none here). What a profiling function raises is raised at the same places, but at a chosen one.
    """

    def __init__(self, moment: int, watched: Collection[str | None] = WATCHED) -> None:
        self._left = moment
        self._watched = watched
        self.place: tuple[str, str] | None = None
        """Where it struck: the function, and how far it had come."""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in self._watched:
            self._look(frame, "as it begins or goes on")
        elif event == "c_return" and frame.f_code.co_filename in self._watched:
            self._look(frame, "after a call")
        elif event == "return" and frame.f_back is not None and frame.f_back.f_code.co_filename in self._watched and _is_called(frame):
            self._look(frame.f_back, "after a call")

    def _look(self, frame: FrameType, how: str) -> None:
        if attempt_var.get().shielded:  # pyright: ignore[reportAttributeAccessIssue] - of an attempt in a thread of this process
            return
        self._left -= 1
        if self._left == 0:
            self.place = (frame.f_code.co_name, how)
            raise AttemptStopped


def _is_called(frame: FrameType) -> bool:
    """Whether it is a function's, called as such: after what `with` or a weak reference calls, and a generator's end, there is no look."""
    caller = frame.f_back
    assert caller is not None
    if frame.f_code.co_filename == _weakrefset.__file__:
        return False
    at, code = caller.f_lasti, caller.f_code.co_code
    while dis.opname[code[at]] == "CACHE":
        at -= 2
    return not frame.f_code.co_flags & inspect.CO_GENERATOR and dis.opname[code[at]].startswith("CALL")


def is_locked(url: str) -> bool:
    """Whether somebody holds a lock for longer than a heartbeat or the end of a transaction does."""
    if url.startswith("postgresql"):
        return not soon(lambda: program.sql(url, LEFT_OPEN) == [(0,)])
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=1, isolation_level=None)) as other:
        try:
            other.execute("begin immediate")
        except sqlite3.OperationalError:
            return True
        return False


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes to hold within a second."""
    deadline = time.monotonic() + 1
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds


LEFT_OPEN = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"
LEFT = ("__exit__", "as it begins or goes on")
SYNC = [kind for kind in KINDS if not kind.is_async]
EVERY_KIND = [pytest.param(kind, id=kind.name, marks=() if kind.name == "psycopg" else pytest.mark.soak) for kind in SYNC]
Place: TypeAlias = tuple[str, str] | None


def stopped_at_every_moment(
    shop: Shop, opened: Callable[[], AbstractContextManager[Any]], block: Callable[[Any, int], None]
) -> list[Place]:
    """Run a job again and again, whose block is stopped at the next moment each time. Returns those at which it left a lock behind."""
    strikes: list[Strike] = []
    locked: list[Place] = []

    def stopped(n: int) -> None:
        strike = Strike(n)
        strikes.append(strike)
        with opened() as given:
            try:
                sys.setprofile(strike)
                block(given, n)
            finally:
                sys.setprofile(None)
                if is_locked(shop.url):
                    locked.append(strike.place)

    committed: list[int] = []
    with task_of(shop, stopped) as task:
        while not strikes or strikes[-1].place is not None:
            n = len(strikes) + 1
            record = shop.ran(task.enqueue(n))
            assert record.state is (State.SUCCEEDED if n in shop.marks() else State.DEAD), (strikes[-1].place, record.errors)
            committed += [n] if record.state is State.SUCCEEDED else []
            assert (shop.marks(), shop.jobs()) == (committed, committed), strikes[-1].place
    assert len(strikes) > 40
    nobody_holds_a_lock(shop)
    return locked


def test_whenever_a_thread_is_stopped_its_transaction_is_over_when_the_with_is_left(shop: Shop, engine: str) -> None:
    """But for the one moment in which `__exit__` begins, and then at the end of the attempt."""

    def block(_: None, n: int) -> None:
        with current.transaction() as mine:
            mine.execute(program.insert(n))
            program.note.enqueue(n)
            current.complete(n)

    assert stopped_at_every_moment(shop, nullcontext, block) == [LEFT]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_whenever_a_thread_is_stopped_a_connection_of_the_tasks_own_is_left_without_a_transaction(shop: Shop, kind: Kind) -> None:
    """But for the same moment."""

    def block(given: Any, n: int) -> None:
        with current.transaction(given) as mine:
            kind.insert(mine, n)
            program.note.enqueue(n)
            current.complete(n)

    assert stopped_at_every_moment(shop, lambda: kind.opened(shop.url), block) == [LEFT]


@pytest.mark.parametrize("kind", [kind for kind in SYNC if kind.name == "sqlite3"], ids=lambda kind: kind.name)
def test_wherever_an_enqueue_is_stopped_the_connection_it_was_given_waits_for_locks_as_before(
    shop: Shop, kind: Kind, tmp_path: Path
) -> None:
    strikes: list[Strike] = []
    waits: list[int] = []

    def stopped(n: int) -> None:
        strike = Strike(n, {*WATCHED, sqlite.__file__})
        strikes.append(strike)
        with closing(sqlite3.connect(tmp_path / "shop.db", timeout=0.2)) as given:
            enqueue = program.note.using(connection=given).enqueue
            try:
                sys.setprofile(strike)
                enqueue(n)
            finally:
                sys.setprofile(None)
                waits.extend(given.execute("pragma busy_timeout").fetchone())
                given.rollback()

    with task_of(shop, stopped) as task:
        while not strikes or strikes[-1].place is not None:
            shop.ran(task.enqueue(len(strikes) + 1))
    assert len(strikes) > 20
    assert {strike.place for strike, wait in zip(strikes, waits, strict=True) if wait != 200} == set()
    nobody_holds_a_lock(shop)
