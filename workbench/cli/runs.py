"""`workbench runs`, `logs` and `cancel`, and how a run is shown while it runs."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import info, json_option, print_result
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.workspace import Workspace, find_workspace
from workbench.records.base import GateReport, Ref, Verdict, kind_of, short_ref
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.pipeline.execution import StepReport
    from workbench.pipeline.run import GateSummary, RunReport
    from workbench.pipeline.runs import RunState

__all__ = ()

_MARKS = {
    "succeeded": "✓",
    "ran": "✓",
    "skipped": "·",
    "running": "→",
    "waiting": "…",
    "refused": "✗",
    "failed": "✗",
    "killed": "✗",
    "unreadable": "✗",
    "cancelled": "■",
}
_PROGRESS_INTERVAL_S = 10.0

_run_argument = click.argument("run_id", metavar="[RUN]", default="latest")


@click.group(invoke_without_command=True)
@click.option("--pipeline", help="Only runs of this pipeline.")
@click.option(
    "--limit", default=20, show_default=True, help="Maximum number of runs, newest first; 0: all."
)
@json_option
@click.pass_context
def runs(context: click.Context, pipeline: str | None, limit: int, as_json: bool) -> None:
    """List the runs of this workspace, newest first.

    A run whose process is gone is shown as killed; the same `workbench run` continues it.
    """
    if context.invoked_subcommand is not None:
        return
    from workbench.pipeline.runs import list_runs, run_as_json
    from workbench.training.sweeps import weekly_trainings

    workspace = find_workspace()
    listed = list(itertools.islice(list_runs(workspace, pipeline), limit or None))
    of_pipeline = f" of {pipeline!r}" if pipeline else ""
    text = "\n".join(map(_run_line, listed)) or f"no runs{of_pipeline} in {workspace.root}"
    this_week, week_before = weekly_trainings(Store(workspace))
    if this_week or week_before:
        text += f"\n\ntrainings this week: {this_week}, the week before: {week_before}"
    value = {
        "runs": [run_as_json(run) for run in listed],
        "trainings": {"this_week": this_week, "week_before": week_before},
    }
    print_result(value, as_json=as_json, text=text)


@runs.command()
@_run_argument
@json_option
def show(run_id: str, as_json: bool) -> None:
    """Show the steps of RUN: an id, its first characters, or `latest`."""
    from workbench.pipeline.runs import find_run, mlflow_url, run_as_json

    workspace = find_workspace()
    run = find_run(workspace, run_id)
    url = mlflow_url(workspace, run.run_id)
    print_result({**run_as_json(run), "url": url}, as_json=as_json, text=_run_text(run, url))


@click.command()
@_run_argument
@click.argument("step", required=False)
@click.option("-f", "--follow", is_flag=True, help="Print new output until the run ends.")
@json_option
def logs(run_id: str, step: str | None, follow: bool, as_json: bool) -> None:
    """Print the cell output, log and traceback of RUN's steps, or of one STEP.

    RUN is an id, its first characters, or `latest`.
    """
    from workbench.pipeline.runs import find_run, find_step
    from workbench.pipeline.step_output import read_log

    workspace = find_workspace()
    run = find_run(workspace, run_id)
    if step is not None:
        find_step(run, step)
    if follow:
        if as_json:
            raise ParameterError("--follow and --json cannot be combined")
        _follow_logs(workspace, run, step)
        return
    states = [state for state in run.steps if step in (None, state.name)]
    step_logs = [read_log(workspace, run, state) for state in states]
    parts = []
    for state, log in zip(states, step_logs, strict=True):
        text = log.as_text() or (state.reason if state.status == "skipped" else "")
        parts.append(f"==> {log.name}: {log.status}\n{text}".rstrip())
    value = {
        "run_id": run.run_id,
        "status": run.state,
        "steps": [log.as_json() for log in step_logs],
    }
    text = "\n\n".join(parts) or f"run {run.run_id} has no steps yet"
    if as_json:
        print_result(value, as_json=True, text="")
    else:
        click.echo(text)  # with the colours that a notebook prints


@click.command()
@_run_argument
@click.option(
    "--wait", default=20.0, show_default=True, help="Time (s) to wait for the run to end."
)
@json_option
def cancel(run_id: str, wait: float, as_json: bool) -> None:
    """Stop RUN. Finished steps are kept; the next run continues from there.

    Exit status: 0 stopped, 1 still running after the wait.
    """
    from workbench.pipeline.runs import cancel_run, find_run, run_as_json

    workspace = find_workspace()
    run = find_run(workspace, run_id)
    if run.alive:
        info(f"stopping {run.run_id} of {run.pipeline} …")
    if run.alive and run.elsewhere:
        info(f"  it runs on {run.host}, which reads the request within seconds")
    run = cancel_run(workspace, run, wait_s=wait)
    stopped = not run.alive
    text = _run_text(run)
    if not stopped:
        text += f"\n\nstill running after {wait:g} s; follow it with `workbench logs -f`"
    print_result({**run_as_json(run), "stopped": stopped}, as_json=as_json, text=text)
    sys.exit(0 if stopped else 1)


def _follow_logs(workspace: Workspace, run: RunState, step: str | None) -> None:
    from workbench.pipeline.step_output import follow_logs

    info(f"following {run.run_id} of {run.pipeline} (Ctrl-C stops following, not the run)")
    try:
        last = follow_logs(workspace, run.run_id, click.echo, step)
    except KeyboardInterrupt:
        info(f"run {run.run_id} continues")
        return
    info(f"run {last.run_id}: {last.state.upper()}")


def _run_line(run: RunState) -> str:
    counts = Counter(_step_status(run, step.status) for step in run.steps)
    steps = ", ".join(f"{count} {status}" for status, count in counts.items())
    took = _duration(run.seconds)
    return f"{_MARKS[run.state]} {run.run_id}  {run.pipeline:16} {run.state:10} {took:>9}  {steps}"


def _run_text(run: RunState, url: str | None = None) -> str:
    lines = [f"Run {run.run_id} of {run.pipeline}: {run.state.upper()}"]
    if run.state == "killed":
        lines.append("  its process is gone; the same `workbench run` continues from here")
    facts = {
        "file": run.pipeline_file,
        "started": run.started_at,
        "took": _duration(run.seconds),
        "process": f"{run.pid} on {run.host}" if run.alive else "",
        "parameters": " ".join(f"{key}={value}" for key, value in run.parameters.items()),
        "MLflow": url,
    }
    lines += [f"  {name:10} {value}" for name, value in facts.items() if value]
    width = max((len(step.name) for step in run.steps), default=0)
    for step in run.steps:
        status = _step_status(run, step.status)
        lines.append(
            f"  {_MARKS.get(status, ' ')} {step.name:{width}}  {status:11} "
            f"{_duration(step.seconds or None):>9}  {step.reason}".rstrip()
        )
    return "\n".join(lines)


def _step_status(run: RunState, status: str) -> str:
    """The status of a step, which is killed if it was running when its run was."""
    return "killed" if (status, run.state) == ("running", "killed") else status


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


class TerminalDisplay:
    """Shows a run on standard error: live progress bars on a terminal, else a line per event.

    Args:
        needs: The steps that each step needs.
        earlier: Seconds that steps took before, for the time that is left.
    """

    def __init__(
        self, needs: Mapping[str, Sequence[str]], earlier: Mapping[str, float] | None = None
    ) -> None:
        self._width = max(map(len, needs), default=0)
        self._needs = {name: tuple(of) for name, of in needs.items()}
        self._number = {name: at for at, name in enumerate(needs, start=1)}
        self._earlier = dict(earlier or {})
        self._ended: set[str] = set()
        self._started: dict[str, float] = {}
        self._bar: Any = None
        self._rows: dict[str, Any] = {}
        self._last_printed: dict[str, float] = {}

    def __enter__(self) -> TerminalDisplay:
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
        self._started[name] = time.monotonic()
        if self._bar is None:
            last = f" (last time {_duration(self._earlier[name])})" if name in self._earlier else ""
            self._print(f"  → {self._title(name)}  {'; '.join(reasons)}{last}")
        else:
            self._rows[name] = self._bar.add_task(self._title(name), total=None, of="")

    def step_progress(self, name: str, done: int, total: int) -> None:
        if name in self._rows:
            self._bar.update(self._rows[name], completed=done, total=total, of=f"{done}/{total}")
        elif time.monotonic() - self._last_printed.get(name, 0.0) > _PROGRESS_INTERVAL_S:
            self._last_printed[name] = time.monotonic()
            self._print(f"    {self._title(name)}  {done} of {total}")

    def step_ended(self, step: StepReport) -> None:
        if step.name in self._rows:
            self._bar.remove_task(self._rows.pop(step.name))
        self._ended.add(step.name)
        seconds = f"{step.seconds:6.1f} s" if step.seconds else " " * 8
        mark = _MARKS.get(step.status, " ")
        left = self.seconds_left() if step.status == "ran" else None
        about = f"; about {_duration(left)} left" if left else ""
        self._print(
            f"  {mark} {self._title(step.name)}  {step.status:8} {seconds}  {step.reason}{about}"
        )

    def seconds_left(self) -> float | None:
        """Time until the last step ends if each takes as long as before; None if one is unknown.

        Steps run side by side, so it is the longest way through those that have not ended.
        """
        left: dict[str, float] = {}
        for name, needs in self._needs.items():  # in the order of the pipeline: needs come first
            before = max((left[need] for need in needs if need in left), default=0.0)
            if name in self._ended:
                left[name] = before
                continue
            if name not in self._earlier:
                return None
            gone = time.monotonic() - self._started[name] if name in self._started else 0.0
            left[name] = before + max(0.0, self._earlier[name] - gone)
        return max(left.values(), default=0.0)

    def _title(self, name: str) -> str:
        """``step 3/10``, with the numbers aligned."""
        count = len(self._number)
        number = f"{self._number.get(name, 0):>{len(str(count))}}/{count}"
        return f"{number} {name:{self._width}}"

    def _print(self, line: str) -> None:
        if self._bar is not None:
            # One line each: a list of changed modules must not push the run out of sight.
            console = self._bar.console
            console.print(line, highlight=False, markup=False, no_wrap=True, overflow="ellipsis")
        else:
            info(line)


def quarantined_inputs(workspace: Workspace, report: RunReport) -> dict[Ref, dict[str, int]]:
    """Number of quarantined inputs by reason, for every dataset that the run ingested."""
    from workbench.records.types import DatasetVersion

    store = Store(workspace)
    refs = dict.fromkeys(
        ref for ref in report.outputs.values() if kind_of(ref) == DatasetVersion.KIND
    )
    counts = {ref: store.get(ref, DatasetVersion).quarantined for ref in refs}
    return {ref: reasons for ref, reasons in counts.items() if reasons}


def run_summary(
    workspace: Workspace, report: RunReport, quarantined: dict[Ref, dict[str, int]]
) -> str:
    """The end of `workbench run`: result, gates, quarantined inputs, where to look, what next."""
    lines = ["", f"Run {report.run_id} of {report.pipeline}: {report.status.upper()}"]
    if report.reason:
        lines.append(f"  {report.reason}")
    lines += [_gate_line(gate) for gate in report.gates]
    lines += _before_and_after(workspace, report)
    if report.status == "refused":
        lines.append(f"  reason  {_refusal_reason(workspace, report)}")
    if report.model:
        version = f"version {report.model.version}" if report.model.version else "not registered"
        lines.append(f"  model   {report.model.name} {version}, digest {report.model.digest[:12]}")
        lines.append(f"  bundle  {report.bundle}")
    lines += _quarantine_lines(quarantined)
    lines += ["", "Look", *_where_to_look(workspace, report), "", "Next", *_next_steps(report)]
    return "\n".join(lines)


def _gate_line(gate: GateSummary) -> str:
    value = "none" if gate.value is None else f"{gate.value:.4g}"
    mark = {Verdict.PASS: "✓", Verdict.FAIL: "✗"}.get(gate.verdict, "?")
    return (
        f"  gate    {mark} {gate.name}: {gate.verdict.value} "
        f"(value {value}, bound {gate.bound:.4g}, n {gate.n})"
    )


def _before_and_after(workspace: Workspace, report: RunReport) -> list[str]:
    """The judged model beside the one it was compared with, each with its interval."""
    from workbench.evaluation.gates import load_metrics

    refs = [ref for ref in report.outputs.values() if kind_of(ref) == GateReport.KIND]
    models = load_metrics(Store(workspace), refs[-1]) if refs else {}
    if not {"candidate", "reference"} <= models.keys():
        return []
    before, after = models["reference"].at(), models["candidate"].at()
    percent = f"{models['candidate'].settings.confidence:.0%} intervals"
    lines = [f"  metrics {models['reference'].name} → this model, {percent}"]
    for title, metric in (("AP50", "ap50"), ("recall", "recall"), ("precision", "precision")):
        lines.append(f"          {title:9}  {getattr(before, metric)} → {getattr(after, metric)}")
    return lines


def _refusal_reason(workspace: Workspace, report: RunReport) -> str:
    """The first required gate that did not pass, and why."""
    store = Store(workspace)
    for ref in report.outputs.values():
        if kind_of(ref) == GateReport.KIND:
            for gate in store.get(ref, GateReport).gates:
                if gate.required and gate.verdict is not Verdict.PASS:
                    return f"{gate.name}: {gate.why}"
    return "no gate is required"


def _quarantine_lines(quarantined: dict[Ref, dict[str, int]]) -> list[str]:
    lines = []
    for ref, reasons in quarantined.items():
        total = counted(sum(reasons.values()), "input")
        lines.append(f"  {total} quarantined (`workbench datasets show {short_ref(ref)}`)")
        rows = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"  {count:>8,}  {reason}" for reason, count in rows]
    return lines


def _where_to_look(workspace: Workspace, report: RunReport) -> list[str]:
    from workbench import services
    from workbench.pipeline.runs import mlflow_url
    from workbench.services.mlflow_app import USER
    from workbench.services.servers import ADMIN_EMAIL

    purposes = {
        "mlflow": ("this run, metrics, models", USER),
        "label-studio": ("frames with boxes to label", ADMIN_EMAIL),
    }
    lines = []
    for name, server in services.status(workspace).items():
        if name not in purposes:
            continue
        purpose, user = purposes[name]
        running = server.state in ("running", "external")
        address = mlflow_url(workspace, report.run_id) if name == "mlflow" else None
        where = (address or server.url) if running else "stopped; start it with `workbench up`"
        login = ""
        if server.credentials:
            login = f"\n{'':31}sign in as {user}, password in {server.credentials}"
        lines.append(f"  {purpose:28} {where}{login}")
    lines.append(f"  {'mined frames':28} `make lab` opens the notebook that shows them")
    lines.append(f"  {'runs, gates, coverage':28} `make apps` opens the board")
    return lines


def _next_steps(report: RunReport) -> list[str]:
    if report.status == "waiting":
        return ["  Label the frames in Label Studio, then run the same command again."]
    if report.status == "failed":
        return ["  Fix the error, then run the same command: it continues at the failed step."]
    if report.status == "cancelled":
        return ["  Run the same command to continue."]
    lines = []
    if report.status == "refused":
        lines.append("  The candidate is recorded and signed, but did not become champion.")
    if report.bundle:
        lines.append(f"  workbench verify {report.bundle}")
    if report.model and report.model.version:
        lines.append(f"  workbench lineage models:/{report.model.name}/{report.model.version}")
    return lines or ["  workbench datasets"]
