"""The runs of this workspace: ``runs/<id>/run.json``, written as the run goes and read by people.

A runner that is killed cannot write how it ended, so a run is called ``killed`` when its file says
``running`` and its process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.core import workspace
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline.graph import Pipeline

RUN_FILE = "run.json"
CANCEL_FILE = "cancel"
"""A file of this name in a run's folder asks a runner on another machine to stop."""

LATEST_RUN = "latest"
_MLFLOW_FILE = "mlflow.json"
_START_TOLERANCE_S = 2.0  # a process's start is told in clock ticks, and the clock may be corrected
_POLL_S = 0.2
_CANCEL_SENT_FILE, _SIGNAL_INTERVAL_S = "cancel-sent", 60.0


class _LenientModel(BaseModel):
    """Read leniently: a newer runner may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StepState(_LenientModel):
    """``status`` is pending, running, ran, skipped, waiting, failed or not-reached.

    ``seconds`` is None until it is known; ``folder`` holds the step's files once it started.
    """

    name: str
    status: str
    seconds: float | None = None
    reason: str = ""
    folder: str | None = None


class RunState(_LenientModel):
    """``run.json``: ``pid`` and ``pid_started`` (seconds since the epoch) name the runner."""

    schema_version: int = 1
    run_id: str
    pipeline: str
    pipeline_file: str = ""
    parameters: dict[str, Any] = {}
    pid: int | None = None
    pid_started: float | None = None
    host: str = ""
    started_at: str = ""
    ended_at: str | None = None
    status: str
    steps: tuple[StepState, ...] = ()

    @property
    def state(self) -> str:
        """``status``, or ``killed`` where the process that would have changed it is gone."""
        return "killed" if self.status == "running" and not self.alive else self.status

    @property
    def alive(self) -> bool:
        """Whether the runner still runs; on another host that cannot be seen and is believed."""
        if self.status != "running" or self.pid is None:
            return False
        return self.elsewhere or _runner_process(self) is not None

    @property
    def elsewhere(self) -> bool:
        return bool(self.host) and self.host != socket.gethostname()

    @property
    def seconds(self) -> float | None:
        """From start to end, or to now; None where the start is not known or the end was lost."""
        if not self.started_at or self.state == "killed":
            return None
        end = datetime.fromisoformat(self.ended_at) if self.ended_at else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.started_at)).total_seconds()


def run_as_json(run: RunState) -> dict[str, Any]:
    """What ``--json`` prints of a run: its file, with ``killed`` and the seconds told."""
    return {**run.model_dump(mode="json"), "status": run.state, "seconds": run.seconds}


def save_run(place: Workspace, run: RunState) -> None:
    """Write a run's file in one step."""
    data = run.model_dump_json(indent=1).encode()
    workspace.write_atomic(place.runs / run.run_id / RUN_FILE, data)


def list_runs(
    place: Workspace, pipeline: str | None = None, *, prefix: str = ""
) -> Iterator[RunState]:
    """Runs, newest first, whose id begins with ``prefix``; unreadable ones are passed over."""
    if not place.runs.is_dir():
        return
    for folder in sorted(place.runs.iterdir(), key=lambda path: path.name, reverse=True):
        run = _read_run(folder) if folder.name.startswith(prefix) else None
        if run is not None and pipeline in (None, run.pipeline):
            yield run


def find_run(place: Workspace, text: str = LATEST_RUN) -> RunState:
    """The run whose id is or begins with ``text``; ``latest`` is the newest.

    Raises:
        ParameterError: Several runs begin so.
        RecordError: There is no such run.
    """
    if text == LATEST_RUN:
        newest = next(list_runs(place), None)
        if newest is None:
            hint = "`workbench run PIPELINE` makes one; WORKBENCH_HOME names another workspace"
            raise RecordError("there is no run yet", where=place.runs, hint=hint)
        return newest
    found = list(list_runs(place, prefix=text)) if text else []
    exact = [run for run in found if run.run_id == text]
    if len(found) == 1 or exact:
        return (exact or found)[0]
    if not found:
        hint = "`workbench runs` lists them; `latest` is the newest"
        raise RecordError("no run has this id", where=text or place.runs, hint=hint)
    several = ", ".join(run.run_id for run in found[:5])
    raise ParameterError(f"{len(found)} runs begin so: {several}", where=text, hint="Give more")


def step_folder(place: Workspace, run: RunState, step: StepState) -> Path:
    """Where a step's files lie, or would."""
    return Path(step.folder) if step.folder else place.runs / run.run_id / step.name


def save_mlflow_url(place: Workspace, run_id: str, url: str) -> None:
    """Keep where a run can be looked at, beside its file."""
    data = json.dumps({"url": url}).encode()
    workspace.write_atomic(place.runs / run_id / _MLFLOW_FILE, data)


def mlflow_url(place: Workspace, run: RunState) -> str | None:
    """The address of a run in MLflow; None while it has not been written there."""
    try:
        url: str = json.loads((place.runs / run.run_id / _MLFLOW_FILE).read_bytes())["url"]
        return url
    except (OSError, ValueError, KeyError):
        return None


def find_step(run: RunState, name: str) -> StepState:
    """A step by name; raises `ParameterError` with the names there are."""
    for step in run.steps:
        if step.name == name:
            return step
    known = ", ".join(step.name for step in run.steps) or "none"
    raise ParameterError(f"run {run.run_id} has no step {name!r}", hint=f"Its steps: {known}")


def cancel_run(place: Workspace, run: RunState, *, wait_s: float = 20.0) -> RunState:
    """Ask a run to stop and wait for it; returns the run as it then is.

    Raises:
        WorkbenchError: The run has ended already, so there is nothing to stop.
    """
    if not run.alive:
        raise WorkbenchError(
            f"run {run.run_id} is not running: it is {run.state}",
            hint="`workbench runs` shows which are",
        )
    _ask_to_stop(place.runs / run.run_id, _runner_process(run))
    deadline = time.monotonic() + wait_s
    while run.alive and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        run = _read_run(place.runs / run.run_id) or run
    return run


def _ask_to_stop(folder: Path, process: psutil.Process | None) -> None:
    """By a signal to a process here, by a file elsewhere. A second signal soon after the first
    would interrupt the runner while it ends its steps in order, so it is not sent.
    """
    if process is None:
        told = {"at": datetime.now(UTC).isoformat(), "host": socket.gethostname()}
        workspace.write_atomic(folder / CANCEL_FILE, json.dumps(told).encode())
        return
    sent = folder / _CANCEL_SENT_FILE
    if sent.exists() and time.time() - sent.stat().st_mtime < _SIGNAL_INTERVAL_S:
        return
    sent.touch()
    process.send_signal(signal.SIGTERM)  # psutil checks once more that it is the same process


def process_start_time(pid: int | None = None) -> float:
    """When a process (by default this one) began, in seconds since the epoch."""
    return psutil.Process(pid).create_time()


def _runner_process(run: RunState) -> psutil.Process | None:
    """The runner's process, or None when it is gone and its number free or taken by another."""
    if run.elsewhere or run.pid is None:
        return None
    try:
        process = psutil.Process(run.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        same = run.pid_started is None or (
            abs(process.create_time() - run.pid_started) < _START_TOLERANCE_S
        )
        return process if same else None
    except psutil.Error:
        return None


def _read_run(folder: Path) -> RunState | None:
    """A run from its file, or from the report that runs before there was such a file have left."""
    try:
        if (folder / RUN_FILE).exists():
            return RunState.model_validate_json((folder / RUN_FILE).read_bytes())
        return RunState.model_validate_json((folder / "report.json").read_bytes())
    except (OSError, ValidationError):
        return None


# ---- Writes ``run.json``: what a run is doing, for whoever looks from outside.
#
# Rewritten whole, a few times a second at most, so a reader never sees half of it.


_WRITE_INTERVAL_S = 0.2  # a thousand steps that are skipped end within a second


class RunJournal:
    """The state of one run on disk."""

    def __init__(self, place: Workspace, run_id: str, pipeline: Pipeline) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._written = 0.0
        self._steps = {
            name: StepState(name=name, status="pending", seconds=0.0) for name in pipeline.steps
        }
        self._run = RunState(
            run_id=run_id,
            pipeline=pipeline.name,
            pipeline_file=str(pipeline.file),
            parameters=pipeline.parameters,
            pid=os.getpid(),
            pid_started=process_start_time(),
            host=socket.gethostname(),
            started_at=_now(),
            status="running",
        )
        self._write()

    def step(self, name: str, status: str, **more: Any) -> None:
        with self._lock:
            changes = {"status": status, **more}
            self._steps[name] = self._steps[name].model_copy(update=changes)
            if status == "running" or time.monotonic() - self._written > _WRITE_INTERVAL_S:
                self._write()

    def end(self, status: str) -> None:
        with self._lock:
            for name, step in self._steps.items():
                if step.status in ("pending", "running"):
                    self._steps[name] = step.model_copy(update={"status": "not-reached"})
            self._run = self._run.model_copy(update={"status": status, "ended_at": _now()})
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        steps = tuple(self._steps.values())
        save_run(self._place, self._run.model_copy(update={"steps": steps}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
