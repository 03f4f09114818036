"""Progress of a pipeline run, with a button to cancel it."""

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

from workbench.core import workspace
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import runs
from workbench.pipeline.runs import RunState, StepState
from workbench.pipeline.step_output import StepFiles

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
    "cancelled": ("✗", "#c0392b", "danger"),
}
_LINKS = {"mlflow": "metrics, files and notebooks in MLflow", "label-studio": "Label Studio"}
_PENDING_STYLE = (" ", "#9aa4b5", "")
_PENDING_COLOUR = "#cbd2dc"


class RunProgress(widgets.VBox):  # type: ignore[misc]
    """Watches a run until it has ended.

    Args:
        run: Its id, the beginning of one, or ``latest``.
        place: The workspace; by default that of the current folder.

    Attributes:
        state: The run as it was last seen; None while one that was just started has not begun.
        cancel_button: Stops the run, as ``cancel_button.click()`` does from code.
    """

    def __init__(self, run: str = runs.LATEST_RUN, *, place: Workspace | None = None) -> None:
        self.place = place or workspace.find_workspace()
        self.state: RunState | None = runs.find_run(self.place, run)
        self._process: _RunProcess | None = None
        self._build()

    @classmethod
    def of(cls, started: _RunProcess, place: Workspace) -> RunProgress:
        """Watch a run that was just started and has no file yet."""
        made = cls.__new__(cls)
        made.place, made.state, made._process = place, None, started
        made._build()
        return made

    def wait(self, timeout_s: float | None = None) -> RunState | None:
        """Hold the cell until the run has ended, or so long; returns how it then is."""
        if self._watcher is not None:
            self._watcher.join(timeout_s)
        return self.state

    def refresh(self) -> bool:
        """Look once; returns whether there is more to come."""
        if self._process is not None:
            self._process.process.poll()  # so that it does not stay a zombie
        if self.state is None:
            return self._await_file()
        self.state = runs.find_run(self.place, self.state.run_id)
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
        """Find the run that our process began; say why when it ended without one."""
        assert self._process is not None  # noqa: S101 - for mypy: a run without a file has one
        ended = self._process.process.poll() is not None
        for run in runs.list_runs(self.place):
            if run.pid == self._process.process.pid and self._process.began_before(run):
                self.state = run
                self._show(run)
                return run.alive
        self.heading.value = "<b>starting …</b>"
        if ended:
            self.heading.value = "<b>the run did not start</b>"
            self.closing.value = self._process.why()
            self.cancel_button.disabled = True
        return not ended

    def _cancel(self) -> None:
        self.cancel_button.disabled = True
        self.cancel_button.description = "stopping …"
        threading.Thread(target=self._stop, name="run-cancel", daemon=True).start()

    def _stop(self) -> None:
        try:
            if self.state is not None:
                runs.cancel_run(self.place, self.state, wait_s=_CANCEL_WAIT_S)
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
            self._rows[step.name].show(step, runs.step_folder(self.place, run, step), run.state)
        if not run.alive:
            self.cancel_button.layout.display = "none"
            self.closing.value = _closing_html(self.place, run)


class _StepRow:
    """One step: its name, a bar, seconds, and the reason for what it does."""

    def __init__(self, name: str) -> None:
        self.name = widgets.HTML(layout=widgets.Layout(flex="0 0 170px"))
        self.bar = widgets.IntProgress(0, 0, 100, layout=widgets.Layout(flex="0 0 180px"))
        self.text = widgets.HTML(layout=widgets.Layout(flex="1 1 0"))
        self.box = widgets.HBox([self.name, self.bar, self.text])
        self._label = html.escape(name)
        self._pieces: tuple[int, int] | None = None
        self._files: StepFiles | None = None

    def show(self, step: StepState, folder: Path, run_state: str) -> None:
        status = run_state if (step.status, run_state) == ("running", "killed") else step.status
        mark, colour, style = _STATE_STYLES.get(status, _PENDING_STYLE)
        self.name.value = f"<span style='color:{colour}'>{mark}</span> {self._label}"
        self.bar.bar_style = style
        self.bar.style.bar_color = None if style else _PENDING_COLOUR
        words = [status]
        if status == "running":
            self._files = self._files or StepFiles(folder)
            self._pieces = self._files.progress() or self._pieces
        if self._pieces and status in ("running", "ran"):
            words.append(f"{self._pieces[0]} of {self._pieces[1]}")
        if step.seconds:
            words.append(f"{step.seconds:.1f} s")
        if step.reason:
            words.append(step.reason)
        self.bar.value = _bar_percent(status, self._pieces)
        self.text.value = (
            "<div style='color:#667084;font-size:12px;line-height:1.3;padding:7px 0 0 6px'>"
            f"{html.escape(' · '.join(words))}</div>"
        )


class _RunProcess:
    """A ``workbench run`` in a process of its own, and what it has said so far."""

    def __init__(self, command: list[str], folder: Path, place: Workspace) -> None:
        # Open as long as the run is watched; the run writes on when nobody watches any more.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._told = tempfile.TemporaryFile()  # noqa: SIM115
        self._at = time.time()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, workspace.HOME_VARIABLE: str(place.root)},
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._told,
            start_new_session=True,  # interrupting or restarting the kernel leaves the run alone
        )

    def began_before(self, run: RunState) -> bool:
        """Whether ``run`` can be this process's: its number may have been another's earlier."""
        return run.pid_started is None or run.pid_started > self._at - 5

    def why(self) -> str:
        """What went wrong, from the object that ``--json`` prints, or its last words."""
        try:
            told = json.loads(_read_tail(self._said))["error"]
            where = f" ({told['where']})" if told.get("where") else ""
            return _error_html(f"{told['message']}{where}", told.get("hint"))
        except (ValueError, KeyError, TypeError):
            return f"<pre>{html.escape(_read_tail(self._told))}</pre>"


def run(pipeline: str | Path, *, place: Workspace | None = None, **parameters: Any) -> RunProgress:
    """Start ``workbench run PIPELINE`` and show it.

    The run is a process of its own: it goes on when the kernel is restarted, and ``RunProgress()``
    then finds it again.

    Args:
        pipeline: The pipeline's file, from the current folder or from the project's.
        parameters: Its parameters.
    """
    place = place or workspace.find_workspace()
    folder = Path.cwd() if Path(pipeline).exists() else place.root.parent
    command = [sys.executable, "-m", "workbench", "run", str(pipeline), "--json"]
    return RunProgress.of(
        _RunProcess([*command, *_parameter_options(parameters)], folder, place), place
    )


def _parameter_options(parameters: Mapping[str, Any]) -> list[str]:
    """As ``-p`` takes them: texts and paths as they are, all else as JSON."""
    words: list[str] = []
    for key, value in parameters.items():
        text = str(value) if isinstance(value, str | Path) else json.dumps(value)
        words += ["-p", f"{key}={text}"]
    return words


def _bar_percent(status: str, pieces: tuple[int, int] | None) -> int:
    """How full a step's bar is, in percent."""
    if status in ("ran", "skipped", "failed", "waiting", "killed"):
        return 100 if status != "waiting" else 50
    if status == "running":
        return 100 * pieces[0] // max(pieces[1], 1) if pieces else 8
    return 0


def _closing_html(place: Workspace, run: RunState) -> str:
    """Where to look and what to do next."""
    from workbench import services

    lines = [f"<code>workbench logs {run.run_id}</code> tells what the steps said"]
    states = services.status(place, ("mlflow", "label-studio"))
    look = "target='_blank' rel='noopener' style='color:#2563eb'"
    for name, words in _LINKS.items():
        state = states.get(name)
        if state and state.usable and state.url and (name == "mlflow" or run.state == "waiting"):
            url = (runs.mlflow_url(place, run) if name == "mlflow" else None) or state.url
            lines.append(f"<a href='{html.escape(url, quote=True)}' {look}>{words}</a>")
    if run.state in ("failed", "killed", "cancelled", "waiting"):
        lines.append("the same run started again goes on from here")
    return f"<div style='font-size:12px'>{' · '.join(lines)}</div>"


def _error_html(what: str, hint: str | None) -> str:
    more = f"<br>{html.escape(hint)}" if hint else ""
    return f"<b style='color:#c0392b'>{html.escape(what)}</b>{more}"


def _read_tail(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")[-_MAX_ERROR_CHARS:]


def _spread_layout() -> Any:
    return widgets.Layout(justify_content="space-between", align_items="center", width="100%")
