"""Promoted steps in the repository: find a version, and move its aliases.

    pipelines/promoted/STEP/VERSION/    immutable
        STEP.ipynb       the notebook, without outputs
        step.json        the `StepVersion` record, with its digest and signature
        receipt.json     the `CheckReceipt`, with its signature
    pipelines/promoted/keys/            public keys of those who may promote
    pipelines/promoted/STEP/aliases.json    every move of every alias

The step's record contains the digests of the other two files. All are verified whenever a version
is loaded, with their signatures: by the workspace's key or one in ``keys``. So an edited version is
rejected, also one whose digests were made to fit; a new key is a change that reviewers see.
Versions never change; aliases move, and each move records who made it and when.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.credentials import PUBLIC_KEY_SUFFIX
from workbench.core.errors import ContractError, VerificationError
from workbench.core.keyring import read_keyring, usable_keys
from workbench.core.names import check_person, shown
from workbench.core.parsing import UNREADABLE, parse_json, read_regular
from workbench.core.signatures import check_reference, key_fingerprint
from workbench.core.text import did_you_mean
from workbench.core.types import Json
from workbench.core.workspace import Workspace, exclusive, find_workspace, write_atomic
from workbench.pipeline.contract import notebook_without_outputs, read_contract
from workbench.records.base import FrozenModel, Ref, make_ref
from workbench.records.model_types import NotebookSource, StepVersion

__all__ = ["PromotedStep"]

PROMOTED_FOLDER = Path("pipelines") / "promoted"
STEP_FILE = "step.json"
RECEIPT_FILE = "receipt.json"
KEYS_FOLDER = "keys"
RECEIPT_PURPOSE, STEP_PURPOSE = "check receipt", "promoted step"
_UNSIGNED = (1,)
"""Versions of receipts from when promoted versions were not signed."""

STEP_NAME = re.compile(r"^[A-Za-z0-9_-]{1,100}\Z")

IDENTITY_FIELDS = ("notebook", "contract", "modules", "environment")
"""Fields that a version takes from its receipt, and that make two versions equal."""

_ALIASES_FILE = "aliases.json"
_STEP_REFERENCE = re.compile(r"^([A-Za-z0-9_-]+)@([A-Za-z0-9_-]+)\Z")
_ALIAS_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,99}\Z")
_RESERVED_ALIAS = re.compile(r"^(latest|v\d+)\Z")
_LOCK_TIMEOUT_S = 10
_MAX_RECORD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class PromotedStep:
    """One immutable version of a step; its notebook at ``path`` has been verified."""

    path: Path
    version: int
    ref: Ref
    record: StepVersion

    @property
    def name(self) -> str:
        return self.record.name


class AliasMove(FrozenModel):
    """One move of an alias.

    Attributes:
        by: Who made it.
        at: When, as ISO 8601 in UTC.
    """

    action: Literal["set", "rollback"]
    version: int
    ref: Ref
    by: str
    at: str


class _StepAliases(FrozenModel):
    """The content of ``aliases.json``: each alias's moves, oldest first."""

    schema_version: Literal[1] = 1
    aliases: dict[str, tuple[AliasMove, ...]]


def find_project(file: Path | str) -> Path:
    """The nearest folder above ``file`` that has a ``pipelines`` folder.

    Raises:
        ContractError: There is none.
    """
    for folder in Path(file).resolve().parents:
        if (folder / "pipelines").is_dir():
            return folder
    raise ContractError(
        "the file belongs to no project",
        where=file,
        hint="Move it below a folder that contains `pipelines`",
    )


def resolve_step(project: Path, reference: str) -> PromotedStep:
    """The version that ``STEP@VERSION`` or ``STEP@ALIAS`` names.

    Raises:
        ContractError: There is no such step, version or alias, or the version was changed.
    """
    match = _STEP_REFERENCE.match(reference)
    if match is None:
        raise ContractError(
            "invalid reference to a promoted step",
            where=reference,
            hint="Write STEP@VERSION or STEP@ALIAS, like train@3 or train@production",
        )
    name, which = match.groups()
    _require_step(project, name)
    if which.isdecimal():
        return load_step(project, name, int(which))
    aliases = current_aliases(project, name)
    if which not in aliases:
        raise ContractError(
            f"step {name!r} has no alias {which!r}",
            where=reference,
            hint=did_you_mean(which, [*sorted(aliases), *map(str, list_versions(project, name))]),
        )
    move = aliases[which]
    step = load_step(project, name, move.version)
    if step.ref != move.ref:
        raise _changed_error(step.path.with_name(STEP_FILE), "differs from the alias's record")
    return step


def load_step(project: Path, name: str, version: int) -> PromotedStep:
    """Load one version and verify all its files.

    Raises:
        ContractError: There is no such version, or one of its files was changed.
    """
    if not STEP_NAME.match(name):
        raise ContractError("invalid step name", where=shown(name))
    folder = project / PROMOTED_FOLDER / name / str(version)
    if not folder.is_dir():
        versions = ", ".join(map(str, list_versions(project, name))) or "none"
        raise ContractError(
            f"step {name!r} has no version {version}", where=folder, hint=f"Versions: {versions}"
        )
    ref, body, signature = _read_record_file(folder / STEP_FILE)
    notebook = folder / f"{name}.ipynb"
    if notebook.is_symlink() or not notebook.is_file():
        raise _changed_error(notebook, "is missing")
    try:
        expected = body["payload"][notebook.name]["sha256"]
    except UNREADABLE as error:
        raise _changed_error(folder / STEP_FILE, "does not name its notebook") from error
    if digest.of_file(notebook) != expected:
        raise _changed_error(notebook, "was changed")
    record = _parse_step_version(body, folder / STEP_FILE)
    if (record.name, record.version) != (name, version):
        raise _changed_error(folder / STEP_FILE, f"belongs to {record.name}@{record.version}")
    receipt = _check_receipt(project, folder, record)
    try:
        if signature is not None or receipt.get("schema_version") not in _UNSIGNED:
            check_reference(signature, STEP_PURPOSE, ref, _trusted_keys(project))
        elif _source_ref(notebook) != record.notebook:  # promoted before versions were signed
            raise _changed_error(notebook, "is not the notebook that was checked")
    except VerificationError as error:
        raise _changed_error(folder / STEP_FILE, f"is not trusted: {error.what}") from error
    return PromotedStep(notebook, version, ref, record)


def _trusted_keys(project: Path) -> list[Path]:
    """Public keys whose promotions count: the workspace's own and those in the repository.

    Those that the workspace revoked are left out.
    """
    folder = project / PROMOTED_FOLDER / KEYS_FOLDER
    keys = sorted(folder.glob(f"*{PUBLIC_KEY_SUFFIX}"))
    with contextlib.suppress(VerificationError):
        workspace = find_workspace()
        revoked = {one.key for one in read_keyring(workspace).keys if one.revoked}
        keys = [key for key in keys if key_fingerprint(key) not in revoked]
        keys += usable_keys(workspace, "release")
    return keys


def _check_receipt(project: Path, folder: Path, record: StepVersion) -> Json:
    """The receipt has to be signed, and about the notebook, contract and modules of the version."""
    path = folder / RECEIPT_FILE
    ref, body, signature = _read_record_file(path)
    if ref != record.receipt:
        raise _changed_error(path, "was changed")
    if any(body.get(field) != getattr(record, field) for field in IDENTITY_FIELDS):
        raise _changed_error(path, "belongs to another notebook")
    try:
        check_reference(signature, RECEIPT_PURPOSE, ref, _trusted_keys(project))
    except VerificationError as error:
        raise _changed_error(path, f"is not trusted: {error.what}") from error
    return body


def _source_ref(notebook: Path) -> Ref:
    """The reference of the `NotebookSource` record that this file would have."""
    content = notebook_without_outputs(notebook)
    contract = read_contract(notebook)
    body = {
        **NotebookSource(name=contract.name, code=contract.code).model_dump(mode="json"),
        "kind": NotebookSource.KIND,
        "payload": {"notebook.ipynb": {"sha256": digest.of_bytes(content), "bytes": len(content)}},
    }
    return make_ref(NotebookSource.KIND, digest.of_json(body))


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
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def alias_history(project: Path, name: str) -> dict[str, tuple[AliasMove, ...]]:
    """Every move of every alias of a step, oldest first.

    Raises:
        ContractError: The file is damaged.
    """
    path = project / PROMOTED_FOLDER / name / _ALIASES_FILE
    try:
        return _StepAliases.model_validate_json(path.read_bytes()).aliases
    except FileNotFoundError:
        return {}
    except ValueError as error:  # a ValidationError is one
        raise ContractError(
            "the aliases cannot be read", where=path, hint="Restore the file with git"
        ) from error


def current_aliases(project: Path, name: str) -> dict[str, AliasMove]:
    """Each alias with the move that it stands at."""
    active = {alias: _active_moves(moves) for alias, moves in alias_history(project, name).items()}
    return {alias: moves[-1] for alias, moves in active.items() if moves}


def _active_moves(moves: Sequence[AliasMove]) -> list[AliasMove]:
    """Moves that were not rolled back; the alias stands at the last one."""
    stack: list[AliasMove] = []
    for move in moves:
        if move.action == "set":
            stack.append(move)
        elif stack:
            stack.pop()
    return stack


def check_alias(alias: str) -> None:
    """Check that a name can be an alias here and in MLflow.

    Raises:
        ContractError: It cannot.
    """
    if not _ALIAS_NAME.match(alias) or _RESERVED_ALIAS.match(alias):
        raise ContractError(
            "invalid alias",
            where=alias,
            hint="Use lower-case letters, digits, - and _; not `latest`, nor v and a number",
        )


def move_alias(
    workspace: Workspace, project: Path, reference: str, alias: str, *, by: str
) -> PromotedStep:
    """Point ``alias`` to a version; nothing changes when it points there already.

    Args:
        reference: ``STEP@VERSION``, or ``STEP@ALIAS`` for where another alias points.
        by: Who moves it.

    Raises:
        ContractError: There is no such version, it was changed, or the alias is invalid.
    """
    check_alias(alias)
    with promotion_lock(workspace, project):
        step = resolve_step(project, reference)
        now = current_aliases(project, step.name).get(alias)
        if now is None or now.ref != step.ref:
            _append_move(workspace, project, step, alias, by, "set")
    return step


def roll_back_alias(
    workspace: Workspace, project: Path, name: str, alias: str, *, by: str
) -> PromotedStep:
    """Point ``alias`` to where it pointed before; each call goes back one move further.

    Raises:
        ContractError: The alias has never pointed elsewhere, or that version was changed.
    """
    with promotion_lock(workspace, project):
        _require_step(project, name)
        history = alias_history(project, name)
        if alias not in history:
            raise ContractError(
                f"step {name!r} has no alias {alias!r}", hint=did_you_mean(alias, sorted(history))
            )
        moves = _active_moves(history[alias])
        if len(moves) < 2:
            raise ContractError(
                f"alias {alias!r} of {name!r} points to its first version",
                where=project / PROMOTED_FOLDER / name / _ALIASES_FILE,
                hint=f"`workbench steps alias {name}@VERSION {alias}` points it elsewhere",
            )
        step = load_step(project, name, moves[-2].version)
        _append_move(workspace, project, step, alias, by, "rollback")
    return step


def promotion_lock(workspace: Workspace, project: Path) -> AbstractContextManager[None]:
    """Let one process at a time change the promoted steps of ``project``.

    Raises:
        WorkbenchError: Another process still holds the lock after ten seconds.
    """
    name = digest.shorten(digest.of_bytes(str(project.resolve()).encode()))
    doing = f"changing the promoted steps of {project}"
    return exclusive(workspace, f"promoted-{name}", doing, timeout_s=_LOCK_TIMEOUT_S)


def _append_move(
    workspace: Workspace,
    project: Path,
    step: PromotedStep,
    alias: str,
    by: str,
    action: Literal["set", "rollback"],
) -> None:
    history = alias_history(project, step.name)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    by = check_person(by, "name of who moves the alias")
    move = AliasMove(action=action, version=step.version, ref=step.ref, by=by, at=now)
    content = _StepAliases(aliases={**history, alias: (*history.get(alias, ()), move)})
    text = json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True)
    path = project / PROMOTED_FOLDER / step.name / _ALIASES_FILE
    write_atomic(path, f"{text}\n".encode())
    name = f"{step.name}@{step.version}"
    audit.append(
        workspace, "alias-moved", by=by, subjects=(step.ref,), alias=alias, name=name, action=action
    )


def _require_step(project: Path, name: str) -> None:
    known = list_steps(project)
    if name not in known:
        raise ContractError(
            f"no promoted step {name!r}",
            where=project / PROMOTED_FOLDER,
            hint=did_you_mean(name, known),
        )


def _read_record_file(path: Path) -> tuple[Ref, Json, object]:
    """Reference, record and signature of a file."""
    try:
        content = parse_json(read_regular(path, max_bytes=_MAX_RECORD_BYTES))
        ref, body = content["ref"], content["record"]
        is_intact = ref == make_ref(body["kind"], digest.of_json(body))
    except (OSError, *UNREADABLE) as error:
        raise _changed_error(path, "cannot be read") from error
    if not is_intact:
        raise _changed_error(path, "was changed")
    return ref, body, content.get("signature")


def _parse_step_version(body: Json, path: Path) -> StepVersion:
    fields = {name: value for name, value in body.items() if name not in ("kind", "payload")}
    try:
        return StepVersion.model_validate(fields)
    except ValidationError as error:
        raise ContractError(
            "the step was promoted by another version of the workbench",
            where=path,
            hint="Update the workbench",
        ) from error


def _changed_error(path: Path, how: str) -> ContractError:
    return ContractError(
        f"{path.name} {how}; a promoted version never changes",
        where=path,
        hint="Restore it with git; to change a step, promote its notebook again",
    )
