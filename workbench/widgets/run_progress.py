"""Progress of a pipeline run, with a button to cancel it.

The widget reads the files that a run writes, so it shows any run of the workspace, including one
started in a terminal, and finds a run again after the kernel was restarted.
"""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import ipywidgets as widgets

from workbench.core.errors import WorkbenchError
from workbench.core.workspace import HOME_VARIABLE, Workspace, find_workspace
from workbench.pipeline import runs
from workbench.pipeline.runs import RunState, StepState
from workbench.pipeline.step_output import StepFiles

__all__ = ()

_POLL_S = 0.5
_CANCEL_WAIT_S = 20.0
_MAX_ERROR_CHARS = 1500
_STATE_STYLES = {
    "ran": ("✓", "#2f855a", "success"),
    "succeeded": ("✓", "#2f855a", "success"),
    "skipped": ("·", "#6b7280", ""),
    "running": ("→", "#2563eb", "info"),
    "waiting": ("…", "#b7791f", "warning"),
    "failed": ("✗", "#c0392b", "danger"),
    "refused": ("✗", "#c0392b", "danger"),
    "killed": ("✗", "#c0392b", "danger"),
    "unreadable": ("✗", "#c0392b", "danger"),
    "cancelled": ("■", "#6b7280", ""),
}
_LINKS = {"mlflow": "metrics, files and notebooks in MLflow", "label-studio": "Label Studio"}
_PENDING_STYLE = (" ", "#9aa4b5", "")
_PENDING_COLOUR = "#cbd2dc"


class RunProgress(widgets.VBox):  # type: ignore[misc]
    """Watches a run until it ends.

    Args:
        run: Run id, its first characters, or ``latest``.
        workspace: By default, that of the current folder.

    Attributes:
        state: The run's last state; None while a run that was just started has no file.
        cancel_button: Cancels the run; ``cancel_button.click()`` does so from code.

    Raises:
        ParameterError: There is no such run.
    """

    def __init__(self, run: str = runs.LATEST_RUN, *, workspace: Workspace | None = None) -> None:
        self.workspace = workspace or find_workspace()
        self.state: RunState | None = runs.find_run(self.workspace, run)
        self._process: _RunProcess | None = None
        self._build()

    @classmethod
    def of(cls, process: _RunProcess, workspace: Workspace) -> RunProgress:
        """Watch a run that was just started and has no file yet."""
        widget = cls.__new__(cls)
        widget.workspace, widget.state, widget._process = workspace, None, process
        widget._build()
        return widget

    def wait(self, timeout_s: float | None = None) -> RunState | None:
        """Block until the run has ended, or ``timeout_s`` seconds; returns the last state."""
        if self._watcher is not None:
            self._watcher.join(timeout_s)
        return self.state

    def refresh(self) -> bool:
        """Read the state once; returns whether the run goes on."""
        if self._process is not None:
            self._process.process.poll()  # reaps the process
        if self.state is None:
            return self._await_file()
        self.state = runs.find_run(self.workspace, self.state.run_id)
        self._show(self.state)
        return self.state.alive

    def _build(self) -> None:
        self.heading = widgets.HTML()
        self.cancel_button = widgets.Button(
            description="Cancel", icon="stop", layout=widgets.Layout(width="110px")
        )
        self.cancel_button.on_click(lambda _: self._cancel())
        self.steps = widgets.VBox()
        self.closing = widgets.HTML()
        self._rows: dict[str, _StepRow] = {}
        top = widgets.HBox([self.heading, self.cancel_button], layout=_spread_layout())
        super().__init__([top, self.steps, self.closing])
        self._watcher: threading.Thread | None = None
        if self.refresh():
            self._watcher = threading.Thread(target=self._watch, name="run-progress", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_S)
            try:
                if not self.refresh():
                    return
            except WorkbenchError as error:
                self.closing.value = _error_html(error.what, error.hint)
                return

    def _await_file(self) -> bool:
        """Find the run of our process; show the error when it exited without one."""
        assert self._process is not None  # noqa: S101 - for mypy: a run without a file has one
        has_exited = self._process.process.poll() is not None
        for run in runs.list_runs(self.workspace):
            if run.pid == self._process.process.pid and self._process.may_be(run):
                self.state = run
                self._show(run)
                return run.alive
        self.heading.value = "<b>starting …</b>"
        if has_exited:
            self.heading.value = "<b>the run did not start</b>"
            self.closing.value = self._process.error_html()
            self.cancel_button.disabled = True
        return not has_exited

    def _cancel(self) -> None:
        self.cancel_button.disabled = True
        self.cancel_button.description = "stopping …"
        threading.Thread(target=self._stop, name="run-cancel", daemon=True).start()

    def _stop(self) -> None:
        try:
            if self.state is not None:
                runs.cancel_run(self.workspace, self.state, wait_s=_CANCEL_WAIT_S)
            elif self._process is not None:
                self._process.process.terminate()
        except WorkbenchError as error:
            self.closing.value = _error_html(error.what, error.hint)

    def _show(self, run: RunState) -> None:
        mark, colour, _ = _STATE_STYLES.get(run.state, _PENDING_STYLE)
        took = "" if run.seconds is None else f" · {run.seconds:.0f} s"
        self.heading.value = (
            f"<b>{html.escape(run.pipeline)}</b> {html.escape(run.run_id)}{took} · "
            f"<b style='color:{colour}'>{mark} {run.state}</b>"
        )
        for step in run.steps:
            if step.name not in self._rows:
                self._rows[step.name] = _StepRow(step.name)
                self.steps.children = [row.box for row in self._rows.values()]
            self._rows[step.name].show(step, runs.step_folder(self.workspace, run, step), run.state)
        if not run.alive:
            self.cancel_button.layout.display = "none"
            self.closing.value = _closing_html(self.workspace, run)


def run(
    pipeline: str | Path, *, workspace: Workspace | None = None, **parameters: Any
) -> RunProgress:
    """Start ``workbench run PIPELINE`` and show its progress.

    The run is a separate process: it continues when the kernel is restarted, and ``RunProgress()``
    then finds it again.

    Args:
        pipeline: The pipeline's file, relative to the current folder or the project.
        workspace: By default, that of the current folder.
        parameters: Parameters of the pipeline.
    """
    workspace = workspace or find_workspace()
    folder = Path.cwd() if Path(pipeline).exists() else workspace.root.parent
    command = [sys.executable, "-m", "workbench", "run", str(pipeline), "--json"]
    return RunProgress.of(
        _RunProcess([*command, *_parameter_options(parameters)], folder, workspace), workspace
    )


class _StepRow:
    """One step: its name, a bar, seconds, and the reason for its status."""

    def __init__(self, name: str) -> None:
        self.name = widgets.HTML(layout=widgets.Layout(flex="0 0 170px"))
        self.bar = widgets.IntProgress(0, 0, 100, layout=widgets.Layout(flex="0 0 180px"))
        self.text = widgets.HTML(layout=widgets.Layout(flex="1 1 0"))
        self.box = widgets.HBox([self.name, self.bar, self.text])
        self._label = html.escape(name)
        self._items: tuple[int, int] | None = None
        self._files: StepFiles | None = None

    def show(self, step: StepState, folder: Path, run_state: str) -> None:
        status = run_state if (step.status, run_state) == ("running", "killed") else step.status
        mark, colour, style = _STATE_STYLES.get(status, _PENDING_STYLE)
        self.name.value = f"<span style='color:{colour}'>{mark}</span> {self._label}"
        self.bar.bar_style = style
        self.bar.style.bar_color = None if style else _PENDING_COLOUR
        parts = [status]
        if status == "running":
            self._files = self._files or StepFiles(folder)
            self._items = self._files.progress() or self._items
        if self._items and status in ("running", "ran"):
            parts.append(f"{self._items[0]} of {self._items[1]}")
        if step.seconds:
            parts.append(f"{step.seconds:.1f} s")
        if step.reason:
            parts.append(step.reason)
        self.bar.value = _bar_percent(status, self._items)
        self.text.value = (
            "<div style='color:#667084;font-size:12px;line-height:1.3;padding:7px 0 0 6px'>"
            f"{html.escape(' · '.join(parts))}</div>"
        )


class _RunProcess:
    """A ``workbench run`` process, and its output so far."""

    def __init__(self, command: list[str], folder: Path, workspace: Workspace) -> None:
        # Open while the run is watched; the run keeps writing afterwards.
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._started = time.time()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, HOME_VARIABLE: str(workspace.root)},
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,  # the run survives an interrupt or restart of the kernel
        )

    def may_be(self, run: RunState) -> bool:
        """Whether ``run`` can be this process's: process ids are reused."""
        return run.pid_started is None or run.pid_started > self._started - 5

    def error_html(self) -> str:
        """The error from the ``--json`` output, or the end of standard error."""
        try:
            error = json.loads(_read_tail(self._stdout))["error"]
            where = f" ({error['where']})" if error.get("where") else ""
            return _error_html(f"{error['message']}{where}", error.get("hint"))
        except (ValueError, KeyError, TypeError):
            return f"<pre>{html.escape(_read_tail(self._stderr))}</pre>"


def _parameter_options(parameters: Mapping[str, Any]) -> list[str]:
    """Options ``-p NAME=VALUE``: texts and paths as they are, other values as JSON."""
    options: list[str] = []
    for key, value in parameters.items():
        text = str(value) if isinstance(value, str | Path) else json.dumps(value)
        options += ["-p", f"{key}={text}"]
    return options


def _bar_percent(status: str, items: tuple[int, int] | None) -> int:
    """How full a step's bar is, percent."""
    if status in ("ran", "skipped", "failed", "waiting", "killed"):
        return 100 if status != "waiting" else 50
    if status == "running":
        return 100 * items[0] // max(items[1], 1) if items else 8
    return 0


def _closing_html(workspace: Workspace, run: RunState) -> str:
    """Where to look, and what to do next."""
    from workbench import services

    lines = [f"<code>workbench logs {run.run_id}</code> shows the output of the steps"]
    states = services.status(workspace, ("mlflow", "label-studio"))
    look = "target='_blank' rel='noopener' style='color:#2563eb'"
    for name, words in _LINKS.items():
        state = states.get(name)
        if state and state.usable and state.url and (name == "mlflow" or run.state == "waiting"):
            url = (
                runs.mlflow_url(workspace, run.run_id) if name == "mlflow" else None
            ) or state.url
            lines.append(f"<a href='{html.escape(url, quote=True)}' {look}>{words}</a>")
    if run.state in ("failed", "killed", "cancelled", "waiting"):
        lines.append("starting the same run again resumes it")
    return f"<div style='font-size:12px'>{' · '.join(lines)}</div>"


def _error_html(what: str, hint: str | None) -> str:
    more = f"<br>{html.escape(hint)}" if hint else ""
    return f"<b style='color:#c0392b'>{html.escape(what)}</b>{more}"


def _read_tail(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")[-_MAX_ERROR_CHARS:]


def _spread_layout() -> Any:
    return widgets.Layout(justify_content="space-between", align_items="center", width="100%")
