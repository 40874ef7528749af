"""A user's project for each test of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.project import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OFFLOAD_APP", "shop:app")
    monkeypatch.delenv("OFFLOAD_URL", raising=False)
    before = set(sys.modules)
    made = Project(tmp_path)
    yield made
    if "shop" in sys.modules:
        made.app.close()
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]
