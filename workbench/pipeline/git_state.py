"""The git state a run was started from: commit, branch and uncommitted changes.

The digests of code and notebooks say what ran; the git state says where to find it. Everything here
is best effort: a project without git, or without a commit, runs all the same.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.core import secret_scan

__all__ = ()

_MAX_DIFF_CHARACTERS = 1_000_000
_MAX_UNTRACKED = 200
_TIMEOUT_S = 30

_FILE_OF_DIFF = re.compile(r"(?m)^(?=diff --git )")
_KEY_LINES = re.compile(r"(?m)(?:^[ +-][ \t]*[A-Za-z0-9+/]{60,80}={0,2}\r?\n){2,}")
"""Lines of a PEM key of which a diff shows only a part."""

# A repository's own settings may name programs to run; reading its state must run none of them.
_SAFE_OPTIONS = (
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.quotePath=false"),
    *("-c", "color.ui=false"),
)


@dataclass(frozen=True)
class GitState:
    """The state of a repository.

    Attributes:
        commit: Empty in a repository without a commit.
        branch: Empty when no branch is checked out.
        diff: Changes since the commit, with credentials redacted.
        untracked: Paths of untracked files.
    """

    commit: str
    branch: str
    diff: str
    untracked: tuple[str, ...]

    @property
    def dirty(self) -> bool:
        return bool(self.diff or self.untracked)

    def tags(self) -> dict[str, str]:
        """Tags for MLflow, which shows the ``mlflow.source`` ones on the run's page."""
        source = {"mlflow.source.git.commit": self.commit, "mlflow.source.git.branch": self.branch}
        return {
            **{name: value for name, value in source.items() if value},
            "workbench.git.dirty": str(self.dirty).lower(),
        }

    def as_patch(self) -> str:
        """The diff in the form that `git apply` takes, below the names of untracked files."""
        untracked = "".join(f"# untracked: {name}\n" for name in self.untracked)
        return f"# changes since {self.commit or 'nothing'}\n{untracked}{self.diff}"


def read_git_state(folder: Path, known_secrets: Mapping[str, str] | None = None) -> GitState | None:
    """The state of the repository around ``folder``; None without git or a repository.

    Args:
        known_secrets: Secret values by name, redacted in the diff beside what looks like one.
    """
    status = run_git(folder, "status", "--porcelain=v1", "-z", "--untracked-files=normal")
    if status is None:
        return None
    untracked = [entry[3:] for entry in status.split("\0") if entry.startswith("?? ")]
    commit = (run_git(folder, "rev-parse", "--verify", "-q", "HEAD") or "").strip()
    branch = (run_git(folder, "symbolic-ref", "--short", "-q", "HEAD") or "").strip()
    diff = ""
    if commit:
        diff = run_git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv") or ""
    # Searched before it is cut: a cut secret would not be recognised.
    diff = _redact_diff(diff[: 2 * _MAX_DIFF_CHARACTERS], known_secrets or {})
    if len(diff) > _MAX_DIFF_CHARACTERS:
        diff = f"{diff[:_MAX_DIFF_CHARACTERS]}\n# cut after {_MAX_DIFF_CHARACTERS:,} characters\n"
    return GitState(commit, branch, diff, tuple(untracked[:_MAX_UNTRACKED]))


def _redact_diff(diff: str, known: Mapping[str, str]) -> str:
    """A diff without credentials, and without the contents of files that hold secrets."""
    parts = []
    for part in _FILE_OF_DIFF.split(diff):
        header, newline, _ = part.partition("\n")
        names = header.removeprefix("diff --git ").replace('"', "").split(" ")
        if any(secret_scan.is_secret_file(name) for name in names):
            parts.append(f"{header}{newline}# contents left out: the file may hold secrets\n")
            continue
        settings = any(secret_scan.is_settings_file(name) for name in names)
        leaks = secret_scan.scan_text(part, known, settings=settings)
        parts.append(_KEY_LINES.sub(_redact_lines, secret_scan.redact(part, leaks)))
    return "".join(parts)


def _redact_lines(lines: re.Match[str]) -> str:
    return re.sub(r"[A-Za-z0-9+/=]{60,}", "[redacted: lines of a key]", lines.group())


def run_git(folder: Path, *arguments: str) -> str | None:
    """Run a git command in ``folder``, without programs that the repository configures.

    Returns:
        Its standard output, None when it fails.
    """
    try:
        done = subprocess.run(
            ["git", *_SAFE_OPTIONS, "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_PAGER": "cat"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
