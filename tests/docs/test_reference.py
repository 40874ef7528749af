"""The reference says what the code says."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import entry_points

import click
import pytest
from tests.docs.pages import ROOT, all_pages, blocks, commands
from tests.docs.reference import PAGE, PART, PARTS, written

import offload
from offload.brokers.postgres.address import OPTIONS as POSTGRES
from offload.brokers.redis.address import OPTIONS as REDIS
from offload.cli import main


def test_the_generated_parts_are_fresh() -> None:
    text = PAGE.read_text()
    assert set(PARTS) == {match[2] for match in PART.finditer(text)}
    assert written(text) == text, "docs/reference.md is stale; run `make docs`"


def test_every_public_name_is_in_the_reference() -> None:
    text = PAGE.read_text()
    assert [name for name in offload.__all__ if f"| `{name}` |" not in text] == []


def test_every_scheme_and_every_option_of_a_url_is_in_the_reference() -> None:
    part = PAGE.read_text().partition("\n### URLs\n")[2].partition("\n### ")[0]
    schemes = {f"{point.name}://" for point in entry_points(group="offload.brokers")}
    assert set(re.findall(r"([a-z+]+://)", part)) == schemes
    assert [name for name in (*POSTGRES, *REDIS, "synchronous", "driver") if f"`{name}=`" not in part] == []


@pytest.mark.parametrize("name", ["Workflow", "Node", "Run", "Results", "current.workflow", "Batch", "current.batch", "Tally"])
def test_workflows_and_batches_have_an_entry_each(name: str) -> None:
    assert f"\n### `{name}`\n" in PAGE.read_text()


def test_an_async_form_is_named_beside_its_sync_form_also_that_of_wait() -> None:
    text = PAGE.read_text()
    assert text.count("| `wait(timeout=None)` · `await_` |") == 2
    assert "| `await_(" not in text
    assert "| As `a" not in text


def commands_shown() -> list[tuple[str, str]]:
    """Every `offload ...` of a page, in its blocks and in its text, with the page's name."""
    shown: list[tuple[str, str]] = []
    for page in all_pages():
        name = page.relative_to(ROOT).as_posix()
        for block in blocks(page):
            if block.language == "console":
                shown += [(name, command) for command, _ in commands(block.code)]
            elif block.language == "sh":
                shown += [(name, line.partition(" #")[0].strip()) for line in block.code.splitlines()]
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        shown += [(name, code) for code in re.findall(r"`([^`\n]+)`", text) if name != "docs/reference.md"]
    return sorted({(name, command) for name, command in shown if command.startswith("offload ")})


@pytest.mark.parametrize(("page", "command"), commands_shown(), ids=str)
def test_a_command_on_a_page_is_one_that_the_program_accepts(page: str, command: str) -> None:
    words = shlex.split(command.removesuffix(" &"))[1:]
    context = click.Context(main, info_name="offload")
    group: click.Command = main
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        found = group.get_command(context, words[0])
        assert found is not None, f"{page}: there is no command `{command}`"
        group, words = found, words[1:]
    if not isinstance(group, click.Group) and words:
        group.make_context(f"{page}: {command}", [word if word != "..." else "x" for word in words])
