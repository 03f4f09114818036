"""``runs``, ``logs`` and ``cancel``: what ran, what it said, and stopping it."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

import click

from workbench.commands.common import emit, json_option, say
from workbench.errors import ParameterError

if TYPE_CHECKING:
    from workbench.pipeline.running.history import RunState
    from workbench.workspace import Workspace

_MARKS = {
    "succeeded": "✓",
    "ran": "✓",
    "skipped": "·",
    "running": "→",
    "waiting": "…",
    "refused": "✗",
    "failed": "✗",
    "killed": "✗",
    "cancelled": "✗",
}

run_argument = click.argument("run_id", metavar="[RUN]", default="latest")


@click.group(invoke_without_command=True)
@click.option("--pipeline", help="Only runs of this pipeline.")
@click.option("--limit", default=20, show_default=True, help="How many, newest first; 0 for all.")
@json_option
@click.pass_context
def runs(context: click.Context, pipeline: str | None, limit: int, as_json: bool) -> None:
    """List the runs of this workspace, newest first.

    A run whose process was killed is shown as killed; the same `workbench run` goes on from there.
    """
    if context.invoked_subcommand is not None:
        return
    from workbench import workspace
    from workbench.pipeline.running import history
    from workbench.records.store import Store
    from workbench.training.sweeps import in_a_week

    place = workspace.find()
    found = list(itertools.islice(history.runs(place, pipeline), limit or None))
    of = f" of {pipeline!r}" if pipeline else ""
    text = "\n".join(_run_line(run) for run in found) or f"no runs{of} in {place.root}"
    this_week, week_before = in_a_week(Store(place))
    if this_week or week_before:
        text += f"\n\ntrainings this week: {this_week}, the week before: {week_before}"
    value = {
        "runs": [history.as_json(run) for run in found],
        "trainings": {"this_week": this_week, "week_before": week_before},
    }
    emit(value, as_json=as_json, text=text)


@runs.command()
@run_argument
@json_option
def show(run_id: str, as_json: bool) -> None:
    """Show the steps of RUN: an id, the beginning of one, or `latest`."""
    from workbench import workspace
    from workbench.pipeline.running import history

    place = workspace.find()
    run = history.find(place, run_id)
    page = history.page_of(place, run)
    value = {**history.as_json(run), "url": page}
    emit(value, as_json=as_json, text=_run_text(run, page))


@click.command()
@run_argument
@click.argument("step", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on writing until the run has ended.")
@json_option
def logs(run_id: str, step: str | None, follow: bool, as_json: bool) -> None:
    """Print what the steps of RUN said: their cells' output, their log, a failure's traceback.

    RUN is an id, the beginning of one, or `latest`; STEP is one of its steps.
    """
    from workbench import workspace
    from workbench.pipeline.running import history
    from workbench.pipeline.running import logs as reading

    place = workspace.find()
    run = history.find(place, run_id)
    if step is not None:
        history.step_of(run, step)
    if follow:
        if as_json:
            raise ParameterError("--follow writes lines and --json one object: give one of them")
        _follow(place, run, step)
        return
    steps = [one for one in run.steps if step in (None, one.name)]
    told = [reading.read(place, run, one) for one in steps]
    value = {"run_id": run.run_id, "status": run.state, "steps": [one.as_json() for one in told]}
    parts = []
    for state, one in zip(steps, told, strict=True):
        said = one.as_text() or (state.reason if state.status == "skipped" else "")
        parts.append(f"==> {one.name}: {one.status}\n{said}".rstrip())
    emit(value, as_json=as_json, text="\n\n".join(parts) or f"run {run.run_id} has no steps yet")


@click.command()
@run_argument
@click.option("--wait", default=20.0, show_default=True, help="Seconds to wait for its end.")
@json_option
def cancel(run_id: str, wait: float, as_json: bool) -> None:
    """Stop RUN: its steps are ended, what has finished is kept, the next run goes on from there.

    Exit status: 0 when it has stopped, 1 when it had not yet after the wait.
    """
    from workbench import workspace
    from workbench.pipeline.running import history

    place = workspace.find()
    run = history.find(place, run_id)
    if run.alive:
        say(f"stopping {run.run_id} of {run.pipeline} …")
    if run.alive and run.elsewhere:
        say(f"  it runs on {run.host}, which sees within seconds that it is asked to stop")
    run = history.cancel(place, run, wait_s=wait)
    stopped = not run.alive
    text = _run_text(run)
    if not stopped:
        text += f"\n\nAsked to stop, but still running after {wait:g} s; `workbench logs -f` tells"
    emit({**history.as_json(run), "stopped": stopped}, as_json=as_json, text=text)
    sys.exit(0 if stopped else 1)


def _follow(place: Workspace, run: RunState, step: str | None) -> None:
    from workbench.pipeline.running import logs as reading

    say(f"following {run.run_id} of {run.pipeline} (Ctrl-C leaves it running)")
    try:
        ended = reading.follow(place, run.run_id, click.echo, step)
    except KeyboardInterrupt:
        say(f"left; run {run.run_id} goes on")
        return
    say(f"run {ended.run_id}: {ended.state.upper()}")


def _run_line(run: RunState) -> str:
    counts: dict[str, int] = {}
    for step in run.steps:
        status = _status(run, step.status)
        counts[status] = counts.get(status, 0) + 1
    steps = ", ".join(f"{count} {status}" for status, count in counts.items())
    mark = _MARKS.get(run.state, " ")
    return f"{mark} {run.run_id}  {run.pipeline:16} {run.state:10} {_time(run.seconds):>9}  {steps}"


def _run_text(run: RunState, page: str | None = None) -> str:
    lines = [f"Run {run.run_id} of {run.pipeline}: {run.state.upper()}"]
    if run.state == "killed":
        lines.append("  its process is gone; the same `workbench run` goes on from here")
    facts = {
        "file": run.pipeline_file,
        "started": run.started_at,
        "took": _time(run.seconds),
        "process": f"{run.pid} on {run.host}" if run.alive else "",
        "parameters": " ".join(f"{key}={value}" for key, value in run.parameters.items()),
        "MLflow": page,
    }
    lines += [f"  {name:10} {value}" for name, value in facts.items() if value]
    width = max((len(step.name) for step in run.steps), default=0)
    for step in run.steps:
        status = _status(run, step.status)
        lines.append(
            f"  {_MARKS.get(status, ' ')} {step.name:{width}}  {status:11} "
            f"{_time(step.seconds or None):>9}  {step.reason}".rstrip()
        )
    return "\n".join(lines)


def _status(run: RunState, step: str) -> str:
    """A step that was running when its runner was killed runs no more."""
    return "killed" if (step, run.state) == ("running", "killed") else step


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
