"""Type checkers know the arguments and the result of every task."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXPECTED = re.compile(r"  # pyright: ignore\[([^\]]+)\]")


@pytest.mark.process  # which other interpreters leave out: the type checker is there once
@pytest.mark.parametrize("source", sorted((HERE / "typing").glob("*.py")), ids=lambda path: path.name)
def test_the_type_checker_finds_the_mistakes_and_nothing_else(source: Path, tmp_path: Path) -> None:
    lines = source.read_text().splitlines()
    expected = Counter(
        (number, rule) for number, line in enumerate(lines) for found in EXPECTED.findall(line) for rule in found.split(", ")
    )
    program = tmp_path / source.name
    program.write_text("\n".join(EXPECTED.sub("", line) for line in lines))
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(HERE.parent / "src")], "include": ["."]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]

    assert Counter((each["range"]["start"]["line"], each["rule"]) for each in found) == expected, done.stdout
    assert len(expected) > 10
