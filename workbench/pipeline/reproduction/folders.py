"""Where a reproduction happens, and whether one that was stopped can be gone on with."""

from __future__ import annotations

import json
from pathlib import Path

from workbench import digest, workspace
from workbench.errors import ParameterError
from workbench.records.base import Ref, digest_of, kind_of
from workbench.workspace import Workspace

STATE = "reproduction.json"
LOCK = ".lock"


def choose(place: Workspace, target: Ref, given: Path | None) -> Path:
    """Where to rebuild ``target``: an unfinished reproduction of it is gone on with.

    Raises:
        ParameterError: ``given`` holds something else, or a reproduction that has ended.
    """
    if given is not None:
        folder = given.expanduser().resolve()
        if _is_unfinished(folder, target) or not _holds_anything(folder):
            return folder
        what = "a finished reproduction" if (folder / STATE).exists() else "other files"
        raise ParameterError(
            f"the folder holds {what}; a model is rebuilt in a clean one",
            where=folder,
            hint="Name a folder that does not exist yet",
        )
    base = place.root / "reproduce" / f"{kind_of(target)}-{digest.short(digest_of(target))}"
    number = 1
    while True:
        folder = base.with_name(f"{base.name}-{number}")
        if not folder.exists() or _is_unfinished(folder, target):
            return folder
        number += 1


def _holds_anything(folder: Path) -> bool:
    return folder.exists() and any(entry.name != LOCK for entry in folder.iterdir())


def _is_unfinished(folder: Path, target: Ref) -> bool:
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return state.get("target") == target and not state.get("finished")


def mark(folder: Path, target: Ref, *, finished: bool) -> None:
    """Say whose reproduction ``folder`` holds, and whether it has ended."""
    state = {"schema_version": 1, "target": target, "finished": finished}
    workspace.write_atomic(folder / STATE, json.dumps(state).encode())
