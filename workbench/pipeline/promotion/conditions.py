"""What has to hold before a notebook becomes a version: committed, locked, answered for."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ContractError, ParameterError
from workbench.pipeline.contracts.contract import StepContract
from workbench.pipeline.planning import modules
from workbench.services import doctor

LOCK = "requirements.lock"
_LOCK_FILES = (LOCK, "environment.yml", "pyproject.toml")
_TIMEOUT_S = 30
_SHOWN = 5


@dataclass(frozen=True)
class People:
    """Who answers for a version, and who looked at it before it became one."""

    owner: str
    reviewer: str


def people(contract: StepContract, owner: str | None, reviewer: str | None) -> People:
    """Owner and reviewer, who must not be the same; the contract may name the owner."""
    owner = (owner or contract.declaration.owner or "").strip()
    reviewer = (reviewer or "").strip()
    if not owner:
        raise ParameterError(
            "nobody answers for this step",
            where=contract.notebook,
            hint="Pass --owner NAME, or set `owner` in the contract",
        )
    if not reviewer:
        raise ParameterError("nobody reviewed this step", hint="Pass --reviewer NAME")
    if owner.casefold() == reviewer.casefold():
        raise ParameterError(
            f"{owner!r} cannot review what they own", hint="Have someone else look at it"
        )
    return People(owner, reviewer)


def commit(project: Path, notebook: Path, contract: StepContract) -> str:
    """The commit that holds everything which shapes the step.

    Looked at are the notebook, the locks and every workbench module that the notebook imports; a
    workbench that is installed elsewhere belongs to the environment, not to this commit.

    Raises:
        ContractError: There is no commit, or one of those files differs from it.
    """
    found = _git(project, "rev-parse", "--verify", "-q", "HEAD")
    if found is None:
        raise ContractError(
            "the project has no git commit to promote from",
            where=project,
            hint="Commit the notebook first",
        )
    shaping = [notebook, *(project / name for name in _LOCK_FILES)]
    shaping += modules.reach(contract.sources).values()
    inside = [path for path in shaping if path.resolve().is_relative_to(project.resolve())]
    names = [str(path.resolve().relative_to(project.resolve())) for path in inside]
    listed = _git(project, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--", *names)
    tracked = _git(project, "ls-files", "--error-unmatch", "--", names[0])
    changed = sorted(entry[3:] for entry in (listed or "").split("\0") if len(entry) > 3)
    if tracked is None and not changed:  # git ignores it
        changed = [names[0]]
    if listed is None or changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ContractError(
            f"not committed: {', '.join(changed[:_SHOWN])}{more}",
            where=project,
            hint="Commit what shapes the step, so that the version can be found again",
        )
    return found.strip()


def environment_is_locked(project: Path) -> None:
    """Raise `ContractError` unless what is installed is what the project's lock says."""
    lock = project / LOCK
    if not lock.is_file():
        raise ContractError(
            "the project has no lock", where=lock, hint="Resolve one with `make lock`"
        )
    wrong = doctor.out_of_step(lock)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ContractError(
            f"the environment is not the locked one: {'; '.join(wrong[:_SHOWN])}{more}",
            where=lock,
            hint="`make setup` installs the lock; then check the notebook again",
        )


def who() -> str:
    """The person at the keyboard, as git or else the system knows them."""
    import getpass

    return (_git(Path.cwd(), "config", "user.name") or "").strip() or getpass.getuser()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where it fails."""
    try:
        told = subprocess.run(
            [
                "git",
                "-c",
                "core.fsmonitor=false",
                "-c",
                "core.quotePath=false",
                "-C",
                str(folder),
                *arguments,
            ],
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.decode(errors="replace")
