"""Pytest fixtures for those who use Offload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from offload.testing.clock import TestClock


@pytest.fixture
def offload_clock() -> TestClock:
    """The clock of the app under test; it stands still until moved."""
    from offload.testing.clock import TestClock

    return TestClock()
