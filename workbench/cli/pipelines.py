"""`workbench plan`, `run`, `run-step` and `schedule`: plan, run and schedule a pipeline."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import find_workspace, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable

    from workbench.pipeline.executors import Executor
    from workbench.pipeline.graph import Pipeline
    from workbench.pipeline.plan import PlannedStep, StepSelection

__all__ = ()

_SCHEDULERS = ("cron", "systemd", "dagster", "airflow", "k8s")
_MAX_NEEDS_WIDTH = 40

_pipeline_argument = click.argument("pipeline", type=click.Path(path_type=Path))
_parameter_option = click.option(
    "-p", "parameters", multiple=True, metavar="KEY=VALUE", help="Pipeline parameter. Repeatable."
)
_only_option = click.option(
    "--only", multiple=True, metavar="STEP", help="Run only this step. Repeatable."
)
_from_option = click.option(
    "--from", "start", metavar="STEP", help="Run this step and all that depend on it."
)
_fresh_option = click.option("--fresh", is_flag=True, help="Run every step, ignoring the cache.")


@click.command()
@click.argument("pipeline", type=click.Path(path_type=Path), required=False)
@_parameter_option
@_only_option
@_from_option
@_fresh_option
@click.option("--schema", is_flag=True, help="Print the JSON schema of pipeline files.")
@json_option
def plan(
    pipeline: Path | None,
    parameters: tuple[str, ...],
    only: tuple[str, ...],
    start: str | None,
    fresh: bool,
    schema: bool,
    as_json: bool,
) -> None:
    """Show what PIPELINE would run, and why. Starts nothing."""
    if schema:
        from workbench.pipeline.pipeline_file import pipeline_json_schema

        click.echo(json.dumps(pipeline_json_schema(), indent=1))
        return
    if pipeline is None:
        raise click.UsageError("Missing argument 'PIPELINE'.")
    loaded = _load_pipeline(pipeline, _parse_parameters(parameters))
    _print_plan(loaded, _select_steps(loaded, only, start, fresh), as_json=as_json)


@click.command()
@_pipeline_argument
@_parameter_option
@_only_option
@_from_option
@_fresh_option
@click.option("--dry-run", is_flag=True, help="Only show the plan, like `workbench plan`.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run steps as local processes or as Ray tasks.",
)
@click.option(
    "--ray-address", metavar="ADDRESS", help="Ray cluster.  [default: a local one is started]"
)
@click.option(
    "--artifacts",
    metavar="URL",
    help="Storage for records if Ray's workers do not share this workspace's folder: file://, s3://"
    " or another fsspec URL.  [env: WORKBENCH_ARTIFACTS]",
)
@click.option(
    "--notify",
    "targets",
    multiple=True,
    metavar="URL|mailto:PERSON",
    help="Tell them when the run waits for people, is refused or fails. Repeatable.  "
    "[env: WORKBENCH_NOTIFY]",
)
@json_option
def run(  # noqa: PLR0913, PLR0917 - each is an option of the command
    pipeline: Path,
    parameters: tuple[str, ...],
    only: tuple[str, ...],
    start: str | None,
    fresh: bool,
    dry_run: bool,
    executor: str,
    ray_address: str | None,
    artifacts: str | None,
    targets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run PIPELINE; steps with nothing changed are skipped, so a rerun continues the last run.

    Ends with the gates, what was quarantined by reason, where to look and what to do next.

    Exit status: 0 succeeded, 3 refused by a gate, 4 waiting for people, 130 cancelled, any other a
    failure.
    """
    from workbench.cli.runs import TerminalDisplay, quarantined_inputs, run_summary
    from workbench.pipeline import notify
    from workbench.pipeline.run import run_pipeline
    from workbench.pipeline.runs import earlier_durations, mlflow_url, new_run_id

    targets = notify.check_targets(targets or os.environ.get(notify.NOTIFY_VARIABLE, "").split())
    loaded = _load_pipeline(pipeline, _parse_parameters(parameters))
    selection = _select_steps(loaded, only, start, fresh)
    if dry_run:
        _print_plan(loaded, selection, as_json=as_json)
        return
    workspace, make_executor = find_workspace(), _executor(executor, ray_address, artifacts)
    run_id = new_run_id(workspace)
    earlier = earlier_durations(workspace, loaded.name)
    info(f"run {run_id} of {loaded.name}: {counted(len(loaded.steps), 'step')}")
    needs = {name: step.needs for name, step in loaded.steps.items()}
    with TerminalDisplay(needs, earlier) as display:
        report = run_pipeline(
            workspace,
            loaded,
            display,
            choice=selection,
            executor=make_executor,
            run_id=run_id,
        )
    for problem in notify.notify(targets, report, mlflow_url(workspace, run_id)):
        info(problem)
    quarantined = quarantined_inputs(workspace, report)
    text = run_summary(workspace, report, quarantined)
    value = {**report.model_dump(mode="json"), "quarantined": quarantined}
    print_result(value, as_json=as_json, text=text)
    if as_json:
        info(text)
    sys.exit(int(report.exit_status))


@click.command("run-step", hidden=True)
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def run_step(spec: Path) -> None:
    """Run the step that SPEC describes; its result is written beside SPEC."""
    from workbench.core.processes import die_with_parent
    from workbench.pipeline import unit

    die_with_parent()
    sys.exit(int(unit.run_step(spec).status))


def _executor(name: str, ray_address: str | None, url: str | None) -> Callable[[], Executor]:
    if name == "ray":
        from workbench.pipeline.executors.artifacts import ARTIFACTS_VARIABLE, ArtifactStore
        from workbench.pipeline.executors.ray_executor import RayExecutor

        url = url or os.environ.get(ARTIFACTS_VARIABLE)
        artifacts = ArtifactStore(url) if url else None
        return lambda: RayExecutor(ray_address, artifacts=artifacts)
    for option, value in (("--ray-address", ray_address), ("--artifacts", url)):
        if value:
            raise ParameterError(f"{option} requires --executor ray")
    from workbench.pipeline.executors.local import LocalExecutor

    return LocalExecutor


def _load_pipeline(path: Path, parameters: dict[str, str]) -> Pipeline:
    from workbench.pipeline.graph import load_pipeline

    return load_pipeline(path, parameters, base=Path.cwd())


def _parse_parameters(options: tuple[str, ...]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign:
            raise ParameterError("invalid -p", where=option, hint="Write -p KEY=VALUE")
        parameters[name] = value
    return parameters


def _select_steps(
    pipeline: Pipeline, only: tuple[str, ...], start: str | None, fresh: bool
) -> StepSelection:
    from workbench.pipeline.plan import select_steps

    return select_steps(pipeline, only=only, start=start, fresh=fresh)


def _print_plan(pipeline: Pipeline, selection: StepSelection, *, as_json: bool) -> None:
    from workbench.pipeline.plan import plan_pipeline

    steps = plan_pipeline(pipeline, find_workspace(), selection)
    value = {
        "pipeline": pipeline.name,
        "parameters": pipeline.parameters,
        "steps": [_planned_step_as_json(step) for step in steps],
    }
    print_result(value, as_json=as_json, text=_plan_text(steps))


def _planned_step_as_json(planned: PlannedStep) -> Json:
    return {
        "name": planned.name,
        "action": planned.action,
        "reasons": list(planned.reasons),
        "notebook": planned.step.definition.notebook or planned.step.base,
        "needs": list(planned.step.needs),
        "key": planned.key.digest if planned.key else None,
    }


def _plan_text(steps: list[PlannedStep]) -> str:
    """A line for each step: action, name, the steps it needs, and the reasons."""
    name_width = max((len(step.name) for step in steps), default=0)
    needs = [f"← {', '.join(step.step.needs)}" if step.step.needs else "" for step in steps]
    needs_width = min(max(map(len, needs), default=0), _MAX_NEEDS_WIDTH)
    lines = [
        f"{step.action:5} {step.name:{name_width}}  {needed:{needs_width}}"
        f"  {'; '.join(step.reasons)}"
        for step, needed in zip(steps, needs, strict=True)
    ]
    counts = {action: sum(step.action == action for step in steps) for action in ("run", "skip")}
    return "\n".join([*lines, f"{counts['run']} to run, {counts['skip']} to skip"])


@click.command()
@_pipeline_argument
@click.option(
    "--for", "system", type=click.Choice(_SCHEDULERS), required=True, help="Scheduler to write for."
)
@_parameter_option
@click.option(
    "--at",
    metavar="CRON",
    help="Time, such as '30 2 * * mon-fri' or @daily.  [default: the pipeline's schedule]",
)
@click.option(
    "--timezone", metavar="ZONE", help="Time zone of --at, such as Europe/Berlin.  [default: UTC]"
)
@click.option(
    "--image", default="workbench:latest", show_default=True, help="Container image, for k8s."
)
@click.option(
    "-o",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write into.  [default: print the files]",
)
@json_option
def schedule(
    pipeline: Path,
    system: str,
    parameters: tuple[str, ...],
    at: str | None,
    timezone: str | None,
    image: str,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Write the files with which another scheduler runs PIPELINE. Installs and starts nothing."""
    from workbench.pipeline.schedules import SCHEDULERS, make_job

    values = _parse_parameters(parameters)
    job = make_job(
        _load_pipeline(pipeline, values),
        find_workspace(),
        values,
        at=at,
        timezone=timezone,
        image=image,
        folder=Path.cwd(),
    )
    files = SCHEDULERS[system].emit(job)
    install = SCHEDULERS[system].install.format(
        folder=shlex.quote(str(folder or ".")), name=job.name
    )
    if folder is not None:
        _write_files(folder, files)
    value = {
        "pipeline": job.name,
        "for": system,
        "cron": job.time.text,
        "timezone": job.timezone,
        "files": files if folder is None else {name: str(folder / name) for name in files},
        "install": install,
    }
    print_result(value, as_json=as_json, text=_files_text(files, folder))
    if folder is not None:
        info(f"next: {install}")


def _write_files(folder: Path, files: dict[str, str]) -> None:
    try:
        for name, text in files.items():
            write_atomic(folder / name, text.encode())
    except OSError as error:
        raise ParameterError(
            f"cannot write to the folder of -o: {error.strerror}", where=folder
        ) from error


def _files_text(files: dict[str, str], folder: Path | None) -> str:
    if folder is not None:
        return "\n".join(str(folder / name) for name in files)
    if len(files) == 1:
        return next(iter(files.values())).rstrip("\n")
    return "\n".join(f"# ---- {name}\n{text}" for name, text in files.items())
