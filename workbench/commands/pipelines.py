"""``plan``, ``run`` and ``run-step``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.commands.common import emit, json_option, say
from workbench.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from workbench.pipeline.definition.graph import Pipeline
    from workbench.pipeline.planning.plan import Choice, PlannedStep
    from workbench.pipeline.running.executors import Executor

pipeline_argument = click.argument("pipeline", type=click.Path(path_type=Path))
parameter_option = click.option(
    "-p", "given", multiple=True, metavar="KEY=VALUE", help="A pipeline parameter; repeatable."
)
only_option = click.option(
    "--only", multiple=True, metavar="STEP", help="Run this step and no other; repeatable."
)
from_option = click.option(
    "--from", "start", metavar="STEP", help="Run this step and all below it, changed or not."
)
fresh_option = click.option(
    "--fresh", is_flag=True, help="Run every step, even those with nothing changed."
)


@click.command()
@click.argument("pipeline", type=click.Path(path_type=Path), required=False)
@parameter_option
@only_option
@from_option
@fresh_option
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
        from workbench.pipeline.definition import file as definition

        click.echo(json.dumps(definition.json_schema(), indent=1))
        return
    if pipeline is None:
        raise click.UsageError("Missing argument 'PIPELINE'.")
    loaded = _load(pipeline, given)
    _show_plan(loaded, _choice(loaded, only, start, fresh), as_json=as_json)


@click.command()
@pipeline_argument
@parameter_option
@only_option
@from_option
@fresh_option
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
    from workbench import workspace
    from workbench.commands.display import RunDisplay, closing_words
    from workbench.pipeline.running import report
    from workbench.pipeline.running import run as running

    loaded = _load(pipeline, given)
    choice = _choice(loaded, only, start, fresh)
    if dry_run:
        _show_plan(loaded, choice, as_json=as_json)
        return
    place, where = workspace.find(), _executor(executor, ray_address, artifacts)
    with RunDisplay(list(loaded.steps)) as display:
        made = running.run(place, loaded, display, choice=choice, executor=where)
    text = closing_words(place, made)
    emit(report.as_json(made), as_json=as_json, text=text)
    if as_json:
        say(text)
    sys.exit(int(made.exit_status))


@click.command("run-step", hidden=True)
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def run_step(spec: Path) -> None:
    """Run the one step that SPEC describes; its result is written beside SPEC."""
    from workbench.pipeline.steps import unit
    from workbench.processes import die_with_parent

    die_with_parent()
    sys.exit(int(unit.run_step(spec).status))


def _executor(name: str, ray_address: str | None, url: str | None) -> Callable[[], Executor]:
    if name == "ray":
        from workbench.pipeline.running import artifacts
        from workbench.pipeline.running.executors.ray_tasks import RayExecutor

        url = url or os.environ.get(artifacts.VARIABLE)
        kept = artifacts.Artifacts(url) if url else None
        return lambda: RayExecutor(ray_address, artifacts=kept)
    for option, given in (("--ray-address", ray_address), ("--artifacts", url)):
        if given:
            raise ParameterError(f"{option} is for --executor ray")
    from workbench.pipeline.running.executors.local import LocalExecutor

    return LocalExecutor


def _load(path: Path, given: tuple[str, ...]) -> Pipeline:
    from workbench.pipeline.definition import graph

    return graph.load(path, pairs(given), base=Path.cwd())


def pairs(given: tuple[str, ...]) -> dict[str, str]:
    """``-p KEY=VALUE`` options as a mapping."""
    texts: dict[str, str] = {}
    for pair in given:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ParameterError(f"-p {pair!r} is not of the form KEY=VALUE")
        texts[name] = value
    return texts


def _choice(pipeline: Pipeline, only: tuple[str, ...], start: str | None, fresh: bool) -> Choice:
    from workbench.pipeline.planning import plan as planning

    return planning.choose(pipeline, only=only, start=start, fresh=fresh)


def _show_plan(pipeline: Pipeline, choice: Choice, *, as_json: bool) -> None:
    from workbench import workspace
    from workbench.pipeline.planning import plan as planning

    steps = planning.plan(pipeline, workspace.find(), choice)
    value = {
        "pipeline": pipeline.name,
        "parameters": pipeline.parameters,
        "steps": [_as_json(step) for step in steps],
    }
    emit(value, as_json=as_json, text=_as_text(pipeline, steps))


def _as_json(planned: PlannedStep) -> dict[str, Any]:
    return {
        "name": planned.name,
        "action": planned.action,
        "reasons": list(planned.reasons),
        "notebook": planned.step.definition.notebook or planned.step.base,
        "needs": list(planned.step.needs),
        "key": planned.key.digest if planned.key else None,
    }


def _as_text(pipeline: Pipeline, steps: list[PlannedStep]) -> str:
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
