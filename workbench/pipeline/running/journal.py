"""Writes ``run.json``: what a run is doing, for whoever looks from outside.

Rewritten whole, a few times a second at most, so a reader never sees half of it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from workbench.pipeline.definition.graph import Pipeline
from workbench.pipeline.running import history
from workbench.pipeline.running.history import RunState, StepState
from workbench.workspace import Workspace

_EVERY_S = 0.2  # a thousand steps that are skipped end within a second


class Journal:
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
            pid_started=history.started(),
            host=socket.gethostname(),
            started_at=_now(),
            status="running",
        )
        self._write()

    def step(self, name: str, status: str, **more: Any) -> None:
        with self._lock:
            changes = {"status": status, **more}
            self._steps[name] = self._steps[name].model_copy(update=changes)
            if status == "running" or time.monotonic() - self._written > _EVERY_S:
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
        history.save(self._place, self._run.model_copy(update={"steps": steps}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
