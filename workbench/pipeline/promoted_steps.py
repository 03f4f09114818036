"""Promoted steps in the repository: find a version, and move its aliases."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from workbench.core import digest, workspace
from workbench.core.errors import ContractError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline.parameters import did_you_mean
from workbench.records.base import FrozenModel, Ref, make_ref
from workbench.records.model_types import StepVersion

Json = dict[str, Any]

PROMOTED_FOLDER = Path("pipelines") / "promoted"
STEP_FILE = "step.json"
RECEIPT_FILE = "receipt.json"
ALIASES_FILE = "aliases.json"

STEP_NAME = re.compile(r"^[A-Za-z0-9_-]+$")
_STEP_REFERENCE = re.compile(r"^([A-Za-z0-9_-]+)@([A-Za-z0-9_-]+)$")
_ALIAS_NAME = re.compile(r"^[a-z][a-z0-9_-]*$")
_RESERVED_ALIAS = re.compile(r"^(latest|v\d+)$")


@dataclass(frozen=True)
class PromotedStep:
    """One immutable version of a step. ``path`` is its notebook, checked to the byte."""

    path: Path
    version: int
    ref: Ref
    record: StepVersion

    @property
    def name(self) -> str:
        return self.record.name


def find_project(file: Path | str) -> Path:
    """The nearest folder above ``file`` that holds ``pipelines``."""
    for folder in Path(file).resolve().parents:
        if (folder / "pipelines").is_dir():
            return folder
    raise ContractError(
        "this file belongs to no project",
        where=file,
        hint="Keep it below a folder that has `pipelines` in it",
    )


class AliasMove(FrozenModel):
    """An alias was pointed somewhere: ``by`` whom, ``at`` what time (ISO 8601, UTC)."""

    action: Literal["set", "rollback"]
    version: int
    ref: Ref
    by: str
    at: str


class StepAliases(FrozenModel):
    """The content of ``aliases.json``."""

    schema_version: Literal[1] = 1
    aliases: dict[str, tuple[AliasMove, ...]]


def is_step_reference(text: str) -> bool:
    """Whether ``text`` names a promoted step, as ``train@production`` and ``train@3`` do."""
    return _STEP_REFERENCE.match(text) is not None


def resolve_step(project: Path, reference: str) -> PromotedStep:
    """The version that ``STEP@ALIAS`` or ``STEP@VERSION`` names.

    Args:
        project: The folder that holds ``pipelines``.

    Raises:
        ContractError: There is no such step, version or alias, or the version was changed.
    """
    match = _STEP_REFERENCE.match(reference)
    if match is None:
        raise ContractError(
            "not the name of a promoted step",
            where=reference,
            hint="Write STEP@VERSION or STEP@ALIAS, like train@3 or train@production",
        )
    name, which = match.groups()
    known = list_steps(project)
    if name not in known:
        raise ContractError(
            f"no step {name!r} was promoted{did_you_mean(name, known)}",
            where=reference,
            hint=f"Promoted are: {', '.join(known) or 'none'}",
        )
    if which.isdigit():
        return load_step(project, name, int(which))
    aliases = current_aliases(project, name)
    if which not in aliases:
        raise ContractError(
            f"step {name!r} has no alias {which!r}{did_you_mean(which, list(aliases))}",
            where=reference,
            hint=f"It has: {', '.join(sorted(aliases)) or 'none'}; its versions are "
            f"{', '.join(map(str, list_versions(project, name)))}",
        )
    entry = aliases[which]
    found = load_step(project, name, entry.version)
    if found.ref != entry.ref:
        raise _changed_error(
            found.path.with_name(STEP_FILE), "is not the one that the alias was given"
        )
    return found


def load_step(project: Path, name: str, version: int) -> PromotedStep:
    """One version, checked to the byte; raises `ContractError` when it is not there or changed."""
    folder = project / PROMOTED_FOLDER / name / str(version)
    if not folder.is_dir():
        listed = ", ".join(map(str, list_versions(project, name))) or "none"
        raise ContractError(
            f"step {name!r} has no version {version}", where=folder, hint=f"It has: {listed}"
        )
    ref, body = _read_record_file(folder / STEP_FILE)
    notebook = folder / f"{name}.ipynb"
    expected = body["payload"][notebook.name]["sha256"]
    if not notebook.is_file() or digest.of_file(notebook) != expected:
        raise _changed_error(notebook, "is missing" if not notebook.is_file() else "was changed")
    record = _parse_step_version(body, folder / STEP_FILE)
    if (record.name, record.version) != (name, version):
        raise _changed_error(folder / STEP_FILE, f"is that of {record.name}@{record.version}")
    if _read_record_file(folder / RECEIPT_FILE)[0] != record.receipt:
        raise _changed_error(folder / RECEIPT_FILE, "was changed")
    return PromotedStep(notebook, version, ref, record)


def list_steps(project: Path) -> list[str]:
    """Names of the steps that have a version."""
    folder = project / PROMOTED_FOLDER
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if list_versions(project, entry.name))


def list_versions(project: Path, name: str) -> list[int]:
    """Versions of a step, oldest first."""
    folder = project / PROMOTED_FOLDER / name
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def alias_history(project: Path, name: str) -> dict[str, tuple[AliasMove, ...]]:
    """Every move of every alias of a step, oldest first; raises when the file cannot be read."""
    path = project / PROMOTED_FOLDER / name / ALIASES_FILE
    try:
        return StepAliases.model_validate_json(path.read_bytes()).aliases
    except FileNotFoundError:
        return {}
    except ValueError as error:  # a ValidationError is one
        raise ContractError(
            "the aliases cannot be read", where=path, hint="Restore the file with git"
        ) from error


def current_aliases(project: Path, name: str) -> dict[str, AliasMove]:
    """Alias to the move that says where it points now."""
    return {
        alias: active_moves(moves)[-1]
        for alias, moves in alias_history(project, name).items()
        if active_moves(moves)
    }


def active_moves(moves: Sequence[AliasMove]) -> list[AliasMove]:
    """Moves that were not rolled back: the last one says where the alias points."""
    stack: list[AliasMove] = []
    for move in moves:
        if move.action == "set":
            stack.append(move)
        elif stack:
            stack.pop()
    return stack


def check_alias(alias: str) -> None:
    """Refuse what cannot be an alias here or in MLflow; a number would be taken for a version."""
    if not _ALIAS_NAME.match(alias) or _RESERVED_ALIAS.match(alias):
        raise ContractError(
            "not an alias",
            where=alias,
            hint="Use lower-case letters, digits, - and _; not `latest`, nor v and a number",
        )


def _read_record_file(path: Path) -> tuple[Ref, Json]:
    try:
        content = json.loads(path.read_bytes())
        ref, body = content["ref"], content["record"]
        sound = ref == make_ref(body["kind"], digest.of_json(body))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _changed_error(path, "cannot be read") from error
    if not sound:
        raise _changed_error(path, "was changed")
    return ref, body


def _parse_step_version(body: Json, path: Path) -> StepVersion:
    fields = {name: value for name, value in body.items() if name not in ("kind", "payload")}
    try:
        return StepVersion.model_validate(fields)
    except ValidationError as error:
        raise ContractError(
            "this step was promoted by another version of the workbench",
            where=path,
            hint="Update the workbench",
        ) from error


def _changed_error(path: Path, how: str) -> ContractError:
    return ContractError(
        f"{path.name} {how}; a promoted version never changes",
        where=path,
        hint="Restore it with git; to change a step, promote its notebook again",
    )


# ---- Aliases of promoted steps: they move, versions do not. Every move keeps who made it and when.


_LOCK_TIMEOUT_S = 10


def move_alias(
    place: Workspace, project: Path, reference: str, alias: str, *, by: str
) -> PromotedStep:
    """Let ``alias`` point to ``STEP@VERSION``; pointing where it points already changes nothing.

    Raises:
        ContractError: No such version, one that was changed, or no name for an alias.
    """
    check_alias(alias)
    with promotion_lock(place, project):
        found = resolve_step(project, reference)
        now = current_aliases(project, found.name).get(alias)
        if now is None or now.ref != found.ref:
            _append_move(project, found, alias, by, "set")
    return found


def roll_back_alias(
    place: Workspace, project: Path, name: str, alias: str, *, by: str
) -> PromotedStep:
    """Let ``alias`` point where it did before; done twice, it goes back twice.

    Raises:
        ContractError: It never pointed anywhere else, or that version was changed.
    """
    with promotion_lock(place, project):
        known = list_steps(project)
        if name not in known:
            raise ContractError(
                f"no step {name!r} was promoted{did_you_mean(name, known)}",
                hint=f"Promoted are: {', '.join(known) or 'none'}",
            )
        moves = alias_history(project, name)
        if alias not in moves:
            raise ContractError(
                f"step {name!r} has no alias {alias!r}{did_you_mean(alias, list(moves))}",
                hint=f"It has: {', '.join(sorted(moves)) or 'none'}",
            )
        stack = active_moves(moves[alias])
        if len(stack) < 2:
            raise ContractError(
                f"{alias!r} of {name!r} points to its first version",
                where=project / PROMOTED_FOLDER / name / ALIASES_FILE,
                hint=f"`workbench steps alias {name}@VERSION {alias}` points it elsewhere",
            )
        found = load_step(project, name, stack[-2].version)
        _append_move(project, found, alias, by, "rollback")
    return found


@contextlib.contextmanager
def promotion_lock(place: Workspace, project: Path) -> Iterator[None]:
    """Let one process at a time change what is promoted in ``project``."""
    name = digest.shorten(digest.of_bytes(str(project.resolve()).encode()))
    path = place.root / "locks" / f"promoted-{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise WorkbenchError(
            "another process is changing the promoted steps", where=project, hint="Try again"
        ) from error


def _append_move(
    project: Path, found: PromotedStep, alias: str, by: str, action: Literal["set", "rollback"]
) -> None:
    path = project / PROMOTED_FOLDER / found.name / ALIASES_FILE
    moves = alias_history(project, found.name)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    move = AliasMove(action=action, version=found.version, ref=found.ref, by=by, at=now)
    content = StepAliases(aliases={**moves, alias: (*moves.get(alias, ()), move)})
    text = json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True)
    workspace.write_atomic(path, f"{text}\n".encode())
