"""Runs of a small pipeline with real kernels and MLflow: skip, stop, kill, resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import write_notebook
from tests.servers import Servers
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import execution, graph
from workbench.pipeline import run as running
from workbench.pipeline.execution import StepReport
from workbench.pipeline.run import RunReport
from workbench.records.model_types import StepRun
from workbench.records.store import Store


class Watcher:
    """Records the calls of a display."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.started: list[str] = []
        self.ended: list[StepReport] = []
        self.progress: list[tuple[str, int, int]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def step_started(self, name: str, reasons: tuple[str, ...]) -> None:
        self.started.append(name)

    def step_progress(self, name: str, done: int, total: int) -> None:
        self.progress.append((name, done, total))

    def step_ended(self, step: StepReport) -> None:
        self.ended.append(step)


@pytest.fixture
def mlflow_uri(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> str:
    """The session's MLflow, used by these small workspaces as an external server."""
    uri = servers.mlflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def load(project: Path, **given: str) -> graph.Pipeline:
    return graph.load_pipeline(project / "pipelines" / "trial.yaml", given, base=project)


def run(project: Path, workspace: Workspace, **given: str) -> tuple[RunReport, Watcher]:
    watcher = Watcher()
    return running.run_pipeline(workspace, load(project, **given), watcher), watcher


def statuses(report: RunReport) -> list[str]:
    return [step.status for step in report.steps]


def mlflow_name(uri: str, report: RunReport) -> str:
    """Name of the run's page in MLflow, which has no status for waiting and refused."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("workbench")
    query = f"tags.`workbench.run` = '{report.run_id}' and tags.`workbench.status` != ''"
    (page,) = client.search_runs([experiment.experiment_id], query)
    return str(page.info.run_name)


@pytest.mark.usefixtures("mlflow_uri")
def test_a_rerun_skips_unchanged_steps(project: Path, workspace: Workspace) -> None:
    first, watcher = run(project, workspace)
    assert (first.status, statuses(first)) == ("succeeded", ["ran", "ran"])
    assert ("b", 1, 1) in watcher.progress
    again, watcher = run(project, workspace)
    assert statuses(again) == ["skipped", "skipped"]
    assert (again.outputs, watcher.started) == (first.outputs, [])
    changed, _ = run(project, workspace, word="loud")
    assert statuses(changed) == ["skipped", "ran"]
    assert changed.steps[1].reason == "a parameter changed: word"


@pytest.mark.usefixtures("mlflow_uri")
def test_a_record_without_index_entry_is_used(project: Path, workspace: Workspace) -> None:
    run(project, workspace)
    for entry in (workspace.index / "steps").glob("*.json"):  # as a kill between the two leaves it
        entry.rename(entry.with_suffix(".writing"))
    again, _ = run(project, workspace)
    assert statuses(again) == ["skipped", "skipped"]
    assert len(list(Store(workspace).refs(StepRun.KIND))) == 2


@pytest.mark.usefixtures("mlflow_uri")
def test_a_failure_stops_the_run_and_a_fix_resumes_it(project: Path, workspace: Workspace) -> None:
    broken = "step.optional_input('upstream')\nraise KeyError('gone')"
    notebook = project / "notebooks/steps/b.ipynb"
    good = notebook.read_text()
    write_notebook(notebook, broken, parameters="n: int = 1\nword: str = ''")
    failed, _ = run(project, workspace)
    assert (failed.status, statuses(failed)) == ("failed", ["ran", "failed"])
    assert "KeyError: 'gone'" in failed.steps[1].reason
    notebook.write_text(good)
    mended, _ = run(project, workspace)
    assert (mended.status, statuses(mended)) == ("succeeded", ["skipped", "ran"])


def test_waiting_is_never_cached(project: Path, workspace: Workspace, mlflow_uri: str) -> None:
    flag = project / "people-are-done"
    work = (
        "from pathlib import Path\nfrom workbench.core.errors import Waiting\n"
        f"if not Path({str(flag)!r}).exists():\n    raise Waiting('0 of 3 done', hint='label them')"
    )
    write_notebook(project / "notebooks/steps/a.ipynb", work)
    waiting, _ = run(project, workspace)
    assert (waiting.status, statuses(waiting)) == ("waiting", ["waiting", "not-reached"])
    assert "0 of 3 done" in waiting.reason
    assert mlflow_name(mlflow_uri, waiting) == f"trial WAITING · {waiting.run_id}"
    flag.touch()
    done, _ = run(project, workspace)
    assert (done.status, statuses(done)) == ("succeeded", ["ran", "ran"])


def test_the_next_run_writes_what_mlflow_missed(
    project: Path, workspace: Workspace, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = execution.ExternalServices._connect

    def away(self: execution.ExternalServices) -> None:
        raise WorkbenchError("MLflow is away")

    monkeypatch.setattr(execution.ExternalServices, "_connect", away)
    first, watcher = run(project, workspace)
    assert first.status == "succeeded"
    assert any("MLflow could not be written" in note for note in watcher.notes)
    monkeypatch.setattr(execution.ExternalServices, "_connect", connect)
    again, watcher = run(project, workspace)
    assert (statuses(again), watcher.notes) == (["skipped", "skipped"], [])
    store = Store(workspace)
    marks = [store.side(ref, "mlflow") for ref in store.refs(StepRun.KIND)]
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=mlflow_uri)
    assert {client.get_run(mark["run"]).info.status for mark in marks} == {"FINISHED"}


def test_a_killed_run_leaves_no_process_and_is_resumed(
    project: Path, workspace: Workspace, mlflow_uri: str
) -> None:
    started = project / "b-started"
    slow = (
        "import pathlib, time\nupstream = step.optional_input('upstream')\n"
        f"mark = pathlib.Path({str(started)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    time.sleep(120)"
    )
    write_notebook(
        project / "notebooks/steps/b.ipynb", slow, parameters="n: int = 1\nword: str = ''"
    )
    runner = subprocess.Popen(
        [sys.executable, "-m", "workbench", "run", str(project / "pipelines/trial.yaml")],
        env={**os.environ, "WORKBENCH_HOME": str(workspace.root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started.exists()
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    report, _ = run(project, workspace)
    assert (report.status, statuses(report)) == ("succeeded", ["skipped", "ran"])
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name(execution.EXPERIMENT)
    left = client.search_runs(
        [experiment.experiment_id], "attributes.status = 'RUNNING' and tags.`workbench.step` = 'b'"
    )
    assert left == []
