"""Aliases of promoted steps: they move, versions do not. Every move keeps who made it and when."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from workbench import digest, workspace
from workbench.errors import ContractError, WorkbenchError
from workbench.pipeline.contracts.parameters import nearest
from workbench.pipeline.promotion import repository
from workbench.pipeline.promotion.repository import ALIASES_FILE, PROMOTED, Aliases, Move, Promoted
from workbench.workspace import Workspace

_PATIENCE_S = 10


def move(place: Workspace, project: Path, reference: str, alias: str, *, by: str) -> Promoted:
    """Let ``alias`` point to ``STEP@VERSION``; pointing where it points already changes nothing.

    Raises:
        ContractError: No such version, one that was changed, or no name for an alias.
    """
    repository.check_alias(alias)
    with alone(place, project):
        found = repository.resolve(project, reference)
        now = repository.current_aliases(project, found.name).get(alias)
        if now is None or now.ref != found.ref:
            _append(project, found, alias, by, "set")
    return found


def roll_back(place: Workspace, project: Path, name: str, alias: str, *, by: str) -> Promoted:
    """Let ``alias`` point where it did before; done twice, it goes back twice.

    Raises:
        ContractError: It never pointed anywhere else, or that version was changed.
    """
    with alone(place, project):
        known = repository.steps(project)
        if name not in known:
            raise ContractError(
                f"no step {name!r} was promoted{nearest(name, known)}",
                hint=f"Promoted are: {', '.join(known) or 'none'}",
            )
        moves = repository.history(project, name)
        if alias not in moves:
            raise ContractError(
                f"step {name!r} has no alias {alias!r}{nearest(alias, list(moves))}",
                hint=f"It has: {', '.join(sorted(moves)) or 'none'}",
            )
        stack = repository.standing(moves[alias])
        if len(stack) < 2:
            raise ContractError(
                f"{alias!r} of {name!r} points to its first version",
                where=project / PROMOTED / name / ALIASES_FILE,
                hint=f"`workbench steps alias {name}@VERSION {alias}` points it elsewhere",
            )
        found = repository.load(project, name, stack[-2].version)
        _append(project, found, alias, by, "rollback")
    return found


@contextlib.contextmanager
def alone(place: Workspace, project: Path) -> Iterator[None]:
    """Let one process at a time change what is promoted in ``project``."""
    name = digest.short(digest.of_bytes(str(project.resolve()).encode()))
    path = place.root / "locks" / f"promoted-{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=_PATIENCE_S):
            yield
    except Timeout as error:
        raise WorkbenchError(
            "another process is changing the promoted steps", where=project, hint="Try again"
        ) from error


def _append(
    project: Path, found: Promoted, alias: str, by: str, action: Literal["set", "rollback"]
) -> None:
    path = project / PROMOTED / found.name / ALIASES_FILE
    moves = repository.history(project, found.name)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    move = Move(action=action, version=found.version, ref=found.ref, by=by, at=now)
    content = Aliases(aliases={**moves, alias: (*moves.get(alias, ()), move)})
    text = json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True)
    workspace.write_atomic(path, f"{text}\n".encode())
