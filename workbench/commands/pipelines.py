"""``plan``, ``run`` and ``run-step``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.commands.common import emit, json_option, say
from workbench.errors import ParameterError

if TYPE_CHECKING:
    from workbench.pipeline.plan import Pipeline, PlannedStep

pipeline_argument = click.argument("pipeline", type=click.Path(path_type=Path))
parameter_option = click.option(
    "-p", "given", multiple=True, metavar="KEY=VALUE", help="A pipeline parameter; repeatable."
)


@click.command()
@pipeline_argument
@parameter_option
@json_option
def plan(pipeline: Path, given: tuple[str, ...], as_json: bool) -> None:
    """Show what PIPELINE would run, and why. Starts nothing."""
    from workbench import workspace
    from workbench.pipeline import plan as planning

    loaded = _load(pipeline, given)
    steps = planning.plan(loaded, workspace.find())
    rows = [
        {
            "name": s.name,
            "action": s.action,
            "reasons": list(s.reasons),
            "notebook": s.contract.name,
        }
        for s in steps
    ]
    value = {"pipeline": loaded.name, "parameters": loaded.parameters, "steps": rows}
    emit(value, as_json=as_json, text="\n".join(_plan_line(step) for step in steps))


@click.command()
@pipeline_argument
@parameter_option
@click.option("--fresh", is_flag=True, help="Run every step, even those with nothing changed.")
@json_option
def run(pipeline: Path, given: tuple[str, ...], fresh: bool, as_json: bool) -> None:
    """Run PIPELINE; a rerun goes on where the last one stopped.

    Exit status: 0 succeeded, 3 refused by a gate, 4 waiting for people, anything else a failure.
    """
    from workbench import workspace
    from workbench.commands.display import RunDisplay, closing_words
    from workbench.pipeline import report
    from workbench.pipeline import run as running

    place = workspace.find()
    loaded = _load(pipeline, given)
    with RunDisplay(list(loaded.definition.steps)) as display:
        made = running.run(place, loaded, display, fresh=fresh)
    text = closing_words(place, made)
    emit(report.as_json(made), as_json=as_json, text=text)
    if as_json:
        say(text)
    sys.exit(int(made.exit_status))


@click.command("run-step", hidden=True)
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def run_step(spec: Path) -> None:
    """Run the one step that SPEC describes; its result is written beside SPEC."""
    from workbench.pipeline import unit
    from workbench.processes import die_with_parent

    die_with_parent()
    sys.exit(int(unit.run_step(spec).status))


def _load(path: Path, given: tuple[str, ...]) -> Pipeline:
    from workbench.pipeline import plan as planning

    texts: dict[str, str] = {}
    for pair in given:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ParameterError(f"-p {pair!r} is not of the form KEY=VALUE")
        texts[name] = value
    return planning.load(path, texts, base=Path.cwd())


def _plan_line(step: PlannedStep) -> str:
    return f"{step.action:5} {step.name:12} {'; '.join(step.reasons)}"
