"""References as people write them, resolved to records.

    sha256:DIGEST  KIND/PREFIX  NAME  NAME@N  models:/NAME/VERSION  models:/NAME@ALIAS

``camvid`` is the newest version of that dataset, ``camvid@2`` the second. Versions are numbered
when they are registered, and a number never changes. The index of names below ``index/datasets``
is rebuilt from the records, oldest first, when it is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import RecordError
from workbench.core.text import counted, did_you_mean
from workbench.core.workspace import Workspace, write_atomic
from workbench.records.base import Ref, digest_of, short_ref
from workbench.records.releases import resolve_model
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, DatasetVersion

__all__ = [
    "list_dataset_versions",
    "register_dataset",
    "resolve_dataset",
    "resolve_reference",
]

_DATASET_NAME = re.compile(r"^(?P<name>[^@/:]+)(?:@(?P<number>\d+))?\Z")
_MODEL_URI = re.compile(r"^models:/([^/@]+)(?:/([0-9]{1,9})|@(\w+))\Z")
_DATASET_SYNTAX = "Write NAME, NAME@N, dataset/PREFIX or sha256:DIGEST"
_SYNTAX = (
    "Write sha256:DIGEST, KIND/PREFIX, NAME, NAME@N, models:/NAME/VERSION or models:/NAME@ALIAS"
)


@dataclass(frozen=True)
class RegisteredVersion:
    """A dataset version under its name; numbers start at 1."""

    name: str
    number: int
    ref: Ref

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


def resolve_reference(workspace: Workspace, text: str) -> Ref:
    """The record that ``text`` names.

    A model such as ``models:/NAME@champion`` is looked up among the signed releases; MLflow, which
    mirrors them, is not asked.

    Raises:
        RecordError: No record matches, or several do.
        VerificationError: The model's releases are not what their signatures say.
    """
    model = _MODEL_URI.match(text)
    if model:
        name, version, alias = model.groups()
        return resolve_model(workspace, name, int(version) if version else None, alias).ref
    if text.startswith("models:"):
        raise RecordError("invalid model reference", where=text, hint=_SYNTAX)
    if text.startswith("sha256:"):
        return _record_by_digest(workspace, RECORD_TYPES, text.removeprefix("sha256:"), text)
    kind, slash, prefix = text.partition("/")
    if slash and kind in RECORD_TYPES:
        return _record_by_digest(workspace, [kind], prefix, text)
    return resolve_dataset(workspace, text)


def resolve_dataset(workspace: Workspace, text: str) -> Ref:
    """The dataset version that ``text`` names: NAME, NAME@N, dataset/PREFIX or sha256:DIGEST.

    Raises:
        RecordError: No version matches, or several do.
    """
    for start in ("sha256:", f"{DatasetVersion.KIND}/"):
        if text.startswith(start):
            prefix = text.removeprefix(start)
            return _record_by_digest(workspace, [DatasetVersion.KIND], prefix, text)
    match = _DATASET_NAME.match(text)
    if match is None:
        raise RecordError("invalid dataset reference", where=text, hint=_DATASET_SYNTAX)
    names = _read_index(workspace)
    refs = names.get(match["name"])
    if refs is None:
        hint = did_you_mean(text, names) if names else "Run `workbench ingest SOURCE --name NAME`"
        raise RecordError("unknown dataset name", where=text, hint=hint)
    number = int(match["number"]) if match["number"] else len(refs)
    if not 1 <= number <= len(refs):
        message = f"{match['name']} has {counted(len(refs), 'version')}"
        raise RecordError(message, where=text, hint="Numbers start at 1")
    return refs[number - 1]


def register_dataset(workspace: Workspace, ref: Ref) -> RegisteredVersion:
    """Give a dataset version the next number of its name, unless it has a number.

    Raises:
        RecordError: The version does not exist.
    """
    from filelock import FileLock

    record = Store(workspace).get(ref, DatasetVersion)
    path = _index_path(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        names = _read_index(workspace)
        refs = names.setdefault(record.name, [])
        if ref not in refs:
            refs.append(ref)
        write_atomic(path, json.dumps(names, indent=1, sort_keys=True).encode())
    return RegisteredVersion(record.name, refs.index(ref) + 1, ref)


def list_dataset_versions(workspace: Workspace) -> list[RegisteredVersion]:
    """All registered versions, by name and number."""
    return [
        RegisteredVersion(name, number, ref)
        for name, refs in sorted(_read_index(workspace).items())
        for number, ref in enumerate(refs, start=1)
    ]


def _index_path(workspace: Workspace) -> Path:
    return workspace.index / "datasets" / "versions.json"


def _read_index(workspace: Workspace) -> dict[str, list[Ref]]:
    """References by dataset name, in the order of their numbers."""
    names: dict[str, list[Ref]] = {}
    try:
        names = json.loads(_index_path(workspace).read_bytes())
    except (FileNotFoundError, ValueError):
        store = Store(workspace)
        for ref in store.refs(DatasetVersion.KIND):
            names.setdefault(store.get(ref, DatasetVersion).name, []).append(ref)
    return names


def _record_by_digest(workspace: Workspace, kinds: Collection[str], prefix: str, text: str) -> Ref:
    store = Store(workspace)
    refs = [ref for kind in kinds for ref in store.refs(kind)]
    matches = [ref for ref in refs if prefix and digest_of(ref).startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        noun = "dataset" if list(kinds) == [DatasetVersion.KIND] else "record"
        raise RecordError(f"no {noun} has this digest", where=text, hint=_SYNTAX)
    listed = ", ".join(short_ref(ref) for ref in matches[:5])
    raise RecordError(
        f"ambiguous digest: {len(matches)} records match", where=text, hint=f"Choose from {listed}"
    )
