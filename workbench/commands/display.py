"""A pipeline run on the screen: a line a step while it runs, and what to do when it ended."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workbench.commands.common import say
from workbench.pipeline.running.report import RunReport, StepReport
from workbench.records.base import kind_of
from workbench.records.store import Store
from workbench.records.types import GateReport, Verdict

if TYPE_CHECKING:
    from workbench.workspace import Workspace

_TOLD_EVERY_S = 10.0
_MARKS = {"ran": "✓", "skipped": "·", "waiting": "…", "failed": "✗", "not-reached": " "}


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
        elif time.monotonic() - self._told.get(name, 0.0) > _TOLD_EVERY_S:
            self._told[name] = time.monotonic()
            self._print(f"    {name:{self._width}}  {done} of {total}")

    def step_ended(self, step: StepReport) -> None:
        if step.name in self._rows:
            self._bar.remove_task(self._rows.pop(step.name))
        seconds = f"{step.seconds:6.1f} s" if step.seconds else " " * 8
        mark = _MARKS[step.status]
        self._print(f"  {mark} {step.name:{self._width}}  {step.status:8} {seconds}  {step.reason}")

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            say(line)


def closing_words(place: Workspace, made: RunReport) -> str:
    """What was made, where to look, what to do next."""
    lines = ["", f"Run {made.run_id} of {made.pipeline}: {made.status.upper()}"]
    if made.reason:
        lines.append(f"  {made.reason}")
    lines += [_gate_line(gate) for gate in made.gates]
    if made.status == "refused":
        lines.append(f"  because {_refusal(place, made)}")
    if made.model:
        version = f"version {made.model.version}" if made.model.version else "not yet registered"
        lines.append(f"  model   {made.model.name} {version}, digest {made.model.digest[:12]}")
        lines.append(f"  bundle  {made.bundle}")
    lines += ["", "Look", *_places_to_look(place), "", "Next", *_next_steps(made)]
    return "\n".join(lines)


def _gate_line(gate: Any) -> str:
    value = "none" if gate.value is None else f"{gate.value:.4g}"
    mark = {Verdict.PASS: "✓", Verdict.FAIL: "✗"}.get(gate.verdict, "?")
    return (
        f"  gate    {mark} {gate.name}: {gate.verdict.value} "
        f"(value {value}, bound {gate.bound:.4g}, n {gate.n})"
    )


def _refusal(place: Workspace, made: RunReport) -> str:
    """The first required gate that did not pass, and why."""
    store = Store(place)
    for ref in made.outputs.values():
        if kind_of(ref) == GateReport.KIND:
            for gate in store.get(ref, GateReport).gates:
                if gate.required and gate.verdict is not Verdict.PASS:
                    return f"{gate.name}: {gate.why}"
    return "no gate is required"


def _places_to_look(place: Workspace) -> list[str]:
    from workbench import services

    words = {
        "mlflow": "runs, metrics, models",
        "label-studio": "frames with boxes to label",
    }
    lines = []
    for name, state in services.status(place).items():
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
