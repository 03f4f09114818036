"""The whole loop once per session: small rendered drives, real servers, the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Servers
from workbench.core.workspace import Workspace
from workbench.records.store import Store

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ROOT / "pipelines" / "data_engine.yaml"
TINY = {
    "profile": "tiny",
    "labelers": "replay",
    "training_steps": "8",
    "budget": "8",
    "overlap": "0.25",
    "target": "no",
}


@dataclass(frozen=True)
class Outcome:
    """Result of ``workbench run --json``."""

    status: int
    report: dict[str, Any]
    errors: str

    def step(self, name: str) -> dict[str, Any]:
        return next(step for step in self.report["steps"] if step["name"] == name)


@dataclass(frozen=True)
class TinyRun:
    """A workspace in which the small loop has run, and its result."""

    workspace: Workspace
    outcome: Outcome
    parameters: dict[str, str] = field(default_factory=lambda: dict(TINY))

    @property
    def store(self) -> Store:
        return Store(self.workspace)

    def output(self, name: str) -> str:
        return str(self.outcome.report["outputs"][name])

    def folder(self, step: str) -> Path:
        return self.workspace.runs / self.outcome.report["run_id"] / step

    def again(self, **changes: str) -> Outcome:
        return run_pipeline(self.workspace, {**self.parameters, **changes})


def workbench(
    workspace: Workspace, *arguments: str, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments],
        check=False,
        env={**os.environ, "WORKBENCH_HOME": str(workspace.root)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_pipeline(workspace: Workspace, parameters: dict[str, str]) -> Outcome:
    pairs = [part for key, value in parameters.items() for part in ("-p", f"{key}={value}")]
    done = workbench(workspace, "run", str(PIPELINE), "--json", *pairs)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {}
    return Outcome(done.returncode, report, done.stderr)


@pytest.fixture(scope="session")
def tiny_run(servers: Servers) -> TinyRun:
    outcome = run_pipeline(servers.workspace, TINY)
    assert outcome.report.get("status") in ("succeeded", "refused"), outcome.errors
    return TinyRun(servers.workspace, outcome)
