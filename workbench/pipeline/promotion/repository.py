"""Promoted steps as they lie in the repository, and the one way to find one.

    pipelines/promoted/STEP/VERSION/    never moves, never changes
        STEP.ipynb       the notebook, without outputs
        step.json        the `StepVersion` record, with the digest that names it
        receipt.json     the `Receipt` of its check, with its signature
    pipelines/promoted/STEP/aliases.json    moves, and remembers every move

The step's record holds the digests of the other two. All are checked on every look, so a version
that was edited is refused, not run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from workbench import digest
from workbench.errors import ContractError
from workbench.pipeline.contracts.parameters import nearest
from workbench.records.base import Ref, Row, make_ref
from workbench.records.types import StepVersion

Json = dict[str, Any]

PROMOTED = Path("pipelines") / "promoted"
STEP_FILE = "step.json"
RECEIPT_FILE = "receipt.json"
ALIASES_FILE = "aliases.json"

NAME = re.compile(r"^[A-Za-z0-9_-]+$")
_REFERENCE = re.compile(r"^([A-Za-z0-9_-]+)@([A-Za-z0-9_-]+)$")
_ALIAS = re.compile(r"^[a-z][a-z0-9_-]*$")
_RESERVED = re.compile(r"^(latest|v\d+)$")


@dataclass(frozen=True)
class Promoted:
    """One immutable version of a step. ``path`` is its notebook, checked to the byte."""

    path: Path
    version: int
    ref: Ref
    record: StepVersion

    @property
    def name(self) -> str:
        return self.record.name


def project_of(file: Path | str) -> Path:
    """The nearest folder above ``file`` that holds ``pipelines``."""
    for folder in Path(file).resolve().parents:
        if (folder / "pipelines").is_dir():
            return folder
    raise ContractError(
        "this file belongs to no project",
        where=file,
        hint="Keep it below a folder that has `pipelines` in it",
    )


class Move(Row):
    """An alias was pointed somewhere: ``by`` whom, ``at`` what time (ISO 8601, UTC)."""

    action: Literal["set", "rollback"]
    version: int
    ref: Ref
    by: str
    at: str


class Aliases(Row):
    """The content of ``aliases.json``."""

    schema_version: Literal[1] = 1
    aliases: dict[str, tuple[Move, ...]]


def is_reference(text: str) -> bool:
    """Whether ``text`` names a promoted step, as ``train@production`` and ``train@3`` do."""
    return _REFERENCE.match(text) is not None


def resolve(project: Path, reference: str) -> Promoted:
    """The version that ``STEP@ALIAS`` or ``STEP@VERSION`` names.

    Args:
        project: The folder that holds ``pipelines``.

    Raises:
        ContractError: There is no such step, version or alias, or the version was changed.
    """
    match = _REFERENCE.match(reference)
    if match is None:
        raise ContractError(
            "not the name of a promoted step",
            where=reference,
            hint="Write STEP@VERSION or STEP@ALIAS, like train@3 or train@production",
        )
    name, which = match.groups()
    known = steps(project)
    if name not in known:
        raise ContractError(
            f"no step {name!r} was promoted{nearest(name, known)}",
            where=reference,
            hint=f"Promoted are: {', '.join(known) or 'none'}",
        )
    if which.isdigit():
        return load(project, name, int(which))
    aliases = current_aliases(project, name)
    if which not in aliases:
        raise ContractError(
            f"step {name!r} has no alias {which!r}{nearest(which, list(aliases))}",
            where=reference,
            hint=f"It has: {', '.join(sorted(aliases)) or 'none'}; its versions are "
            f"{', '.join(map(str, versions(project, name)))}",
        )
    entry = aliases[which]
    found = load(project, name, entry.version)
    if found.ref != entry.ref:
        raise _changed(found.path.with_name(STEP_FILE), "is not the one that the alias was given")
    return found


def load(project: Path, name: str, version: int) -> Promoted:
    """One version, checked to the byte; raises `ContractError` when it is not there or changed."""
    folder = project / PROMOTED / name / str(version)
    if not folder.is_dir():
        listed = ", ".join(map(str, versions(project, name))) or "none"
        raise ContractError(
            f"step {name!r} has no version {version}", where=folder, hint=f"It has: {listed}"
        )
    ref, body = _read_record(folder / STEP_FILE)
    notebook = folder / f"{name}.ipynb"
    expected = body["payload"][notebook.name]["sha256"]
    if not notebook.is_file() or digest.of_file(notebook) != expected:
        raise _changed(notebook, "is missing" if not notebook.is_file() else "was changed")
    record = _record(body, folder / STEP_FILE)
    if (record.name, record.version) != (name, version):
        raise _changed(folder / STEP_FILE, f"is that of {record.name}@{record.version}")
    if _read_record(folder / RECEIPT_FILE)[0] != record.receipt:
        raise _changed(folder / RECEIPT_FILE, "was changed")
    return Promoted(notebook, version, ref, record)


def steps(project: Path) -> list[str]:
    """Names of the steps that have a version."""
    folder = project / PROMOTED
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if versions(project, entry.name))


def versions(project: Path, name: str) -> list[int]:
    """Versions of a step, oldest first."""
    folder = project / PROMOTED / name
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def history(project: Path, name: str) -> dict[str, tuple[Move, ...]]:
    """Every move of every alias of a step, oldest first; raises when the file cannot be read."""
    path = project / PROMOTED / name / ALIASES_FILE
    try:
        return Aliases.model_validate_json(path.read_bytes()).aliases
    except FileNotFoundError:
        return {}
    except ValueError as error:  # a ValidationError is one
        raise ContractError(
            "the aliases cannot be read", where=path, hint="Restore the file with git"
        ) from error


def current_aliases(project: Path, name: str) -> dict[str, Move]:
    """Alias to the move that says where it points now."""
    return {
        alias: standing(moves)[-1]
        for alias, moves in history(project, name).items()
        if standing(moves)
    }


def standing(moves: Sequence[Move]) -> list[Move]:
    """Moves that were not rolled back: the last one says where the alias points."""
    stack: list[Move] = []
    for move in moves:
        if move.action == "set":
            stack.append(move)
        elif stack:
            stack.pop()
    return stack


def check_alias(alias: str) -> None:
    """Refuse what cannot be an alias here or in MLflow; a number would be taken for a version."""
    if not _ALIAS.match(alias) or _RESERVED.match(alias):
        raise ContractError(
            "not an alias",
            where=alias,
            hint="Use lower-case letters, digits, - and _; not `latest`, nor v and a number",
        )


def _read_record(path: Path) -> tuple[Ref, Json]:
    try:
        content = json.loads(path.read_bytes())
        ref, body = content["ref"], content["record"]
        sound = ref == make_ref(body["kind"], digest.of_json(body))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _changed(path, "cannot be read") from error
    if not sound:
        raise _changed(path, "was changed")
    return ref, body


def _record(body: Json, path: Path) -> StepVersion:
    fields = {name: value for name, value in body.items() if name not in ("kind", "payload")}
    try:
        return StepVersion.model_validate(fields)
    except ValidationError as error:
        raise ContractError(
            "this step was promoted by another version of the workbench",
            where=path,
            hint="Update the workbench",
        ) from error


def _changed(path: Path, how: str) -> ContractError:
    return ContractError(
        f"{path.name} {how}; a promoted version never changes",
        where=path,
        hint="Restore it with git; to change a step, promote its notebook again",
    )
