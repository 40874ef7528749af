"""`offload demo`: the way into the tour, which has tests of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.cli.project import Project


def test_its_options_are_checked(project: Project) -> None:
    assert project.run("demo", "--port", "70000").exit_code == 2
    assert project.run("demo", "--folder", str(project.folder / "shop.py")).exit_code == 2


def test_what_it_cannot_start_with_exits_1(project: Project) -> None:
    project.write("before/site.db", "")
    result = project.run("demo", "--once", "--port", "0", "--folder", "before")
    assert result.exit_code == 1
    assert "holds an earlier demo" in result.stderr


@pytest.mark.process
def test_without_its_packages_it_names_the_extra(project: Project) -> None:
    code = "import sys; sys.modules['aiosmtpd'] = None; from offload.cli import main; main(['demo', '--once'])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=project.folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "pip install '.[demo]'" in ran.stderr
    assert "Traceback" not in ran.stderr
