"""`workbench new`, `check`, `promote`, `steps`: from a notebook to versions that pipelines name."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, progress_bar
from workbench.core.errors import ParameterError, ServiceError, WorkbenchError
from workbench.core.text import counted, terminal_text
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from workbench.pipeline.checking.check import CheckReport
    from workbench.pipeline.checking.findings import Finding
    from workbench.pipeline.promoted_steps import PromotedStep

__all__ = ()

_by_option = click.option("--by", help="Who sets the alias.  [default: the git user]")


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--fix", is_flag=True, help="Fix mechanical findings first, and list the fixes.")
@click.option("--static", "static_only", is_flag=True, help="Do not execute the notebook.")
@click.option("--schema", is_flag=True, help="Only print the JSON schema of its parameters.")
@json_option
def check(notebook: Path, fix: bool, static_only: bool, schema: bool, as_json: bool) -> None:
    """Check whether NOTEBOOK (.ipynb or a marimo app) is ready for production.

    First it is analyzed without running. If there are no errors, it is executed three times on the
    fixture of its contract, while its file and network access is observed. A notebook that passes
    gets a signed receipt, which `workbench promote` requires.

    Exit status: 0 no errors, 1 errors found.
    """
    from workbench.pipeline.checking.check import check_notebook

    if schema:
        click.echo(json.dumps(_parameter_schema(notebook), indent=1))
        return
    fixes = _fix_notebook(notebook) if fix else []
    with progress_bar(f"check {notebook.stem}") as progress:
        report = check_notebook(
            find_workspace(), notebook, _CheckProgress(progress), execute=not static_only
        )
    print_result(
        _report_as_json(report, fixes),
        as_json=as_json,
        text=_report_text(report, fixes),
        styled=True,
    )
    sys.exit(0 if report.passed else 1)


class _CheckProgress:
    """Shows the progress of a check on standard error."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def note(self, message: str) -> None:
        info(f"  {message}")


def _fix_notebook(notebook: Path) -> list[str]:
    from workbench.pipeline.checking.fixes import fix_notebook
    from workbench.pipeline.checking.notebook import is_marimo_app

    if is_marimo_app(notebook):
        raise ParameterError(
            "--fix supports .ipynb notebooks only",
            where=notebook,
            hint="Use `marimo check --fix` for marimo apps",
        )
    return fix_notebook(notebook)


def _parameter_schema(notebook: Path) -> Json:
    from workbench.pipeline.checking.notebook import as_ipynb
    from workbench.pipeline.contract import read_contract

    contract = read_contract(as_ipynb(find_workspace(), notebook))
    return contract.parameters.model_json_schema()


def _report_as_json(report: CheckReport, fixes: list[str]) -> Json:
    return {
        "notebook": str(report.notebook),
        "passed": report.passed,
        "ran": report.ran,
        "fixed": fixes,
        "findings": [finding.as_json() for finding in report.findings],
        "checks": dict(report.checks),
        "watch": report.watch,
        "receipt": report.receipt,
        "outputs": dict(report.outputs),
        "parameters": report.schema,
        "seconds": report.seconds,
        "peak_memory_mib": report.peak_memory_mib,
    }


def _report_text(report: CheckReport, fixes: list[str]) -> str:
    from workbench.pipeline.checking.findings import RULES

    lines = [f"fixed: {terminal_text(fix)}" for fix in fixes]
    heading = None
    explained: set[str] = set()
    for finding in report.findings:
        if (cell := _cell_heading(finding)) != heading:
            lines.append(click.style(terminal_text(cell), bold=True))
            heading = cell
        color = "red" if finding.is_error else "yellow"
        line = f"line {finding.line}: " if finding.line else ""
        severity = click.style(f"{finding.severity:7}", fg=color)
        lines.append(f"  {severity} {line}{terminal_text(finding.message)}  [{finding.rule}]")
        if finding.rule not in explained:  # each rule is explained once
            rule = RULES[finding.rule]
            lines.append(click.style(f"          {rule.why}", dim=True))
            lines.append(click.style(f"          → {rule.remedy}", dim=True))
            explained.add(finding.rule)
    return "\n".join([*lines, *_summary_lines(report)])


def _cell_heading(finding: Finding) -> str:
    if finding.cell is None:
        return "the notebook" if finding.cell_id is None else f"cell {finding.cell_id}"
    return f"cell {finding.cell}" + (f" ({finding.cell_id})" if finding.cell_id else "")


def _summary_lines(report: CheckReport) -> list[str]:
    name = terminal_text(report.notebook.name)
    errors = [finding for finding in report.findings if finding.is_error]
    warnings = counted(len(report.findings) - len(errors), "warning")
    counts = f"{counted(len(errors), 'error')}, {warnings}"
    if errors:
        run = "" if report.ran else "; not executed"
        fixable = sum(finding.as_json()["fixable"] for finding in errors)
        is_app = report.notebook.suffix == ".py"
        hint = f". --fix may fix {fixable} of them" if fixable and not is_app else ""
        return [f"{name}: {counts}{run}{hint}"]
    if not report.ran:
        return [f"{name}: static checks passed ({counts}); not executed"]
    results = ", ".join(f"{check}: {result}" for check, result in report.checks.items())
    usage = f"{report.seconds:.1f} s, {report.peak_memory_mib:.0f} MiB, watch {report.watch}"
    return [results, f"{name}: passed ({counts}; {usage})", f"receipt {report.receipt}"]


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--owner", help="Who maintains the step.  [default: the contract's owner]")
@click.option("--reviewer", help="Who reviewed it; not the owner.")
@click.option("--alias", help="Set this alias, such as production, to the version.")
@json_option
def promote(
    notebook: Path, owner: str | None, reviewer: str | None, alias: str | None, as_json: bool
) -> None:
    """Publish a checked NOTEBOOK as an immutable version of its step.

    Requires a current receipt of `workbench check`, a commit with everything the notebook depends
    on, the locked environment, an owner and a reviewer. Promoting the same content again gives the
    same version.
    """
    from workbench.pipeline.promote import current_user, promote_notebook
    from workbench.pipeline.promoted_steps import check_alias, find_project, move_alias

    if alias is not None:
        check_alias(alias)
    workspace = find_workspace()
    result = promote_notebook(workspace, notebook, owner=owner, reviewer=reviewer)
    promoted, project = result.promoted, find_project(notebook)
    name = f"{promoted.name}@{promoted.version}"
    if alias is not None:
        move_alias(workspace, project, name, alias, by=current_user())
    value = {
        **_version_as_json(project, promoted),
        "new": result.new,
        "mirrored": _try_mirror(workspace, project, promoted.name),
        "test": str(result.test),
    }
    to_commit = (promoted.path.parents[1], result.test.parent)
    lines = [
        f"{name} {'promoted' if result.new else 'already promoted, from the same content'}",
        f"  notebook  {promoted.path}",
        f"  test      {result.test}",
        f"  owner     {promoted.record.owner}",
        f"  reviewer  {promoted.record.reviewer}",
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
    """List promoted steps with versions and aliases; set and roll back aliases."""
    if context.invoked_subcommand is not None:
        return
    from workbench.pipeline import promoted_steps

    project = _project_folder()
    rows = []
    damaged: dict[str, str] = {}
    for name in promoted_steps.list_steps(project):
        versions = []
        for number in promoted_steps.list_versions(project, name):
            try:
                step = promoted_steps.load_step(project, name, number)
                versions.append(_version_as_json(project, step))
            except WorkbenchError as error:
                damaged[f"{name}@{number}"] = str(error)
        aliases: dict[str, promoted_steps.AliasMove] = {}
        history: dict[str, tuple[promoted_steps.AliasMove, ...]] = {}
        try:
            aliases = promoted_steps.current_aliases(project, name)
            history = promoted_steps.alias_history(project, name)
        except WorkbenchError as error:
            damaged[f"aliases of {name}"] = str(error)
        rows.append(
            {
                "name": name,
                "versions": versions,
                "aliases": {alias: target.version for alias, target in aliases.items()},
                "history": {
                    alias: [move.model_dump(mode="json") for move in moves]
                    for alias, moves in history.items()
                },
            }
        )
    text = "\n".join(line for row in rows for line in _version_lines(row))
    empty = "no promoted steps; `workbench promote NOTEBOOK` makes one"
    for what, problem in damaged.items():
        info(f"left out: {what}: {problem}")
    print_result({"steps": rows, "damaged": damaged}, as_json=as_json, text=text or empty)


@steps.command()
@click.argument("version", metavar="STEP@VERSION")
@click.argument("name", metavar="ALIAS")
@_by_option
@json_option
def alias(version: str, name: str, by: str | None, as_json: bool) -> None:
    """Set ALIAS to STEP@VERSION, or to the version of another alias."""
    from workbench.pipeline.promote import current_user
    from workbench.pipeline.promoted_steps import move_alias

    workspace, project = find_workspace(), _project_folder()
    step = move_alias(workspace, project, version, name, by=by or current_user())
    _print_alias(workspace, project, step, name, as_json=as_json)


@steps.command()
@click.argument("step")
@click.argument("name", metavar="ALIAS")
@_by_option
@json_option
def rollback(step: str, name: str, by: str | None, as_json: bool) -> None:
    """Set ALIAS of STEP to its version before; repeat to go further back."""
    from workbench.pipeline.promote import current_user
    from workbench.pipeline.promoted_steps import roll_back_alias

    workspace, project = find_workspace(), _project_folder()
    previous = roll_back_alias(workspace, project, step, name, by=by or current_user())
    _print_alias(workspace, project, previous, name, as_json=as_json)


@steps.command()
@json_option
def mirror(as_json: bool) -> None:
    """Register in MLflow the versions that it does not have yet."""
    from workbench.pipeline.promote import mirror_to_mlflow

    new = mirror_to_mlflow(find_workspace(), _project_folder())
    text = f"{counted(new, 'version')} registered in MLflow"
    print_result({"registered": new}, as_json=as_json, text=text)


_QUESTION = "What do you want to know? One sentence, and what would answer it."
_EXPLORATION = (
    ("markdown", f"# {{title}}\n\n**Question.** {_QUESTION}"),
    ("code", "import workbench as wb"),
    (
        "code",
        'ws = wb.open()\nds = ws.dataset("{dataset}")\nds',
    ),
    ("markdown", "## Look\n\nClick the frames; the keys stand below them."),
    (
        "code",
        'browser = ws.browse(ds{model}, roles=["val"])\nbrowser',
    ),
    (
        "markdown",
        "## Keep what was marked\n\n"
        'Mark frames with Space, then: `browser.selection("why").send()` sends them to labelers.',
    ),
    ("code", "browser.marked"),
    ("markdown", "## Answer"),
)
_STEP = (
    (
        "markdown",
        f"# {{title}}\n\n**Question.** {_QUESTION}\n\n"
        "| reads | | writes | |\n| --- | --- | --- | --- |\n"
        "| `dataset` | the frames to choose from | `selection` | the chosen frames |",
    ),
    (
        "code",
        "from typing import Annotated\n\nfrom pydantic import Field\n\n"
        "import workbench\nfrom workbench import curation",
    ),
    ("parameters", "count: Annotated[int, Field(ge=1, le=500)] = 4"),
    (
        "code",
        'step = workbench.step()\ndataset = step.load("dataset")\nprint(dataset)',
    ),
    ("code", "chosen = [frame.id for frame in dataset.frames[:count]]"),
    ("code", 'step.metric("chosen", len(chosen))'),
    ("code", 'assert chosen, "no frame was chosen"'),
    (
        "code",
        "step.output(\n"
        '    "selection",\n'
        '    curation.select_manually(step.store, step.input("dataset"), chosen, "{name}"),\n'
        ")",
    ),
)
_STEP_CONTRACT: Json = {
    "fixture": {
        "inputs": {"dataset": "pipelines/data_engine.yaml:ingest.dataset"},
        "other": {"count": 3},
        "parameters": {"count": 2},
        "pipeline": {"profile": "tiny"},
    },
    "inputs": {"dataset": {"kind": "dataset"}},
    "outputs": {"selection": {"kind": "selection"}},
    "resources": {"memory_gib": 2, "threads": 2, "timeout_s": 600},
    "services": [],
}


@click.group()
def new() -> None:
    """Write a notebook to start from."""


@new.command("notebook")
@click.argument("name")
@click.option("--dataset", default="builtin", show_default=True, help="Dataset to look at.")
@click.option("--model", default="", help="Model whose boxes to show.")
@json_option
def new_notebook(name: str, dataset: str, model: str, as_json: bool) -> None:
    """Write notebooks/explore/NAME.ipynb: open the workspace, look, mark, send."""
    values = {"dataset": dataset, "model": f', "{model}"' if model else ""}
    path = _write_notebook("explore", name, _EXPLORATION, values, None)
    result: Json = {"notebook": str(path)}
    print_result(result, as_json=as_json, text=f"{path}\nopen it with: make lab")


@new.command("step")
@click.argument("name")
@json_option
def new_step(name: str, as_json: bool) -> None:
    """Write notebooks/steps/NAME.ipynb: a step with a contract, ready for `workbench check`."""
    path = _write_notebook("steps", name, _STEP, {}, _STEP_CONTRACT)
    result: Json = {"notebook": str(path)}
    print_result(result, as_json=as_json, text=f"{path}\ncheck it with: workbench check {path}")


def _write_notebook(
    folder: str,
    name: str,
    cells: Sequence[tuple[str, str]],
    values: Mapping[str, str],
    contract: Json | None,
) -> Path:
    from workbench.core.names import check_name

    check_name(name, "notebook name")
    path = Path("notebooks") / folder / f"{name}.ipynb"
    if path.exists():
        raise ParameterError("the notebook exists already", where=path, hint="Choose another name")
    if not path.parent.is_dir():
        raise ParameterError(
            "no such folder", where=path.parent, hint="Run it in the folder of the project"
        )
    given = {"title": name.replace("_", " ").capitalize(), "name": name, **values}
    body: Json = {
        "cells": [
            _new_cell(number, kind, text.format(**given))
            for number, (kind, text) in enumerate(cells)
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            **({"workbench": contract} if contract else {}),
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def _new_cell(number: int, kind: str, text: str) -> Json:
    cell: Json = {
        "cell_type": "markdown" if kind == "markdown" else "code",
        "id": f"cell-{number}",
        "metadata": {"tags": ["parameters"]} if kind == "parameters" else {},
        "source": text.splitlines(keepends=True),
    }
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


def _project_folder() -> Path:
    from workbench.pipeline.promoted_steps import find_project

    return find_project(Path.cwd() / "pipelines")


def _print_alias(
    workspace: Workspace, project: Path, step: PromotedStep, name: str, *, as_json: bool
) -> None:
    mirrored = _try_mirror(workspace, project, step.name)
    value = {**_version_as_json(project, step), "alias": name, "mirrored": mirrored}
    print_result(value, as_json=as_json, text=f"{step.name}@{name} is version {step.version}")


def _try_mirror(workspace: Workspace, project: Path, name: str) -> bool:
    """Whether MLflow could be updated; only the repository counts."""
    from workbench.pipeline.promote import mirror_to_mlflow

    try:
        mirror_to_mlflow(workspace, project, [name])
    except ServiceError as error:
        info(f"MLflow was not updated: {error}. Run `workbench steps mirror` later")
        return False
    return True


def _version_as_json(project: Path, step: PromotedStep) -> Json:
    return {
        "name": step.name,
        "version": step.version,
        "ref": step.ref,
        "notebook": _relative_path(step.path, project),
        "owner": step.record.owner,
        "reviewer": step.record.reviewer,
        "commit": step.record.commit,
    }


def _relative_path(path: Path, project: Path) -> str:
    return str(path.resolve().relative_to(project.resolve()))


def _version_lines(row: Json) -> list[str]:
    lines = []
    for version in row["versions"]:
        number = version["version"]
        aliases = ", ".join(sorted(name for name, at in row["aliases"].items() if at == number))
        name = f"{version['name']}@{number}"
        people = f"owner {version['owner']}, reviewer {version['reviewer']}"
        lines.append(f"{name:24} {aliases:16} {version['commit'][:10]}  {people}".rstrip())
    return lines
