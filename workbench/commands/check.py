"""``check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.commands.common import Progress, emit, json_option, progress_bar, say

if TYPE_CHECKING:
    from workbench.pipeline.checking.check import CheckReport
    from workbench.pipeline.checking.findings import Finding


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--fix", is_flag=True, help="Mend what is mechanical first, and say what was done.")
@click.option("--static", "only_static", is_flag=True, help="Read the notebook, do not run it.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of its parameters, no more.")
@json_option
def check(notebook: Path, fix: bool, only_static: bool, schema: bool, as_json: bool) -> None:
    """Say whether NOTEBOOK, an .ipynb or a marimo app, is fit for production, and what is missing.

    It is read, and when nothing is wrong run three times on the fixture that its contract
    declares, while every file and address it touches is watched. A notebook that passes has a
    signed receipt, which `workbench promote` asks for.

    Exit status: 0 no errors, 1 errors were found.
    """
    from workbench import workspace
    from workbench.pipeline.checking import check as checks

    if schema:
        click.echo(json.dumps(_schema_of(notebook), indent=1))
        return
    fixed = _mended(notebook) if fix else []
    with progress_bar(f"check {notebook.stem}") as progress:
        report = checks.run(workspace.find(), notebook, _Teller(progress), execute=not only_static)
    emit(_as_json(report, fixed), as_json=as_json, text=_text(report, fixed))
    sys.exit(0 if report.passed else 1)


class _Teller:
    """What a check says on the way, on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, message: str) -> None:
        say(f"  {message}")

    def progress(self, done: int, total: int) -> None:
        self._progress(done, total)


def _mended(notebook: Path) -> list[str]:
    from workbench.errors import ParameterError
    from workbench.pipeline.checking import marimo_apps, mending

    if marimo_apps.is_app(notebook):
        raise ParameterError(
            "--fix mends .ipynb notebooks only",
            where=notebook,
            hint="`marimo check --fix` mends marimo's own form",
        )
    return mending.mend(notebook)


def _schema_of(notebook: Path) -> dict[str, Any]:
    from workbench import workspace
    from workbench.pipeline.checking import marimo_apps
    from workbench.pipeline.contracts import contract, parameters

    readable = marimo_apps.as_ipynb(workspace.find(), notebook)
    return parameters.json_schema(contract.read(readable).parameters)


def _as_json(report: CheckReport, fixed: list[str]) -> dict[str, Any]:
    return {
        "notebook": str(report.notebook),
        "passed": report.passed,
        "ran": report.ran,
        "fixed": fixed,
        "findings": [finding.as_json() for finding in report.findings],
        "checks": dict(report.checks),
        "watch": report.watch,
        "receipt": report.receipt,
        "outputs": dict(report.outputs),
        "parameters": report.schema,
        "seconds": report.seconds,
        "peak_memory_mib": report.peak_memory_mib,
    }


def _text(report: CheckReport, fixed: list[str]) -> str:
    from workbench.pipeline.checking.findings import RULES

    lines = [f"fixed: {line}" for line in fixed]
    place: tuple[int | None, str | None] | None = None
    said: set[str] = set()
    for finding in report.findings:
        here = (finding.cell, finding.cell_id)
        if here != place:
            lines.append(click.style(_heading(finding), bold=True))
            place = here
        colour = "red" if finding.is_error else "yellow"
        line = f"line {finding.line}: " if finding.line else ""
        severity = click.style(f"{finding.severity:7}", fg=colour)
        lines.append(f"  {severity} {line}{finding.message}  [{finding.rule}]")
        if finding.rule not in said:  # why and how once a rule, or the page is all advice
            rule = RULES[finding.rule]
            lines.append(click.style(f"          {rule.why}", dim=True))
            lines.append(click.style(f"          → {rule.mend}", dim=True))
            said.add(finding.rule)
    return "\n".join([*lines, *_closing(report)])


def _heading(finding: Finding) -> str:
    if finding.cell is None:
        return "the notebook" if finding.cell_id is None else f"cell {finding.cell_id}"
    return f"cell {finding.cell}" + (f" ({finding.cell_id})" if finding.cell_id else "")


def _closing(report: CheckReport) -> list[str]:
    errors = sum(finding.is_error for finding in report.findings)
    warnings = len(report.findings) - errors
    counted = f"{errors} errors, {warnings} warnings"
    fixable = sum(f.is_error and f.as_json()["fixable"] for f in report.findings)
    if errors:
        run = "" if report.ran else "; not run yet"
        is_app = report.notebook.suffix == ".py"
        mend = f". --fix may mend {fixable} of them" if fixable and not is_app else ""
        return [f"{report.notebook.name}: {counted}{run}{mend}"]
    if not report.ran:
        return [f"{report.notebook.name}: reads well ({counted}); not run"]
    ended = ", ".join(f"{name}: {how}" for name, how in report.checks.items())
    figures = f"{report.seconds:.1f} s, {report.peak_memory_mib:.0f} MiB, watch {report.watch}"
    return [
        ended,
        f"{report.notebook.name}: passed ({counted}; {figures})",
        f"receipt {report.receipt}",
    ]
