"""The git state a run was started from: commit, branch and uncommitted changes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.pipeline import secret_scan

_MAX_DIFF_CHARACTERS = 1_000_000
_MAX_UNTRACKED = 200
_TIMEOUT_S = 10

# A repository's own settings may name programs to run; none is wanted for looking.
_SAFE_OPTIONS = (
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "color.ui=false",
)


@dataclass(frozen=True)
class GitState:
    """``diff`` is against the commit, credentials taken out; ``untracked`` are names alone.

    ``commit`` is empty in a repository that has none yet, ``branch`` when no branch is out.
    """

    commit: str
    branch: str
    diff: str
    untracked: tuple[str, ...]

    @property
    def dirty(self) -> bool:
        return bool(self.diff or self.untracked)

    def tags(self) -> dict[str, str]:
        """For MLflow, whose pages show the ``mlflow.source`` ones."""
        named = {"mlflow.source.git.commit": self.commit, "mlflow.source.git.branch": self.branch}
        return {
            **{name: value for name, value in named.items() if value},
            "workbench.git.dirty": str(self.dirty).lower(),
        }

    def as_patch(self) -> str:
        """The diff as `git apply` takes it, below the names of files that git does not know."""
        unknown = "".join(f"# untracked: {name}\n" for name in self.untracked)
        return f"# changes since {self.commit or 'nothing'}\n{unknown}{self.diff}"


def read_git_state(folder: Path, known: Mapping[str, str] | None = None) -> GitState | None:
    """The state of the repository around ``folder``; None without git or a repository.

    Args:
        known: Secret values by name, taken out of the diff beside what looks like one.
    """
    status = run_git(folder, "status", "--porcelain=v1", "-z", "--untracked-files=normal")
    if status is None:
        return None
    untracked = [entry[3:] for entry in status.split("\0") if entry.startswith("?? ")]
    commit = (run_git(folder, "rev-parse", "--verify", "-q", "HEAD") or "").strip()
    branch = (run_git(folder, "symbolic-ref", "--short", "-q", "HEAD") or "").strip()
    diff = ""
    if commit:
        diff = run_git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color") or ""
    if len(diff) > _MAX_DIFF_CHARACTERS:
        diff = f"{diff[:_MAX_DIFF_CHARACTERS]}\n# cut after {_MAX_DIFF_CHARACTERS:,} characters\n"
    clean = secret_scan.redact(diff, secret_scan.scan_text(diff, known or {}))
    return GitState(commit, branch, clean, tuple(untracked[:_MAX_UNTRACKED]))


def run_git(folder: Path, *arguments: str) -> str | None:
    try:
        told = subprocess.run(
            ["git", *_SAFE_OPTIONS, "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_PAGER": "cat"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.decode(errors="replace")
