"""How the worker command logs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from offload.cli import logs


@pytest.fixture
def untouched() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("untouched")
def test_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", json_lines=False)
    logging.getLogger("offload.worker").warning("job %s", "x")
    logging.getLogger("my.shop").info("sold")
    logging.getLogger("offload.worker").debug("unheard")
    first, second = capsys.readouterr().err.splitlines()
    assert first[2::3][:2] == "::"
    assert first[8:] == " WARNING job x"
    assert second[8:] == " INFO    my.shop: sold"


@pytest.mark.usefixtures("untouched")
def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    logs.configure("info", json_lines=False)
    logging.getLogger("offload").error("bad")
    assert capsys.readouterr().err.startswith("\033[31m")


@pytest.mark.usefixtures("untouched")
def test_the_watcher_of_files_is_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", json_lines=False)
    logging.getLogger("watchfiles.main").info("3 changes detected")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("untouched")
def test_json_lines_carry_the_extra_fields_and_the_exception(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", json_lines=True)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("offload.worker").exception("failed", extra={"job_id": "1", "odd": object})
    [line] = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event.keys() == {"time", "level", "logger", "message", "pid", "job_id", "odd", "exception"}
    assert (event["level"], event["logger"], event["message"], event["job_id"]) == ("error", "offload.worker", "failed", "1")
    assert event["time"].endswith("Z")
    assert "ValueError: two\nlines" in event["exception"]
