"""A research notebook goes the whole way: checked, mended, promoted, run, scheduled, rolled back.

All by the commands that people type, in a project of its own with its own git history.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Servers
from tests.tiny_run import ROOT
from workbench.records.base import kind_of

NOTEBOOK = "notebooks/explore/long_tail.ipynb"
PIPELINE = """
name: look-again
steps:
  ingest: {parameters: {profile: tiny, labelers: replay, name: builtin}}
  baseline:
    notebook: train
    inputs: {dataset: ingest.dataset}
    parameters: {roles: [seed], steps: 8}
  curate:
    inputs: {dataset: ingest.dataset, model: baseline.checkpoint}
    parameters: {budget: 8}
  look-again:
    notebook: long_tail@production
    inputs: {selection: curate.selection}
"""


class Project:
    """A copy of this repository, in which a person works."""

    def __init__(self, folder: Path, mlflow: str) -> None:
        self.folder = folder
        self.home = folder / ".workbench"
        self.variables = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "WORKBENCH_HOME": str(self.home),
            "MLFLOW_TRACKING_URI": mlflow,
        }

    @property
    def notebook(self) -> Path:
        return self.folder / NOTEBOOK

    @property
    def fixtures(self) -> Path:
        """Where checks keep what they made, so that the run below finds it made."""
        return self.home / "checks" / "fixtures"

    def workbench(self, *arguments: str, status: int = 0, home: Path | None = None) -> Any:
        """What a command with ``--json`` prints; it has to end with ``status``."""
        done = subprocess.run(
            [sys.executable, "-m", "workbench", *arguments, "--json"],
            cwd=self.folder,
            env={**self.variables, **({"WORKBENCH_HOME": str(home)} if home else {})},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == status, (arguments, done.stdout[-3000:], done.stderr[-3000:])
        return json.loads(done.stdout)

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True)

    def commit(self, words: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", words)

    def edit(self, old: str, new: str) -> None:
        text = self.notebook.read_text()
        assert text.count(old) == 1, old
        self.notebook.write_text(text.replace(old, new))


@pytest.fixture
def project(tmp_path: Path, servers: Servers) -> Any:
    folder = tmp_path / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    made = Project(folder, servers.mlflow)
    made.git("init", "-q")
    yield made
    for home in (made.home, made.fixtures):
        made.workbench("down", home=home)


def as_left_at_night(project: Project) -> None:
    """What a notebook looks like after a long evening."""
    page = json.loads(project.notebook.read_text())
    code = [cell for cell in page["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, start=1):
        cell["execution_count"] = count
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["hm\n"]}]
    code[-1]["id"] = code[-2]["id"]
    page["metadata"]["kernelspec"] = {
        "display_name": "night (venv)",
        "language": "python",
        "name": "night-venv",
    }
    code[3]["source"].append("\nprint(sum(weights))")
    project.notebook.write_text(json.dumps(page, indent=1))


@pytest.mark.slow
def test_a_notebook_goes_from_an_evening_to_production_and_back(project: Project) -> None:
    as_left_at_night(project)
    project.commit("As it was left")

    found = project.workbench("check", NOTEBOOK, "--static", status=1)
    rules = {finding["rule"] for finding in found["findings"]}
    assert len(rules) >= 4, rules
    mended = project.workbench("check", NOTEBOOK, "--static", "--fix", status=1)
    left = [f for f in mended["findings"] if f["severity"] == "error"]
    assert len(left) == 1 and "weights" in left[0]["message"], left
    project.edit("\\nprint(sum(weights))", "")
    project.commit("Mended")

    refused = project.workbench("promote", NOTEBOOK, "--owner", "ada", "--reviewer", "bo", status=1)
    assert "check" in refused["error"]["hint"], refused
    checked = project.workbench("check", NOTEBOOK)
    assert checked["receipt"], checked
    promote = ("promote", NOTEBOOK, "--owner", "ada", "--reviewer", "bo")
    first = project.workbench(*promote, "--alias", "production")
    assert first["version"] == 1
    project.commit("Promoted")

    file = project.folder / "pipelines" / "look_again.yaml"
    file.write_text(PIPELINE)
    report = project.workbench("run", str(file), home=project.fixtures)
    statuses = {step["name"]: step["status"] for step in report["steps"]}
    assert statuses == {
        "ingest": "skipped",
        "baseline": "skipped",
        "curate": "skipped",
        "look-again": "ran",
    }
    assert kind_of(report["outputs"]["look-again.selection"]) == "selection"

    cron = project.workbench("schedule", str(file), "--for", "cron", "--at", "15 2 * * *")
    assert "15 2 * * *" in json.dumps(cron)

    project.edit("again: Annotated[int, Field(ge=1)] = 4", "again: Annotated[int, Field(ge=1)] = 6")
    project.edit("no box above {score} is sure", "nothing above {score}")
    project.commit("Other words")
    project.workbench("check", NOTEBOOK)
    second = project.workbench(*promote, "--alias", "production")
    assert second["version"] == 2
    planned = project.workbench("plan", str(file), home=project.fixtures)["steps"][-1]
    assert planned["action"] == "run"
    assert any("cell" in reason for reason in planned["reasons"]), planned
    project.workbench("steps", "rollback", "long_tail", "production")
    planned = project.workbench("plan", str(file), home=project.fixtures)["steps"][-1]
    assert (planned["action"], planned["reasons"]) == ("skip", ["nothing changed"])
