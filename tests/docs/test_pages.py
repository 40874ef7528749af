"""Every page runs: its Python from top to bottom, its commands in their order (see pages.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import ROOT, all_pages, blocks

RUN = {"python", "console"}
SHOWN = {"sh", "js", "text", "ini", "yaml", "json", "mermaid", "sql", "toml"}

PROGRAMS = [page for page in all_pages() if any(block.language in RUN for block in blocks(page))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.process
@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_a_page_runs_as_one_program(page: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "140",
        "NO_COLOR": "1",
    }
    environment.pop("OFFLOAD_APP", None)
    environment.pop("OFFLOAD_URL", None)
    if not any(block.language == "console" for block in blocks(page)):
        environment["OFFLOAD_URL"] = "memory://"
    command = [sys.executable, "-W", "error", str(ROOT / "tests/docs/pages.py"), str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_every_block_says_its_language(page: Path) -> None:
    opened = re.findall(r"^ *```(\w*)", page.read_text(), re.MULTILINE)[::2]
    assert set(opened) <= RUN | SHOWN


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:src|tests|docs|examples|tools|benchmarks)/[\w./-]+)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_test_that_a_page_names_exists() -> None:
    named = {name for page in all_pages() for name in re.findall(r"`(test_\w{20,})`", page.read_text())}
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "src/offload/testing/contract").glob("*.py")]
    tests = "".join(path.read_text() for path in files)
    assert sorted(name for name in named if f"def {name}(" not in tests) == []


def test_guarantees_say_where_each_test_is() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        places = {ROOT / path for path in re.findall(r"`((?:src|tests)/[\w./-]+)`", section)}
        if "contract" in section:
            places.add(ROOT / "src/offload/testing/contract")
        if "lockstep" in section:
            places.add(ROOT / "tests/test_lockstep.py")
        files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
        tests = "".join(file.read_text() for file in files)
        missing = [name for name in re.findall(r"`(test_\w+)`", section) if f"def {name}(" not in tests]
        assert missing == [], f"not in a file that the section names: {section.splitlines()[0]}"


def test_internals_names_every_table_of_the_sqlite_schema() -> None:
    schema = "".join(path.read_text() for path in (ROOT / "src/offload/brokers/sqlite").glob("*schema.sql"))
    tables = set(re.findall(r"^create table (\w+)", schema, re.MULTILINE))
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs/internals.md").read_text(), re.MULTILINE)
    assert {table for row in named for table in re.findall(r"\w+", row)} == tables
