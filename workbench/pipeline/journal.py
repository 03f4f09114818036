"""``run.json`` in a run's folder: what the run is doing, for whoever looks from outside.

Rewritten whole at every change, so a reader never sees half of it. The process is named by its pid
and the time it was created, because pids are used again.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from workbench import workspace
from workbench.pipeline.graph import Pipeline

Json = dict[str, Any]

FILE = "run.json"


class Journal:
    """The state of one run on disk. Thread-safe."""

    def __init__(self, folder: Path, run_id: str, pipeline: Pipeline) -> None:
        self._path = folder / FILE
        self._lock = threading.Lock()
        self._steps: dict[str, Json] = {
            name: {"name": name, "status": "pending", "seconds": 0.0, "reason": "", "folder": None}
            for name in pipeline.steps
        }
        self._run: Json = {
            "schema_version": 1,
            "run_id": run_id,
            "pipeline": pipeline.name,
            "pipeline_file": str(pipeline.file),
            "parameters": pipeline.parameters,
            "pid": os.getpid(),
            "pid_started": psutil.Process().create_time(),
            "host": socket.gethostname(),
            "started_at": _now(),
            "ended_at": None,
            "status": "running",
        }

    def step(self, name: str, status: str, **more: Any) -> None:
        with self._lock:
            self._steps[name].update(status=status, **more)
            self._write()

    def end(self, status: str) -> None:
        with self._lock:
            for step in self._steps.values():
                if step["status"] in ("pending", "running"):
                    step["status"] = "not-reached"
            self._run.update(status=status, ended_at=_now())
            self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self._run, "steps": list(self._steps.values())}
        workspace.write_atomic(self._path, json.dumps(content, indent=1).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
