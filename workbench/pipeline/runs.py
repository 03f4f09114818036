"""The runs of a workspace: ``runs/<id>/run.json``, written by the runner and read by everyone else.

A runner that is killed cannot write how it ended. So a run is reported as ``killed`` if its file
says ``running`` and its process is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import BaseModel, ConfigDict

from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
from workbench.core.text import did_you_mean
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic

if TYPE_CHECKING:
    from workbench.pipeline.graph import Pipeline

__all__ = ["RunState", "StepState"]

CANCEL_FILE = "cancel"
"""A file of this name in a run's folder asks a runner on another machine to stop."""

LATEST_RUN = "latest"

_UNREADABLE = "unreadable"
"""Status of a run whose ``run.json`` is damaged or lost."""

_ID_FORMAT = "%Y%m%d-%H%M%S"
_RUN_FILE = "run.json"
_DIGEST_FIELD = "digest"
_MLFLOW_FILE = "mlflow.json"
_CANCEL_SENT_FILE = "cancel-sent"
_START_TOLERANCE_S = 2.0  # start times have the resolution of clock ticks; clocks are adjusted
_POLL_S = 0.2
_RUNS_FOR_DURATIONS = 20
_SIGNAL_INTERVAL_S = 60.0
_WRITE_INTERVAL_S = 0.2  # a thousand skipped steps finish within a second


class _LenientModel(BaseModel):
    """Ignores unknown fields, which a newer runner may write."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StepState(_LenientModel):
    """A step of a run.

    Attributes:
        status: pending, running, ran, skipped, waiting, failed, cancelled or not-reached.
        seconds: None until known.
        folder: Where the step's files are, once it has started.
    """

    name: str
    status: str
    seconds: float | None = None
    reason: str = ""
    folder: str | None = None


class RunState(_LenientModel):
    """``run.json``: ``pid`` and ``pid_started`` (seconds since the epoch) identify the runner.

    ``inode`` is that of the run's folder: the runner of a copied workspace's run is its original's.
    """

    schema_version: int = 1
    run_id: str
    pipeline: str
    pipeline_file: str = ""
    parameters: Json = {}
    pid: int | None = None
    pid_started: float | None = None
    inode: int | None = None
    host: str = ""
    started_at: str = ""
    ended_at: str | None = None
    status: str
    steps: tuple[StepState, ...] = ()

    @property
    def state(self) -> str:
        """``status``, or ``killed`` if the runner's process is gone."""
        return "killed" if self.status == "running" and not self.alive else self.status

    @property
    def alive(self) -> bool:
        """Whether the runner is running; assumed for another host, whose processes are unknown."""
        if self.status != "running" or self.pid is None:
            return False
        return self.elsewhere or _runner_process(self) is not None

    @property
    def elsewhere(self) -> bool:
        """Whether the run is on another host."""
        return bool(self.host) and self.host != socket.gethostname()

    @property
    def seconds(self) -> float | None:
        """Duration until the end, or until now; None if the start or the end is unknown."""
        if not self.started_at or self.state == "killed":
            return None
        end = datetime.fromisoformat(self.ended_at) if self.ended_at else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.started_at)).total_seconds()


class RunJournal:
    """Writes the state of one run to its file, a few times a second at most."""

    def __init__(self, workspace: Workspace, run_id: str, pipeline: Pipeline) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._written_at = 0.0
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

    def step(self, name: str, status: str, **changes: Any) -> None:
        """Set a step's status and other fields of its `StepState`."""
        with self._lock:
            self._steps[name] = self._steps[name].model_copy(update={"status": status, **changes})
            if status == "running" or time.monotonic() - self._written_at > _WRITE_INTERVAL_S:
                self._write()

    def end(self, status: str) -> None:
        """Set the run's final status; steps that were not finished are ``not-reached``."""
        with self._lock:
            for name, step in self._steps.items():
                if step.status in ("pending", "running"):
                    self._steps[name] = step.model_copy(update={"status": "not-reached"})
            self._run = self._run.model_copy(update={"status": status, "ended_at": _now()})
            self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        steps = tuple(self._steps.values())
        save_run(self._workspace, self._run.model_copy(update={"steps": steps}))


def new_run_id(workspace: Workspace) -> str:
    """``YYYYMMDD-HHMMSS-XXXX`` in UTC, which sorts after all runs before it.

    If the clock was set back, or within the same second, it is the second after the newest run.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    for folder in workspace.runs.glob("*-*-*"):
        with contextlib.suppress(ValueError, OverflowError):
            started = datetime.strptime(folder.name[:-5], _ID_FORMAT).replace(tzinfo=UTC)
            if started >= now:
                now = started + timedelta(seconds=1)
    return f"{now.strftime(_ID_FORMAT)}-{secrets.token_hex(2)}"


def run_as_json(run: RunState) -> Json:
    """What ``--json`` prints of a run: its file, with ``killed`` and the duration filled in."""
    return {**run.model_dump(mode="json"), "status": run.state, "seconds": run.seconds}


def save_run(workspace: Workspace, run: RunState) -> None:
    """Write a run's file."""
    folder = workspace.runs / run.run_id
    folder.mkdir(parents=True, exist_ok=True)
    content = run.model_copy(update={"inode": folder.stat().st_ino}).model_dump(mode="json")
    content[_DIGEST_FIELD] = _content_digest(content)
    data = json.dumps(content, indent=1).encode()
    write_atomic(folder / _RUN_FILE, data)


def list_runs(
    workspace: Workspace, pipeline: str | None = None, *, prefix: str = ""
) -> Iterator[RunState]:
    """Runs, newest first; one whose file is damaged has the status ``unreadable``.

    Args:
        workspace: The workspace.
        pipeline: Only runs of this pipeline, as far as they can be read.
        prefix: Only runs whose id starts with it.
    """
    if not workspace.runs.is_dir():
        return
    for folder in sorted(workspace.runs.iterdir(), key=lambda path: path.name, reverse=True):
        run = _read_run(folder) if folder.name.startswith(prefix) else None
        if run is not None and pipeline in (None, run.pipeline):
            yield run


def find_run(workspace: Workspace, text: str = LATEST_RUN) -> RunState:
    """One run.

    Args:
        workspace: The workspace.
        text: An id, its first characters, or ``latest`` for the newest run.

    Raises:
        ParameterError: Several ids start with ``text``.
        RecordError: No such run.
    """
    if text == LATEST_RUN:
        newest = next(list_runs(workspace), None)
        if newest is None:
            hint = "Start one with `workbench run PIPELINE`, or set WORKBENCH_HOME"
            raise RecordError("no runs yet", where=workspace.runs, hint=hint)
        return newest
    matches = list(list_runs(workspace, prefix=text)) if text else []
    exact = [run for run in matches if run.run_id == text]
    if len(matches) == 1 or exact:
        return (exact or matches)[0]
    if not matches:
        hint = "List the runs with `workbench runs`; `latest` is the newest"
        raise RecordError("unknown run id", where=text or workspace.runs, hint=hint)
    ids = ", ".join(run.run_id for run in matches[:5])
    raise ParameterError(
        f"ambiguous run id: {len(matches)} matches ({ids})",
        where=text,
        hint="Pass more characters of the id",
    )


def earlier_durations(workspace: Workspace, pipeline: str) -> dict[str, float]:
    """Seconds that each step took when it last ran, in the newest runs of a pipeline."""
    seconds: dict[str, float] = {}
    for run in itertools.islice(list_runs(workspace, pipeline), _RUNS_FOR_DURATIONS):
        for step in run.steps:
            if step.status == "ran" and step.seconds:
                seconds.setdefault(step.name, step.seconds)
    return seconds


def find_step(run: RunState, name: str) -> StepState:
    """A step by name; raises `ParameterError` for an unknown name."""
    for step in run.steps:
        if step.name == name:
            return step
    hint = did_you_mean(name, [step.name for step in run.steps])
    raise ParameterError(f"run {run.run_id} has no step {name!r}", hint=hint)


def step_folder(workspace: Workspace, run: RunState, step: StepState) -> Path:
    """Where a step's files are, or would be; the workspace may have been moved or copied since."""
    written = Path(step.folder) if step.folder else Path(run.run_id, step.name)
    return workspace.runs.joinpath(*written.parts[-2:])


def save_mlflow_url(workspace: Workspace, run_id: str, url: str) -> None:
    """Write a run's address in MLflow beside its file."""
    data = json.dumps({"url": url}).encode()
    write_atomic(workspace.runs / run_id / _MLFLOW_FILE, data)


def mlflow_url(workspace: Workspace, run_id: str) -> str | None:
    """The address of a run in MLflow; None until it has been written there."""
    try:
        url: str = json.loads((workspace.runs / run_id / _MLFLOW_FILE).read_bytes())["url"]
        return url
    except (OSError, ValueError, KeyError):
        return None


def cancel_run(workspace: Workspace, run: RunState, *, wait_s: float = 20.0) -> RunState:
    """Ask a run to stop and wait until it has.

    Args:
        workspace: The workspace.
        run: A running run.
        wait_s: Maximum time to wait, in seconds.

    Returns:
        The run's state afterwards.

    Raises:
        WorkbenchError: The run has already ended.
    """
    if not run.alive:
        raise WorkbenchError(
            f"run {run.run_id} is not running, its status is {run.state}",
            hint="List the runs with `workbench runs`",
        )
    _request_stop(workspace.runs / run.run_id, _runner_process(run))
    deadline = time.monotonic() + wait_s
    while run.alive and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        run = _read_run(workspace.runs / run.run_id) or run
    return run


def process_start_time() -> float:
    """When this process started, in seconds since the epoch."""
    return psutil.Process().create_time()


def _request_stop(folder: Path, process: psutil.Process | None) -> None:
    """Send a signal to a process of this host, or write a file for one of another host.

    A second signal would interrupt the runner while it stops its steps, so it is not sent.
    """
    if process is None:
        request = {"at": datetime.now(UTC).isoformat(), "host": socket.gethostname()}
        write_atomic(folder / CANCEL_FILE, json.dumps(request).encode())
        return
    sent = folder / _CANCEL_SENT_FILE
    if sent.exists() and time.time() - sent.stat().st_mtime < _SIGNAL_INTERVAL_S:
        return
    sent.touch()
    process.send_signal(signal.SIGTERM)  # psutil verifies that the process is the same


def _runner_process(run: RunState) -> psutil.Process | None:
    """The runner's process; None if it is gone, or if its number was reused."""
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
    """A run; ``unreadable`` if its file is damaged or lost, None for a folder of anything else."""
    try:
        content = json.loads((folder / _RUN_FILE).read_bytes())
        expected = content.pop(_DIGEST_FIELD, None)  # none in files from before this was written
        run = RunState.model_validate(content)
        whole = expected is None or expected == _content_digest(content)
        if whole and run.run_id == folder.name and _valid_times(run):
            copied = run.inode not in (None, folder.stat().st_ino)
            return run.model_copy(update={"pid": None}) if copied else run
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    if not _is_run_folder(folder):
        return None
    return RunState(run_id=folder.name, pipeline="", status=_UNREADABLE)


def _content_digest(content: Json) -> str:
    return digest.of_bytes(json.dumps(content, sort_keys=True).encode())


def _valid_times(run: RunState) -> bool:
    return all(
        datetime.fromisoformat(text).tzinfo is not None
        for text in (run.started_at, run.ended_at)
        if text
    )


def _is_run_folder(folder: Path) -> bool:
    """Whether the folder has the name of a run."""
    try:
        datetime.strptime(folder.name[:-5], _ID_FORMAT)
    except ValueError:
        return False
    return folder.is_dir()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
