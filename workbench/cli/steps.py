"""`workbench check`, `promote` and `steps`: from a notebook to versions that pipelines name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import Progress, info, json_option, print_result, progress_bar
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from workbench.pipeline.checking.check import CheckReport
    from workbench.pipeline.checking.findings import Finding
    from workbench.pipeline.promoted_steps import PromotedStep


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
    from workbench.pipeline.checking import check as checks

    if schema:
        click.echo(json.dumps(_parameter_schema(notebook), indent=1))
        return
    fixed = _fix_notebook(notebook) if fix else []
    with progress_bar(f"check {notebook.stem}") as progress:
        report = checks.check_notebook(
            find_workspace(), notebook, _CheckProgress(progress), execute=not only_static
        )
    print_result(_report_as_json(report, fixed), as_json=as_json, text=_report_text(report, fixed))
    sys.exit(0 if report.passed else 1)


class _CheckProgress:
    """What a check says on the way, on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, message: str) -> None:
        info(f"  {message}")

    def progress(self, done: int, total: int) -> None:
        self._progress(done, total)


def _fix_notebook(notebook: Path) -> list[str]:
    from workbench.core.errors import ParameterError
    from workbench.pipeline.checking import fixes
    from workbench.pipeline.checking import notebook as marimo_apps

    if marimo_apps.is_marimo_app(notebook):
        raise ParameterError(
            "--fix mends .ipynb notebooks only",
            where=notebook,
            hint="`marimo check --fix` mends marimo's own form",
        )
    return fixes.fix_notebook(notebook)


def _parameter_schema(notebook: Path) -> dict[str, Any]:
    from workbench.pipeline import contract, parameters
    from workbench.pipeline.checking import notebook as marimo_apps

    readable = marimo_apps.as_ipynb(find_workspace(), notebook)
    return parameters.parameters_json_schema(contract.read_contract(readable).parameters)


def _report_as_json(report: CheckReport, fixed: list[str]) -> dict[str, Any]:
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


def _report_text(report: CheckReport, fixed: list[str]) -> str:
    from workbench.pipeline.checking.findings import RULES

    lines = [f"fixed: {line}" for line in fixed]
    workspace: tuple[int | None, str | None] | None = None
    said: set[str] = set()
    for finding in report.findings:
        here = (finding.cell, finding.cell_id)
        if here != workspace:
            lines.append(click.style(_cell_heading(finding), bold=True))
            workspace = here
        colour = "red" if finding.is_error else "yellow"
        line = f"line {finding.line}: " if finding.line else ""
        severity = click.style(f"{finding.severity:7}", fg=colour)
        lines.append(f"  {severity} {line}{finding.message}  [{finding.rule}]")
        if finding.rule not in said:  # why and how once a rule, or the page is all advice
            rule = RULES[finding.rule]
            lines.append(click.style(f"          {rule.why}", dim=True))
            lines.append(click.style(f"          → {rule.remedy}", dim=True))
            said.add(finding.rule)
    return "\n".join([*lines, *_summary_lines(report)])


def _cell_heading(finding: Finding) -> str:
    if finding.cell is None:
        return "the notebook" if finding.cell_id is None else f"cell {finding.cell_id}"
    return f"cell {finding.cell}" + (f" ({finding.cell_id})" if finding.cell_id else "")


def _summary_lines(report: CheckReport) -> list[str]:
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


# ---- ``promote`` and ``steps``: from a checked notebook to versions that pipelines name.


_by_option = click.option("--by", help="Who moves it. Default: you, as git knows you.")


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--owner", help="Who answers for the step. Default: the contract's owner.")
@click.option("--reviewer", help="Who looked at it; somebody else than the owner.")
@click.option("--alias", help="Let this alias, such as production, point to the version.")
@json_option
def promote(
    notebook: Path, owner: str | None, reviewer: str | None, alias: str | None, as_json: bool
) -> None:
    """Make a checked NOTEBOOK an immutable version of its step.

    It needs a fresh receipt from `workbench check`, everything that shapes it committed, the
    locked environment, an owner and a reviewer. The same content again is the same version.
    """
    from workbench.pipeline import promote as conditions
    from workbench.pipeline import promoted_steps
    from workbench.pipeline.promote import promote_notebook as make
    from workbench.pipeline.promoted_steps import find_project, move_alias

    if alias is not None:
        promoted_steps.check_alias(alias)
    workspace = find_workspace()
    made = make(workspace, notebook, owner=owner, reviewer=reviewer)
    promoted, project = made.promoted, find_project(notebook)
    name = f"{promoted.name}@{promoted.version}"
    if alias is not None:
        move_alias(workspace, project, name, alias, by=conditions.current_user())
    mirrored = _try_mirror(workspace, project, promoted.name)
    value = {**_version_as_json(project, promoted), "new": made.new, "mirrored": mirrored}
    value["test"] = str(made.test)
    to_commit = (promoted.path.parents[1], made.test.parent)
    lines = [
        f"{name} {'promoted' if made.new else 'was promoted before, from the same content'}",
        f"  notebook  {promoted.path}",
        f"  test      {made.test}",
        f"  reviewed by {promoted.record.reviewer}, owned by {promoted.record.owner}",
        "Next",
        f"  git add {' '.join(_relative_path(folder, project) for folder in to_commit)}",
        f"  in a pipeline file: `notebook: {promoted.name}@{alias or promoted.version}`",
    ]
    if alias is None:
        lines.append(f"  workbench steps alias {name} production")
    print_result(value, as_json=as_json, text="\n".join(lines))


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def steps(context: click.Context, as_json: bool) -> None:
    """List promoted steps with their versions and aliases, and move aliases."""
    if context.invoked_subcommand is not None:
        return
    from workbench.pipeline import promoted_steps

    project = _project_folder()
    rows = []
    for name in promoted_steps.list_steps(project):
        found = [
            promoted_steps.load_step(project, name, n)
            for n in promoted_steps.list_versions(project, name)
        ]
        rows.append(
            {
                "name": name,
                "versions": [_version_as_json(project, version) for version in found],
                "aliases": {
                    alias: at.version
                    for alias, at in promoted_steps.current_aliases(project, name).items()
                },
                "history": {
                    alias: [move.model_dump(mode="json") for move in moves]
                    for alias, moves in promoted_steps.alias_history(project, name).items()
                },
            }
        )
    text = "\n".join(line for row in rows for line in _version_lines(row))
    nothing = "no step was promoted yet: `workbench promote NOTEBOOK` makes one"
    print_result({"steps": rows}, as_json=as_json, text=text or nothing)


@steps.command()
@click.argument("version", metavar="STEP@VERSION")
@click.argument("name", metavar="ALIAS")
@_by_option
@json_option
def alias(version: str, name: str, by: str | None, as_json: bool) -> None:
    """Let ALIAS point to STEP@VERSION, or where another alias of STEP points."""
    from workbench.pipeline import promote as conditions
    from workbench.pipeline.promoted_steps import move_alias

    workspace, project = find_workspace(), _project_folder()
    found = move_alias(workspace, project, version, name, by=by or conditions.current_user())
    _print_alias(workspace, project, found, name, as_json=as_json)


@steps.command()
@click.argument("step")
@click.argument("name", metavar="ALIAS")
@_by_option
@json_option
def rollback(step: str, name: str, by: str | None, as_json: bool) -> None:
    """Let ALIAS of STEP point where it did before; again goes further back."""
    from workbench.pipeline import promote as conditions
    from workbench.pipeline.promoted_steps import roll_back_alias

    workspace, project = find_workspace(), _project_folder()
    found = roll_back_alias(workspace, project, step, name, by=by or conditions.current_user())
    _print_alias(workspace, project, found, name, as_json=as_json)


@steps.command()
@json_option
def mirror(as_json: bool) -> None:
    """Write to MLflow what it lacks, after it was away or lost."""
    from workbench.pipeline import promote as conditions

    new = conditions.mirror_to_mlflow(find_workspace(), _project_folder())
    print_result({"registered": new}, as_json=as_json, text=f"{new} versions were new to MLflow")


def _project_folder() -> Path:
    from workbench.pipeline.promoted_steps import find_project

    return find_project(Path.cwd() / "pipelines")


def _print_alias(
    workspace: Workspace, project: Path, found: PromotedStep, name: str, *, as_json: bool
) -> None:
    mirrored = _try_mirror(workspace, project, found.name)
    value = {**_version_as_json(project, found), "alias": name, "mirrored": mirrored}
    print_result(value, as_json=as_json, text=f"{found.name}@{name} is version {found.version}")


def _try_mirror(workspace: Workspace, project: Path, name: str) -> bool:
    """Whether MLflow could be told; the repository counts either way."""
    from workbench.pipeline import promote as conditions

    try:
        conditions.mirror_to_mlflow(workspace, project, [name])
    except ServiceError as error:
        info(f"MLflow was not told: {error}. `workbench steps mirror` makes up for it")
        return False
    return True


def _version_as_json(project: Path, found: PromotedStep) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "ref": found.ref,
        "notebook": _relative_path(found.path, project),
        "owner": found.record.owner,
        "reviewer": found.record.reviewer,
        "commit": found.record.commit,
    }


def _relative_path(path: Path, project: Path) -> str:
    return str(path.resolve().relative_to(project.resolve()))


def _version_lines(row: dict[str, Any]) -> list[str]:
    lines = []
    for version in row["versions"]:
        pointing = sorted(alias for alias, at in row["aliases"].items() if at == version["version"])
        name = f"{version['name']}@{version['version']}"
        people = f"owner {version['owner']}, reviewer {version['reviewer']}"
        lines.append(
            f"{name:24} {', '.join(pointing):16} {version['commit'][:10]}  {people}".rstrip()
        )
    return lines
