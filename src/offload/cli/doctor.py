"""`offload doctor`: says what is wrong or could be better, worst first, and who is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from offload.cli import output
from offload.cli.loading import app_argument, takes_app
from offload.cli.tables import STYLES
from offload.cli.workers import plain
from offload.diagnosis import Finding, diagnose
from offload.portal import portal
from offload.presence import counted
from offload.records import Facts, Survey
from offload.survey import surveyed

if TYPE_CHECKING:
    from offload.app import Offload


@click.command()
@app_argument
@output.json_option
@takes_app
def doctor(app: Offload, as_json: bool) -> None:
    """Look at the broker, its workers, queues, schedules and tasks. Exits 1 when something is wrong."""
    facts, survey = portal.run(_seen, app)
    findings = diagnose(facts, survey)
    if as_json:
        output.emit(
            {
                "engine": facts.engine,
                "version": facts.version,
                "schema": facts.schema,
                "place": facts.place,
                "findings": [_finding(each) for each in findings],
                "workers": [plain(each, facts.now) for each in facts.sessions],
            }
        )
    else:
        _print(facts, survey, findings)
    if any(finding.severity == "error" for finding in findings):
        raise SystemExit(1)


async def _seen(app: Offload) -> tuple[Facts, Survey]:
    store = await app.store()
    return await store.inspect(), await surveyed(store)


def _print(facts: Facts, survey: Survey, findings: list[Finding]) -> None:
    about = [
        f"{facts.engine} {facts.version}".rstrip(),
        f"schema version {facts.schema}" if facts.durable else "",
        output.line(facts.place),
    ]
    click.echo(", ".join(part for part in about if part))
    if all(finding.severity == "info" for finding in findings):
        click.echo("\nAll is well with the set-up; look at the dead jobs." if survey.dead else "\nAll is well.")
    for finding in findings:
        click.echo()
        _print_finding(finding)
    if facts.sessions:
        running = sum(each.running for each in facts.sessions)
        click.echo(f"\n{counted(facts.sessions, facts.now)} with {output.count(running, 'running job')}; see `offload workers`.")


def _print_finding(finding: Finding) -> None:
    from rich.padding import Padding
    from rich.text import Text

    text = Text.assemble((f"{finding.severity}: ", STYLES[finding.severity]), (output.line(finding.title), "bold"))
    output.show(text)
    for more in (finding.detail, finding.advice):
        if more:
            output.show(Padding(Text(output.line(more)), (0, 0, 0, 2)))


def _finding(finding: Finding) -> dict[str, Any]:
    return {"severity": finding.severity, "title": finding.title, "detail": finding.detail, "advice": finding.advice}
