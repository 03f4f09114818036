"""A project under git, with a lock and notebooks that passed their check."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.conftest import CONTRACT, write_notebook
from workbench.core.workspace import Workspace
from workbench.pipeline.checking import receipts
from workbench.pipeline.promote import Promotion, promote_notebook

CHECKS = {"static": "passed", "dynamic": "passed"}


def git(project: Path, *arguments: str) -> str:
    name = {"GIT_AUTHOR_NAME": "Ann", "GIT_COMMITTER_NAME": "Ann"}
    mail = {"GIT_AUTHOR_EMAIL": "ann@example.com", "GIT_COMMITTER_EMAIL": "ann@example.com"}
    done = subprocess.run(
        ["git", "-C", str(project), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **name, **mail},
    )
    return done.stdout.strip()


def commit(project: Path) -> str:
    git(project, "add", "notebooks", "pipelines", "requirements.lock")
    git(project, "commit", "-q", "-m", "work")
    return git(project, "rev-parse", "HEAD")


def checked(workspace: Workspace, notebook: Path) -> str:
    """A receipt, as a passed check leaves it."""
    return receipts.issue_receipt(workspace, notebook, checks=CHECKS, watch="complete")  # type: ignore[arg-type]


def promoted(workspace: Workspace, project: Path, work: str, step: str = "a") -> Promotion:
    """Write, commit, check and promote a notebook that does ``work``."""
    contract = {**CONTRACT, "owner": "ann"}
    notebook = write_notebook(project / f"notebooks/steps/{step}.ipynb", work, contract=contract)
    if git(project, "status", "--porcelain", "--", "notebooks"):
        commit(project)
    checked(workspace, notebook)
    return promote_notebook(workspace, notebook, reviewer="bob")


@pytest.fixture
def repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trial project, committed, locked, and far from any MLflow."""
    version = importlib.metadata.version("click")
    (project / "requirements.lock").write_text(f"click=={version}\n    # via trial\n")
    git(project, "init", "-q")
    commit(project)
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return project
