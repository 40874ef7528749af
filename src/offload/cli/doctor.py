"""`offload doctor`: says what is wrong or could be better, worst first, and who is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from offload.cli import output
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import STYLES, Column, show_table
from offload.diagnosis import Finding, diagnose, silent
from offload.job import Facts, SessionRecord
from offload.portal import portal

if TYPE_CHECKING:
    from offload.app import Offload

WORKERS = (
    Column("worker", whole=True),
    Column("running", whole=True, justify="right"),
    Column("queues"),
    Column("last beat", whole=True, spare=4),
    Column("started", whole=True, spare=3),
    Column("tasks", whole=True, spare=1, justify="right"),
    Column("version", whole=True, spare=2),
)


@click.command()
@app_argument
@output.json_option
@takes_app
def doctor(app: Offload, as_json: bool) -> None:
    """Look at the broker, its workers, queues, schedules and tasks. Exits 1 when something is wrong."""
    facts = portal.run(_facts, app)
    findings = diagnose(facts)
    if as_json:
        output.emit(
            {
                "engine": facts.engine,
                "version": facts.version,
                "schema": facts.schema,
                "findings": [_finding(each) for each in findings],
                "workers": [_worker(each, facts) for each in facts.sessions],
            }
        )
    else:
        _print(facts, findings)
    if any(finding.severity == "error" for finding in findings):
        raise SystemExit(1)


async def _facts(app: Offload) -> Facts:
    return await (await app.store()).inspect()


def _print(facts: Facts, findings: list[Finding]) -> None:
    click.echo(f"{facts.engine} {facts.version}, schema {facts.schema}")
    for finding in findings:
        click.echo()
        _print_finding(finding)
    if not findings:
        click.echo("\nNothing is wrong.")
    if facts.sessions:
        click.echo()
        show_table(WORKERS, [_row(each, facts) for each in facts.sessions], empty="")


def _print_finding(finding: Finding) -> None:
    from rich.padding import Padding
    from rich.text import Text

    text = Text.assemble((f"{finding.severity}: ", STYLES[finding.severity]), (output.line(finding.title), "bold"))
    output.show(text)
    for more in (finding.detail, finding.advice):
        if more:
            output.show(Padding(Text(output.line(more)), (0, 0, 0, 2)))


def _row(session: SessionRecord, facts: Facts) -> tuple[str, ...]:
    info = session.info
    beat = output.ago(session.beat_at, facts.now) + (" (silent)" if silent(session, facts.now) else "")
    queues = "all" if info.queues is None else ", ".join(info.queues)
    started = output.ago(session.started_at, facts.now)
    return (info.name, f"{session.running} of {info.concurrency}", queues, beat, started, str(len(info.tasks)), info.version)


def _finding(finding: Finding) -> dict[str, Any]:
    return {"severity": finding.severity, "title": finding.title, "detail": finding.detail, "advice": finding.advice}


def _worker(session: SessionRecord, facts: Facts) -> dict[str, Any]:
    info = session.info
    return {
        "name": info.name,
        "host": info.host,
        "pid": info.pid,
        "queues": None if info.queues is None else list(info.queues),
        "tasks": sorted(info.tasks),
        "running": session.running,
        "concurrency": info.concurrency,
        "version": info.version,
        "started_at": output.iso(session.started_at),
        "beat_at": output.iso(session.beat_at),
        "silent": silent(session, facts.now),
    }
