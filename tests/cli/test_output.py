"""What all commands have in common: help at once, tables that fit, values as people type them, quiet pipes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import click
import pytest
from tests.cli.project import Project

from offload.cli import COMMANDS, main, output, tables, values
from offload.cli.confirm import CHUNK, in_chunks
from offload.cli.tables import Column, fitting

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.process
def test_help_imports_nothing_that_takes_time() -> None:
    loaded = _python("import sys, offload.cli; offload.cli.main(['--help'], standalone_mode=False); print(*sys.modules)").split()
    assert not {"rich", "msgspec", "asyncio", "offload.app", "offload.job", "importlib.metadata"} & set(loaded)


@pytest.mark.process
def test_the_module_is_the_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "offload", "--version"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("offload 0.")


def test_every_command_and_subcommand_has_help(project: Project) -> None:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        inner = list(command.commands) if isinstance(command, click.Group) else []
        for args in ([name], *([name, each] for each in inner)):
            shown = project.ok(*args, "--help")
            assert "Usage: offload" in shown
            assert command.help is not None


@pytest.mark.parametrize("group", ["jobs", "queues", "dead", "schedules"])
def test_no_summary_of_a_command_is_cut(project: Project, group: str) -> None:
    assert "..." not in project.ok(group, "--help").partition("Commands:")[2]


def test_an_unknown_command_is_told_with_what_is_near(project: Project) -> None:
    result = project.run("jbos")
    assert result.exit_code == 2
    assert "did you mean jobs?" in result.stderr


@pytest.mark.process
def test_a_closed_pipe_is_quiet(project: Project) -> None:
    greet = project.app.tasks["greet"]
    project.app.enqueue_many([greet.job(user_id=1, note="x" * 500) for _ in range(500)])
    for format in ("--json", "--reveal"):
        process = project.start("jobs", "--limit", "500", format)
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        process.wait(30)
    assert project.log() == "There may be more: --after " + project.json("jobs", "--limit", "500")[-1]["id"] + "\n"


COLUMNS = (Column("id", whole=True), Column("task"), Column("when", spare=1), Column("note", spare=2))
ROWS = [("0" * 36, "a.long.name.of.a.task", "3 s ago", "x" * 300)]


@pytest.mark.parametrize(
    ("width", "kept"),
    [(10_000, [36, 21, 7, 300]), (80, [36, 21, 7, 10]), (65, [36, 8, 7, 8]), (60, [36, 12, 8]), (54, [36, 16]), (20, [36, 8])],
)
def test_lesser_columns_go_first_where_it_is_narrow(width: int, kept: list[int]) -> None:
    assert list(fitting(COLUMNS, ROWS, width).values()) == kept


def test_ids_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    tables.show_table(COLUMNS, ROWS, empty="")
    header, row = click.unstyle(capsys.readouterr().out).splitlines()
    assert header.split() == ["id", "task", "note"]
    assert row.startswith("0" * 36)
    assert "…" in row
    assert len(row) <= 60


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s ago"),
        (3.4, "3 s ago"),
        (300, "5 min ago"),
        (7_200, "2 h ago"),
        (345_600, "4 days ago"),
        (-60, "in 60 s"),
        (-0.1, "0 s ago"),
    ],
)
def test_moments_are_told_as_people_say_them(seconds: float, said: str) -> None:
    assert output.ago(NOW - timedelta(seconds=seconds), NOW) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (86_400, "1 day"), (172_800, "2 days"), (3_600, "1 h"), (300, "5 min"), (90, "90 s"), (0.5, "0.5 s")],
)
def test_what_was_set_is_told_exactly(seconds: float, said: str) -> None:
    assert output.exact(seconds) == said


def test_markup_in_the_users_data_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_table((Column("x"),), [("[bold]not ours[/bold]",)], empty="")
    assert "[bold]not ours[/bold]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "bytes"), [("500MB", 500_000_000), ("1.5GiB", 1_610_612_736), ("10k", 10_240), ("4096", 4096), ("7 kb", 7_000)]
)
def test_sizes_are_read_as_people_write_them(text: str, bytes: int) -> None:
    assert values.Size().convert(text, None, None) == bytes


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7_200), ("1d", 86_400), ("5 min", 300)])
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert values.Seconds().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "big", "5 parsecs", "1e3", "nan"])
def test_other_quantities_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="500MB"):
        values.Size().convert(text, None, None)
    with pytest.raises(click.BadParameter, match="5m"):
        values.Seconds().convert(text, None, None)


def test_long_actions_go_in_pieces(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [str(number) for number in range(CHUNK + 1)]
    sizes: list[int] = []

    def act(chunk: list[str]) -> list[str]:
        sizes.append(len(chunk))
        return chunk[1:]

    assert in_chunks(ids, "Cancelling", act) == {*ids} - {"0", str(CHUNK)}
    assert sizes == [CHUNK, 1]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    in_chunks(ids, "Cancelling", act)
    assert "Cancelling" in capsys.readouterr().err
