"""`workbench runs`, `logs` and `cancel`, and how a run is shown while it runs."""

from __future__ import annotations

import itertools
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import info, json_option, print_result
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace, find_workspace
from workbench.pipeline.run import RunReport, StepReport
from workbench.records.base import GateReport, Verdict, kind_of
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.pipeline.runs import RunState


_STATE_MARKS = {
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

_run_argument = click.argument("run_id", metavar="[RUN]", default="latest")


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
    from workbench.pipeline import runs as history
    from workbench.records.store import Store
    from workbench.training.sweeps import weekly_trainings

    workspace = find_workspace()
    found = list(itertools.islice(history.list_runs(workspace, pipeline), limit or None))
    of = f" of {pipeline!r}" if pipeline else ""
    text = "\n".join(_run_line(run) for run in found) or f"no runs{of} in {workspace.root}"
    this_week, week_before = weekly_trainings(Store(workspace))
    if this_week or week_before:
        text += f"\n\ntrainings this week: {this_week}, the week before: {week_before}"
    value = {
        "runs": [history.run_as_json(run) for run in found],
        "trainings": {"this_week": this_week, "week_before": week_before},
    }
    print_result(value, as_json=as_json, text=text)


@runs.command()
@_run_argument
@json_option
def show(run_id: str, as_json: bool) -> None:
    """Show the steps of RUN: an id, the beginning of one, or `latest`."""
    from workbench.pipeline import runs as history

    workspace = find_workspace()
    run = history.find_run(workspace, run_id)
    page = history.mlflow_url(workspace, run)
    value = {**history.run_as_json(run), "url": page}
    print_result(value, as_json=as_json, text=_run_text(run, page))


@click.command()
@_run_argument
@click.argument("step", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on writing until the run has ended.")
@json_option
def logs(run_id: str, step: str | None, follow: bool, as_json: bool) -> None:
    """Print what the steps of RUN said: their cells' output, their log, a failure's traceback.

    RUN is an id, the beginning of one, or `latest`; STEP is one of its steps.
    """
    from workbench.pipeline import runs as history
    from workbench.pipeline import step_output

    workspace = find_workspace()
    run = history.find_run(workspace, run_id)
    if step is not None:
        history.find_step(run, step)
    if follow:
        if as_json:
            raise ParameterError("--follow writes lines and --json one object: give one of them")
        _follow_logs(workspace, run, step)
        return
    steps = [one for one in run.steps if step in (None, one.name)]
    told = [step_output.read_log(workspace, run, one) for one in steps]
    value = {"run_id": run.run_id, "status": run.state, "steps": [one.as_json() for one in told]}
    parts = []
    for state, one in zip(steps, told, strict=True):
        said = one.as_text() or (state.reason if state.status == "skipped" else "")
        parts.append(f"==> {one.name}: {one.status}\n{said}".rstrip())
    print_result(
        value, as_json=as_json, text="\n\n".join(parts) or f"run {run.run_id} has no steps yet"
    )


@click.command()
@_run_argument
@click.option("--wait", default=20.0, show_default=True, help="Seconds to wait for its end.")
@json_option
def cancel(run_id: str, wait: float, as_json: bool) -> None:
    """Stop RUN: its steps are ended, what has finished is kept, the next run goes on from there.

    Exit status: 0 when it has stopped, 1 when it had not yet after the wait.
    """
    from workbench.pipeline import runs as history

    workspace = find_workspace()
    run = history.find_run(workspace, run_id)
    if run.alive:
        info(f"stopping {run.run_id} of {run.pipeline} …")
    if run.alive and run.elsewhere:
        info(f"  it runs on {run.host}, which sees within seconds that it is asked to stop")
    run = history.cancel_run(workspace, run, wait_s=wait)
    stopped = not run.alive
    text = _run_text(run)
    if not stopped:
        text += f"\n\nAsked to stop, but still running after {wait:g} s; `workbench logs -f` tells"
    print_result({**history.run_as_json(run), "stopped": stopped}, as_json=as_json, text=text)
    sys.exit(0 if stopped else 1)


def _follow_logs(workspace: Workspace, run: RunState, step: str | None) -> None:
    from workbench.pipeline import step_output

    info(f"following {run.run_id} of {run.pipeline} (Ctrl-C leaves it running)")
    try:
        ended = step_output.follow_logs(workspace, run.run_id, click.echo, step)
    except KeyboardInterrupt:
        info(f"left; run {run.run_id} goes on")
        return
    info(f"run {ended.run_id}: {ended.state.upper()}")


def _run_line(run: RunState) -> str:
    counts: dict[str, int] = {}
    for step in run.steps:
        status = _step_status(run, step.status)
        counts[status] = counts.get(status, 0) + 1
    steps = ", ".join(f"{count} {status}" for status, count in counts.items())
    mark = _STATE_MARKS.get(run.state, " ")
    took = _duration(run.seconds)
    return f"{mark} {run.run_id}  {run.pipeline:16} {run.state:10} {took:>9}  {steps}"


def _run_text(run: RunState, page: str | None = None) -> str:
    lines = [f"Run {run.run_id} of {run.pipeline}: {run.state.upper()}"]
    if run.state == "killed":
        lines.append("  its process is gone; the same `workbench run` goes on from here")
    facts = {
        "file": run.pipeline_file,
        "started": run.started_at,
        "took": _duration(run.seconds),
        "process": f"{run.pid} on {run.host}" if run.alive else "",
        "parameters": " ".join(f"{key}={value}" for key, value in run.parameters.items()),
        "MLflow": page,
    }
    lines += [f"  {name:10} {value}" for name, value in facts.items() if value]
    width = max((len(step.name) for step in run.steps), default=0)
    for step in run.steps:
        status = _step_status(run, step.status)
        lines.append(
            f"  {_STATE_MARKS.get(status, ' ')} {step.name:{width}}  {status:11} "
            f"{_duration(step.seconds or None):>9}  {step.reason}".rstrip()
        )
    return "\n".join(lines)


def _step_status(run: RunState, step: str) -> str:
    """A step that was running when its runner was killed runs no more."""
    return "killed" if (step, run.state) == ("running", "killed") else step


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


# ---- A pipeline run on the screen: a line a step while it runs, and what to do when it ended.


_PROGRESS_INTERVAL_S = 10.0
_STEP_MARKS = {"ran": "✓", "skipped": "·", "waiting": "…", "failed": "✗", "not-reached": " "}


class RunDisplay:
    """Shows a live bar on a terminal, plain lines elsewhere. All of it on standard error."""

    def __init__(self, steps: list[str]) -> None:
        self._width = max(len(name) for name in steps)
        self._bar: Any = None
        self._rows: dict[str, Any] = {}
        self._told: dict[str, float] = {}

    def __enter__(self) -> RunDisplay:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("  {task.description}"),
                BarColumn(),
                TextColumn("{task.fields[of]}"),
            )
            console = Console(stderr=True)
            self._bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, message: str) -> None:
        self._print(f"  ! {message}")

    def step_started(self, name: str, reasons: tuple[str, ...]) -> None:
        if self._bar is None:
            self._print(f"  → {name:{self._width}}  {'; '.join(reasons)}")
        else:
            self._rows[name] = self._bar.add_task(f"{name:{self._width}}", total=None, of="")

    def step_progress(self, name: str, done: int, total: int) -> None:
        if name in self._rows:
            self._bar.update(self._rows[name], completed=done, total=total, of=f"{done}/{total}")
        elif time.monotonic() - self._told.get(name, 0.0) > _PROGRESS_INTERVAL_S:
            self._told[name] = time.monotonic()
            self._print(f"    {name:{self._width}}  {done} of {total}")

    def step_ended(self, step: StepReport) -> None:
        if step.name in self._rows:
            self._bar.remove_task(self._rows.pop(step.name))
        seconds = f"{step.seconds:6.1f} s" if step.seconds else " " * 8
        mark = _STEP_MARKS[step.status]
        self._print(f"  {mark} {step.name:{self._width}}  {step.status:8} {seconds}  {step.reason}")

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            info(line)


def run_summary(workspace: Workspace, made: RunReport) -> str:
    """What was made, where to look, what to do next."""
    lines = ["", f"Run {made.run_id} of {made.pipeline}: {made.status.upper()}"]
    if made.reason:
        lines.append(f"  {made.reason}")
    lines += [_gate_line(gate) for gate in made.gates]
    if made.status == "refused":
        lines.append(f"  because {_refusal_reason(workspace, made)}")
    if made.model:
        version = f"version {made.model.version}" if made.model.version else "not yet registered"
        lines.append(f"  model   {made.model.name} {version}, digest {made.model.digest[:12]}")
        lines.append(f"  bundle  {made.bundle}")
    lines += ["", "Look", *_where_to_look(workspace), "", "Next", *_next_steps(made)]
    return "\n".join(lines)


def _gate_line(gate: Any) -> str:
    value = "none" if gate.value is None else f"{gate.value:.4g}"
    mark = {Verdict.PASS: "✓", Verdict.FAIL: "✗"}.get(gate.verdict, "?")
    return (
        f"  gate    {mark} {gate.name}: {gate.verdict.value} "
        f"(value {value}, bound {gate.bound:.4g}, n {gate.n})"
    )


def _refusal_reason(workspace: Workspace, made: RunReport) -> str:
    """The first required gate that did not pass, and why."""
    store = Store(workspace)
    for ref in made.outputs.values():
        if kind_of(ref) == GateReport.KIND:
            for gate in store.get(ref, GateReport).gates:
                if gate.required and gate.verdict is not Verdict.PASS:
                    return f"{gate.name}: {gate.why}"
    return "no gate is required"


def _where_to_look(workspace: Workspace) -> list[str]:
    from workbench import services

    words = {
        "mlflow": "runs, metrics, models",
        "label-studio": "frames with boxes to label",
    }
    lines = []
    for name, state in services.status(workspace).items():
        if name not in words:
            continue
        where = state.url if state.state in ("running", "external") else "stopped; `workbench up`"
        secret = f" (log in as {state.credentials})" if state.credentials else ""
        lines.append(f"  {words[name]:28} {where}{secret}")
    lines.append(f"  {'the mined frames':28} `make lab` opens the notebook that browses them")
    lines.append(f"  {'runs, gates, coverage':28} `make apps` opens the board")
    return lines


def _next_steps(made: RunReport) -> list[str]:
    if made.status == "waiting":
        return ["  Label the frames in Label Studio, then give the same command again."]
    if made.status == "failed":
        return ["  Mend what the message says, then give the same command: it goes on from there."]
    if made.status == "cancelled":
        return ["  Give the same command again: it goes on from here."]
    lines = []
    if made.bundle:
        lines.append(f"  workbench verify {made.bundle}")
    if made.model and made.model.version:
        lines.append(f"  workbench lineage models:/{made.model.name}/{made.model.version}")
    if made.status == "refused":
        lines.insert(0, "  The candidate is recorded and signed, but did not become champion.")
    return lines or ["  workbench datasets"]
