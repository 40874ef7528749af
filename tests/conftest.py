"""What tests of several files need."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeAlias

import pytest

Eventually: TypeAlias = Callable[..., Awaitable[Any]]
"""What the fixture `eventually` gives."""


@pytest.fixture(scope="session")
def faketime() -> str:
    """The program that starts another one with a moved clock; `make test` installs it where it may."""
    program = shutil.which("faketime")
    if program is None and os.environ.get("CI"):
        pytest.fail("the package faketime is missing, and CI must not skip what needs it: apt-get install faketime")
    if program is None:
        pytest.skip("needs the package faketime: apt-get install faketime")
    return program


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition, within=10)`: its value once the condition, plain or async, holds; fails after `within` seconds."""

    async def eventually(condition: Callable[[], Any], within: float = 10.0) -> Any:
        deadline = monotonic() + within
        while True:
            met = condition()
            if inspect.isawaitable(met):
                met = await met
            if met:
                return met
            if monotonic() > deadline:
                pytest.fail(f"not within {within:g} s: {inspect.getsource(condition).strip()}")
            await asyncio.sleep(0.01)

    return eventually
