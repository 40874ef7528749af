"""What tests of several files need."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def faketime() -> str:
    """The program that starts another one with a moved clock; `make test` installs it where it may."""
    program = shutil.which("faketime")
    if program is None and os.environ.get("CI"):
        pytest.fail("the package faketime is missing, and CI must not skip what needs it: apt-get install faketime")
    if program is None:
        pytest.skip("needs the package faketime: apt-get install faketime")
    return program
