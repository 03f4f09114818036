"""`workbench up`, `down`, `status` and `doctor`: the servers of a workspace."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from workbench import services
from workbench.cli.common import info, json_option, print_result, progress_bar
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import find_workspace
from workbench.services import ServiceStatus

if TYPE_CHECKING:
    from workbench.services.doctor import HealthCheck

__all__ = ()


@click.command()
@json_option
def up(as_json: bool) -> None:
    """Start the servers of this workspace (mongod, MLflow, Label Studio) that are not running."""
    states = services.up(find_workspace(), progress=info)
    print_result(
        _states_as_json(states), as_json=as_json, text=_states_table(states) + _sign_in_text(states)
    )


@click.command()
@json_option
def down(as_json: bool) -> None:
    """Stop the servers that were started here. Their data is kept."""
    stopped = services.down(find_workspace())
    text = f"stopped {', '.join(stopped)}" if stopped else "no server was running"
    print_result({"stopped": stopped}, as_json=as_json, text=text)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show state, address and credentials file of each server."""
    states = services.status(find_workspace())
    text = _states_table(states)
    if not all(state.usable for state in states.values()):
        text += "\n`workbench up` starts the servers that are not running"
    print_result(_states_as_json(states), as_json=as_json, text=text)


@click.command()
@click.option(
    "--records",
    is_flag=True,
    help="Check every record and image of this workspace instead, and repair what can be.",
)
@click.option(
    "--rebuild-registry",
    is_flag=True,
    help="Write MLflow's registered models again, from the signed release records, instead.",
)
@json_option
def doctor(records: bool, rebuild_registry: bool, as_json: bool) -> None:
    """Check this machine; list what is missing and how to fix it.

    Also compares MLflow's registry with the signed release records, if MLflow is running.

    Exit status: 0 when everything required is there, 1 otherwise.
    """
    if records:
        _check_records(as_json=as_json)
        return
    if rebuild_registry:
        _rebuild_registry(as_json=as_json)
        return
    from workbench.services.doctor import is_healthy, run_checks

    checks = [*run_checks(find_workspace()), _check_registry(), _check_trust()]
    ok = is_healthy(checks)
    missing = sum(check.required and not check.ok for check in checks)
    lines = [_check_line(check) for check in checks]
    lines.append("nothing required is missing" if ok else f"required and missing: {missing}")
    result: Json = {"ok": ok, "checks": [check.to_json() for check in checks]}
    print_result(result, as_json=as_json, text="\n".join(lines))
    if not ok:
        sys.exit(1)


def _check_registry() -> HealthCheck:
    """MLflow beside the release records; MLflow is not started for it."""
    from workbench.records.releases import release_models
    from workbench.services.doctor import HealthCheck

    workspace, name = find_workspace(), "MLflow's registry"
    if not release_models(workspace):
        return HealthCheck(name, True, "no releases")
    if not services.status(workspace, ("mlflow",))["mlflow"].usable:
        return HealthCheck(name, True, "not compared: MLflow is not running")
    from workbench.release.registry import connect, registry_problems

    problems = registry_problems(workspace, connect(workspace))
    detail = "; ".join(problems) or "as the signed release records say"
    fix = "Run `workbench doctor --rebuild-registry`; references are not affected"
    return HealthCheck(name, not problems, detail, fix=fix)


def _check_trust() -> HealthCheck:
    """The keys and the audit log."""
    from workbench.audit import keys, log
    from workbench.core.errors import VerificationError
    from workbench.services.doctor import HealthCheck

    workspace, name = find_workspace(), "keys and audit log"
    try:
        problems = [*log.verify_log(workspace).problems]
        problems += keys.problems(workspace) if workspace.secrets.exists() else []
    except VerificationError as error:
        problems = [str(error)]
    detail = "; ".join(problems) or "as they were signed"
    fix = "`workbench audit verify` and `workbench keys list` show more; find out who changed them"
    return HealthCheck(name, not problems, detail, fix=fix)


def _rebuild_registry(*, as_json: bool) -> None:
    from workbench.records.releases import registered_releases, release_models
    from workbench.release.registry import connect, rebuild_registry, registry_problems

    workspace = find_workspace()
    services.up(workspace, ("mlflow",), progress=info)
    tracker = connect(workspace)
    with progress_bar("models") as progress:
        written = rebuild_registry(workspace, tracker, progress)
    problems = registry_problems(workspace, tracker)
    models = {
        model: {alias: one.version for alias, one in found.aliases.items()}
        for model in release_models(workspace)
        if (found := registered_releases(workspace, model)).releases
    }
    lines = [f"{counted(written, 'model')} written to MLflow"]
    for model, aliases in models.items():
        listed = ", ".join(f"{alias} is version {number}" for alias, number in aliases.items())
        lines.append(f"  {model}: {listed}")
    lines += [f"left: {problem}" for problem in problems]
    result: Json = {"written": written, "models": models, "problems": problems}
    print_result(result, as_json=as_json, text="\n".join(lines))
    if problems:
        sys.exit(1)


def _check_records(*, as_json: bool) -> None:
    from workbench.pipeline.cache import KeyIndex
    from workbench.records.repair import Finding, check_records

    workspace = find_workspace()
    with progress_bar("reading records") as progress:
        report = check_records(workspace, progress)
    report.findings += [
        Finding(entry, "index entry did not match the records", True)
        for entry in KeyIndex(workspace).repair()
    ]
    lines = []
    for finding in report.findings:
        lines.append(f"{'repaired' if finding.repaired else 'DAMAGED':<9} {finding.where}")
        lines.append(f"          {finding.problem}")
        lines += [f"          {finding.fix}"] if finding.fix else []
    counts = f"{counted(report.records, 'record')} and {counted(report.images, 'image')} read"
    damaged = sum(not finding.repaired for finding in report.findings)
    repaired = len(report.findings) - damaged
    lines.append(f"{counts}; repaired: {repaired}; still damaged: {damaged}")
    print_result(report.to_json(), as_json=as_json, text="\n".join(lines))
    if not report.ok:
        sys.exit(1)


def _check_line(check: HealthCheck) -> str:
    word = "ok" if check.ok else "MISSING" if check.required else "missing (optional)"
    line = f"{word:<9} {check.name}: {check.detail}"
    return line if check.ok else f"{line}\n          {check.fix}"


def _states_as_json(states: dict[str, ServiceStatus]) -> Json:
    return {
        "workspace": str(find_workspace().root),
        "services": {name: state.to_json() for name, state in states.items()},
    }


def _states_table(states: dict[str, ServiceStatus]) -> str:
    return "\n".join(
        f"{state.name:<14}{state.state:<10}{state.url or '-'}"
        + ("" if state.usable else f"   ({state.detail})")
        for state in states.values()
    )


def _sign_in_text(states: dict[str, ServiceStatus]) -> str:
    from workbench.services.mlflow_app import USER
    from workbench.services.servers import ADMIN_EMAIL
    from workbench.tracking import TRAINING_VIEW

    users = {"label-studio": ("Label Studio", ADMIN_EMAIL), "mlflow": ("MLflow", USER)}
    mlflow = states.get("mlflow")
    pages = f"\nRuns in MLflow: {mlflow.url}/#/experiments?{TRAINING_VIEW}" if mlflow else ""
    return pages + "".join(
        f"\nSign in to {title} as {user}; the password is in\n  {states[name].credentials}"
        for name, (title, user) in users.items()
        if name in states and states[name].state == "running"
    )
