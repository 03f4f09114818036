"""`workbench plan`, `run`, `run-step` and `schedule`: plan, run and schedule a pipeline."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import info, json_option, print_result
from workbench.core.errors import ParameterError
from workbench.core.workspace import find_workspace, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable

    from workbench.pipeline.executors import Executor
    from workbench.pipeline.graph import Pipeline
    from workbench.pipeline.plan import PlannedStep, StepSelection


_pipeline_argument = click.argument("pipeline", type=click.Path(path_type=Path))
_parameter_option = click.option(
    "-p", "given", multiple=True, metavar="KEY=VALUE", help="A pipeline parameter; repeatable."
)
_only_option = click.option(
    "--only", multiple=True, metavar="STEP", help="Run this step and no other; repeatable."
)
_from_option = click.option(
    "--from", "start", metavar="STEP", help="Run this step and all below it, changed or not."
)
_fresh_option = click.option(
    "--fresh", is_flag=True, help="Run every step, even those with nothing changed."
)


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
    given: tuple[str, ...],
    only: tuple[str, ...],
    start: str | None,
    fresh: bool,
    schema: bool,
    as_json: bool,
) -> None:
    """Show what PIPELINE would run, and why. Starts nothing."""
    if schema:
        from workbench.pipeline import pipeline_file

        click.echo(json.dumps(pipeline_file.pipeline_json_schema(), indent=1))
        return
    if pipeline is None:
        raise click.UsageError("Missing argument 'PIPELINE'.")
    loaded = _load_pipeline(pipeline, given)
    _show_plan(loaded, _choose_steps(loaded, only, start, fresh), as_json=as_json)


@click.command()
@_pipeline_argument
@_parameter_option
@_only_option
@_from_option
@_fresh_option
@click.option("--dry-run", is_flag=True, help="Only show what would run, as `workbench plan` does.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where steps run: processes here, or Ray tasks.",
)
@click.option("--ray-address", metavar="ADDRESS", help="A Ray cluster; else Ray is started here.")
@click.option(
    "--artifacts",
    metavar="URL",
    help="Where records travel by when Ray's workers do not see this workspace: file://, s3:// or "
    "any other that fsspec knows. Also WORKBENCH_ARTIFACTS.",
)
@json_option
def run(  # noqa: PLR0913, PLR0917 - each is an option of the command
    pipeline: Path,
    given: tuple[str, ...],
    only: tuple[str, ...],
    start: str | None,
    fresh: bool,
    dry_run: bool,
    executor: str,
    ray_address: str | None,
    artifacts: str | None,
    as_json: bool,
) -> None:
    """Run PIPELINE; a rerun goes on where the last one stopped.

    Exit status: 0 succeeded, 3 refused by a gate, 4 waiting for people, anything else a failure.
    """
    from workbench.cli.runs import RunDisplay, run_summary
    from workbench.pipeline import run as report

    loaded = _load_pipeline(pipeline, given)
    choice = _choose_steps(loaded, only, start, fresh)
    if dry_run:
        _show_plan(loaded, choice, as_json=as_json)
        return
    workspace, where = find_workspace(), _executor(executor, ray_address, artifacts)
    with RunDisplay(list(loaded.steps)) as display:
        made = report.run_pipeline(workspace, loaded, display, choice=choice, executor=where)
    text = run_summary(workspace, made)
    print_result(report.report_as_json(made), as_json=as_json, text=text)
    if as_json:
        info(text)
    sys.exit(int(made.exit_status))


@click.command("run-step", hidden=True)
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def run_step(spec: Path) -> None:
    """Run the one step that SPEC describes; its result is written beside SPEC."""
    from workbench.core.processes import die_with_parent
    from workbench.pipeline import unit

    die_with_parent()
    sys.exit(int(unit.run_step(spec).status))


def _executor(name: str, ray_address: str | None, url: str | None) -> Callable[[], Executor]:
    if name == "ray":
        from workbench.pipeline.executors import artifacts
        from workbench.pipeline.executors.ray_executor import RayExecutor

        url = url or os.environ.get(artifacts.ARTIFACTS_VARIABLE)
        kept = artifacts.ArtifactStore(url) if url else None
        return lambda: RayExecutor(ray_address, artifacts=kept)
    for option, given in (("--ray-address", ray_address), ("--artifacts", url)):
        if given:
            raise ParameterError(f"{option} is for --executor ray")
    from workbench.pipeline.executors.local import LocalExecutor

    return LocalExecutor


def _load_pipeline(path: Path, given: tuple[str, ...]) -> Pipeline:
    from workbench.pipeline import graph

    return graph.load_pipeline(path, _parse_parameters(given), base=Path.cwd())


def _parse_parameters(given: tuple[str, ...]) -> dict[str, str]:
    """``-p KEY=VALUE`` options as a mapping."""
    texts: dict[str, str] = {}
    for pair in given:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ParameterError(f"-p {pair!r} is not of the form KEY=VALUE")
        texts[name] = value
    return texts


def _choose_steps(
    pipeline: Pipeline, only: tuple[str, ...], start: str | None, fresh: bool
) -> StepSelection:
    from workbench.pipeline import plan as planning

    return planning.select_steps(pipeline, only=only, start=start, fresh=fresh)


def _show_plan(pipeline: Pipeline, choice: StepSelection, *, as_json: bool) -> None:
    from workbench.pipeline import plan as planning

    steps = planning.plan_pipeline(pipeline, find_workspace(), choice)
    value = {
        "pipeline": pipeline.name,
        "parameters": pipeline.parameters,
        "steps": [_planned_step_as_json(step) for step in steps],
    }
    print_result(value, as_json=as_json, text=_plan_text(pipeline, steps))


def _planned_step_as_json(planned: PlannedStep) -> dict[str, Any]:
    return {
        "name": planned.name,
        "action": planned.action,
        "reasons": list(planned.reasons),
        "notebook": planned.step.definition.notebook or planned.step.base,
        "needs": list(planned.step.needs),
        "key": planned.key.digest if planned.key else None,
    }


def _plan_text(pipeline: Pipeline, steps: list[PlannedStep]) -> str:
    """A line a step: what is done, its name, what it reads from, and why."""
    width = max((len(step.name) for step in steps), default=0)
    reads = [f"← {', '.join(step.step.needs)}" if step.step.needs else "" for step in steps]
    room = min(max((len(text) for text in reads), default=0), 40)
    lines = [
        f"{step.action:5} {step.name:{width}}  {above:{room}}  {'; '.join(step.reasons)}"
        for step, above in zip(steps, reads, strict=True)
    ]
    counts = {action: sum(step.action == action for step in steps) for action in ("run", "skip")}
    return "\n".join([*lines, f"{counts['run']} to run, {counts['skip']} to skip"])


# ---- ``schedule``: a pipeline in the form that somebody else's scheduler wants.


_SCHEDULERS = ("cron", "systemd", "dagster", "airflow", "k8s")


@click.command()
@_pipeline_argument
@click.option("--for", "system", type=click.Choice(_SCHEDULERS), required=True, help="Who runs it.")
@_parameter_option
@click.option(
    "--at", metavar="CRON", help="When: '30 2 * * mon-fri', or @daily; else as the file says."
)
@click.option("--timezone", metavar="ZONE", help="Of --at, such as Europe/Berlin; else UTC.")
@click.option(
    "--image", default="workbench:latest", show_default=True, help="For k8s: the image to run."
)
@click.option(
    "-o", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder to write into."
)
@json_option
def schedule(
    pipeline: Path,
    system: str,
    given: tuple[str, ...],
    at: str | None,
    timezone: str | None,
    image: str,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Write what another scheduler needs to run PIPELINE; nothing is installed or started.

    Without -o the files are printed.
    """
    from workbench.pipeline import graph
    from workbench.pipeline.schedules import job
    from workbench.pipeline.schedules.emitters import SCHEDULERS

    texts = _parse_parameters(given)
    loaded = graph.load_pipeline(pipeline, texts, base=Path.cwd())
    made = job.make_job(
        loaded,
        find_workspace(),
        texts,
        at=at,
        timezone=timezone,
        image=image,
        folder=Path.cwd(),
    )
    files = SCHEDULERS[system].emit(made)
    install = SCHEDULERS[system].install.format(folder=folder or ".", name=made.name)
    if folder is not None:
        _write_files(folder, files)
    value = {
        "pipeline": made.name,
        "for": system,
        "cron": made.time.text,
        "timezone": made.timezone,
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
            f"the folder of -o cannot be written: {error.strerror}", where=folder
        ) from error


def _files_text(files: dict[str, str], folder: Path | None) -> str:
    if folder is not None:
        return "\n".join(str(folder / name) for name in files)
    if len(files) == 1:
        return next(iter(files.values())).rstrip("\n")
    return "\n".join(f"# ---- {name}\n{text}" for name, text in files.items())
