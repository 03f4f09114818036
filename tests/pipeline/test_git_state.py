"""The git state of the repository that a run was started from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from workbench.pipeline import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_a_clean_commit(repository: Path) -> None:
    state = environment.read_git_state(repository)
    assert state is not None
    assert (state.commit, state.branch) == (git(repository, "rev-parse", "HEAD"), "trunk")
    assert not state.dirty
    assert state.tags()["workbench.git.dirty"] == "false"


def test_changes_are_recorded_as_a_patch(repository: Path) -> None:
    (repository / "a.py").write_text("x = 2\n")
    (repository / "ünknown.py").write_text("")
    state = environment.read_git_state(repository)
    assert state is not None
    assert state.dirty
    assert state.untracked == ("ünknown.py",)
    git(repository, "checkout", "-q", "a.py")
    patch = repository / "p.patch"
    patch.write_text(state.as_patch())
    git(repository, "apply", str(patch))
    assert (repository / "a.py").read_text() == "x = 2\n"


def test_credentials_are_redacted_in_the_diff(repository: Path) -> None:
    (repository / "a.py").write_text("x = 'fine'\ny = 'AKIAABCDEFGHIJKLMNOP'\nz = 'open sesame'\n")
    state = environment.read_git_state(repository, {"DOOR": "open sesame"})
    assert state is not None
    assert "fine" in state.diff
    assert "AKIA" not in state.diff
    assert "sesame" not in state.diff


def test_values_without_quotes_are_redacted(repository: Path) -> None:
    files = {
        ".env": "DATABASE=first-secret\n",
        "deploy/prod.env": "export TOKEN=second-secret\n",
        "settings.yaml": "password: third-secret\nhost: visible-host\n",
        "start.sh": "export API_KEY=fourth-secret  # why\n",
        "a.ini": "[db]\npasswd = fifth-secret\n",
        "keys/tls.key": "sixth-secret\n",
        "url.txt": "redis://:seventh-secret@cache:6379/0\n",
    }
    for name in files:
        path = repository / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "two")
    for name, content in files.items():
        (repository / name).write_text(content)
    state = environment.read_git_state(repository)
    assert state is not None
    assert "-secret" not in state.as_patch()
    assert "visible-host" in state.diff
    assert all(name in state.diff for name in files)


def test_a_part_of_a_key_and_a_cut_diff(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["A1b+" * 16, "C2d/" * 16, "E3fx" * 16]
    (repository / "a.py").write_text("\n".join(["key = , *lines, "]) + "\n")
    monkeypatch.setattr(environment, "_MAX_DIFF_CHARACTERS", 205)
    state = environment.read_git_state(repository, {"KEY": "B" * 150})
    assert state is not None
    assert not any(line[:20] in state.diff for line in lines)
    (repository / "a.py").write_text("x = '" + "B" * 150 + "'\n" + "y = 0\n" * 50)
    state = environment.read_git_state(repository, {"KEY": "B" * 150})
    assert state is not None
    assert "BBB" not in state.diff
    assert "# cut after" in state.diff


def test_reading_runs_no_program_of_the_repository(repository: Path) -> None:
    trap = repository / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {repository / 'sprung'}\n")
    trap.chmod(0o755)
    for setting in ("core.fsmonitor", "diff.external", "core.pager"):
        git(repository, "config", setting, str(trap))
    (repository / "a.py").write_text("x = 3\n")
    assert "+x = 3" in (environment.read_git_state(repository) or pytest.fail("no state")).diff
    assert not (repository / "sprung").exists()


def test_without_commit_repository_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.read_git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    state = environment.read_git_state(tmp_path)
    assert state is not None
    assert (state.commit, state.diff) == ("", "")
    monkeypatch.setenv("PATH", "")
    assert environment.read_git_state(tmp_path) is None
