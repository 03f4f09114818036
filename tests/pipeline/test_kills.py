"""kill -9 at random moments of a run: the next run completes it and does nothing twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.conftest import write_notebook
from tests.pipeline.test_graph import MANY, write_steps
from tests.pipeline.test_run import mlflow_uri
from workbench.core.workspace import Workspace
from workbench.records.model_types import StepRun
from workbench.records.store import Store

__all__ = ["mlflow_uri"]

KILLS = int(os.environ.get("WORKBENCH_TEST_KILLS", "50"))
SEED = 2026


def start(project: Path, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", "run", str(project / "pipelines/trial.yaml"), "--json"],
        env={**os.environ, "WORKBENCH_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(project: Path, home: Path) -> dict[str, Any]:
    runner = start(project, home)
    out, errors = runner.communicate(timeout=300)
    assert runner.returncode == 0, errors
    report: dict[str, Any] = json.loads(out)
    return report


def finished(home: Path) -> set[str]:
    """Steps with a whole run record."""
    store = Store(Workspace(home))
    return {store.get(ref, StepRun).step for ref in store.refs(StepRun.KIND)}


def left_behind(home: Path) -> list[psutil.Process]:
    """Processes that work for this workspace."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("WORKBENCH_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("mlflow_uri")
def test_a_run_killed_at_any_point_is_resumed(project: Path, tmp_path: Path) -> None:
    steps = project / "notebooks/steps"
    joined = "n = n + len(step.input_list('upstream'))"
    write_notebook(steps / "b.ipynb", joined, contract=MANY)
    write_steps(
        project,
        'a: {for_each: {n: [1, 2, 3]}, parameters: {n: "${each.n}"}}\n'
        "  b: {inputs: {upstream: a.selection}, parameters: {n: 9}}",
    )
    begun = time.monotonic()
    whole = finish(project, tmp_path / "whole")
    lasts = time.monotonic() - begun
    chance = random.Random(SEED)  # noqa: S311 - moments, not secrets
    for number in range(KILLS):
        home = tmp_path / f"killed{number}"
        moment = chance.uniform(0.0, lasts)
        runner = start(project, home)
        time.sleep(moment)
        runner.kill()
        runner.communicate()
        deadline = time.monotonic() + 10
        while left_behind(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left_behind(home) == [], f"kill {number} at {moment:.2f} s left processes"
        done = finished(home)
        report = finish(project, home)
        again = {step["name"] for step in report["steps"] if step["status"] == "ran"}
        assert not again & done, f"kill {number} at {moment:.2f} s: ran twice: {again & done}"
        assert report["outputs"] == whole["outputs"], f"kill {number} at {moment:.2f} s"
