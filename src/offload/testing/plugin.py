"""Pytest fixtures for programs that use Offload. Importing this costs nothing: what a fixture needs, it imports when asked for.

A project says which app to test, once, in its `conftest.py`:

    @pytest.fixture
    def offload_app():
        return app

and its tests then see what was enqueued, run it, and let time pass, without a server, a worker or a wait:

    def test_a_new_user_is_welcomed(enqueued, drain):
        sign_up("ada@example.org")
        [job] = enqueued(send_welcome)
        assert drain() == 1

For the time of such a test the app keeps its jobs in a private memory broker, and goes by the clock `offload_clock`, which stands
still until it is moved. In async tests use `aenqueued`, `adrain` and `aadvance`, and await them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from offload.app import Offload
    from offload.records import Record
    from offload.testing.clock import TestClock
    from offload.testing.rehearsal import Rehearsal


@pytest.fixture
def offload_app() -> Offload:
    """The app under test: define this fixture in your `conftest.py`."""
    raise pytest.UsageError("define a fixture `offload_app` that returns your app, in conftest.py: from shop.jobs import app; return app")


@pytest.fixture
def offload_clock() -> TestClock:
    """The clock that the app under test goes by; a `TestClock` at its usual start unless you define another."""
    from offload.testing.clock import TestClock

    return TestClock()


@pytest.fixture
def offload_rehearsal(offload_app: Offload, offload_clock: TestClock) -> Iterator[Rehearsal]:
    """The app under test, on a private memory broker; all that the other fixtures call."""
    from offload.app import Offload
    from offload.testing.rehearsal import Rehearsal

    if not isinstance(offload_app, Offload):  # pyright: ignore[reportUnnecessaryIsInstance] - the mistake this is for
        raise pytest.UsageError(f"the fixture `offload_app` must return your app, an Offload, not {offload_app!r}")
    with offload_app.testing("memory://", clock=offload_clock):
        yield Rehearsal(offload_app, offload_clock)


@pytest.fixture
def enqueued(offload_rehearsal: Rehearsal) -> Callable[..., list[Record]]:
    """`enqueued(task=None)`: the records of what was enqueued, oldest first; of one task only, where it is given, or its name."""
    return offload_rehearsal.enqueued


@pytest.fixture
def drain(offload_rehearsal: Rehearsal) -> Callable[[], int]:
    """`drain()`: run all that is due, here. Returns how many attempts ran."""
    return offload_rehearsal.drain


@pytest.fixture
def advance(offload_rehearsal: Rehearsal) -> Callable[..., int]:
    """`advance(seconds or timedelta)`: let time pass and run what comes due, each at its moment. Returns how many attempts ran."""
    return offload_rehearsal.advance


@pytest.fixture
def aenqueued(offload_rehearsal: Rehearsal) -> Callable[..., Awaitable[list[Record]]]:
    """`enqueued` for async tests."""
    return offload_rehearsal.aenqueued


@pytest.fixture
def adrain(offload_rehearsal: Rehearsal) -> Callable[[], Awaitable[int]]:
    """`drain` for async tests."""
    return offload_rehearsal.adrain


@pytest.fixture
def aadvance(offload_rehearsal: Rehearsal) -> Callable[..., Awaitable[int]]:
    """`advance` for async tests."""
    return offload_rehearsal.aadvance
