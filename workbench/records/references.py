"""References as people write them, resolved to records.

sha256:DIGEST  KIND/PREFIX  NAME  NAME@N  models:/NAME/VERSION  models:/NAME@ALIAS

``camvid`` is the newest version of that dataset, ``camvid@2`` the second. A number is given once,
when a version is first registered, and stays. The index below ``index/datasets`` is a convenience:
it is rebuilt from the records, oldest first, when it is missing.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from workbench import services
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace, write_atomic
from workbench.records.base import Ref, digest_of
from workbench.records.model_types import Release
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, DatasetVersion

_DATASET_NAME = re.compile(r"^(?P<name>[^@/:]+)(?:@(?P<number>\d+))?$")
_DATASET_FORMS = "NAME, NAME@N, dataset/PREFIX or sha256:DIGEST"
_INDEX_FILE = "versions.json"


@dataclass(frozen=True)
class RegisteredVersion:
    """One version under its name; numbers count from 1."""

    name: str
    number: int
    ref: Ref

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


def register_dataset(workspace: Workspace, ref: Ref) -> RegisteredVersion:
    """Give a dataset version the next number of its name; one that has a number keeps it."""
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
    """Every registered version, by name and number."""
    return [
        RegisteredVersion(name, number, ref)
        for name, refs in sorted(_read_index(workspace).items())
        for number, ref in enumerate(refs, start=1)
    ]


def resolve_dataset(workspace: Workspace, text: str) -> Ref:
    """The dataset version that ``text`` names: NAME, NAME@N, dataset/PREFIX or sha256:DIGEST.

    Raises:
        RecordError: None or several, with the nearest names.
    """
    if text.startswith("sha256:"):
        return _dataset_by_digest(workspace, text.removeprefix("sha256:"), text)
    if text.startswith(f"{DatasetVersion.KIND}/"):
        return _dataset_by_digest(workspace, text.partition("/")[2], text)
    match = _DATASET_NAME.match(text)
    if match is None:
        raise RecordError("not a dataset reference", where=text, hint=f"Write {_DATASET_FORMS}")
    names = _read_index(workspace)
    refs = names.get(match["name"])
    if refs is None:
        raise RecordError(
            "no dataset has this name", where=text, hint=_nearest_dataset_hint(text, names)
        )
    number = int(match["number"]) if match["number"] else len(refs)
    if not 1 <= number <= len(refs):
        raise RecordError(
            f"{match['name']} has {len(refs)} versions", where=text, hint="They count from 1"
        )
    return refs[number - 1]


def rebuild_dataset_index(workspace: Workspace) -> dict[str, list[Ref]]:
    """The index as the records tell it, in the order they were made."""
    store = Store(workspace)
    names: dict[str, list[Ref]] = {}
    for ref in store.refs(DatasetVersion.KIND):
        names.setdefault(store.get(ref, DatasetVersion).name, []).append(ref)
    return names


def _index_path(workspace: Workspace) -> Path:
    return workspace.index / "datasets" / _INDEX_FILE


def _read_index(workspace: Workspace) -> dict[str, list[Ref]]:
    try:
        names: dict[str, list[Ref]] = json.loads(_index_path(workspace).read_bytes())
        return names
    except (FileNotFoundError, ValueError):
        return rebuild_dataset_index(workspace)


def _dataset_by_digest(workspace: Workspace, prefix: str, text: str) -> Ref:
    found = [
        ref
        for ref in Store(workspace).refs(DatasetVersion.KIND)
        if _digest_starts_with(ref, prefix)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordError(
            "no dataset has this digest", where=text, hint="`workbench datasets` lists them"
        )
    several = ", ".join(ref[:20] for ref in found[:5])
    raise RecordError(f"{len(found)} datasets match: {several}", where=text, hint="Say more digits")


def _digest_starts_with(ref: Ref, prefix: str) -> bool:
    return bool(prefix) and digest_of(ref).startswith(prefix)


def _nearest_dataset_hint(text: str, names: dict[str, list[Ref]]) -> str:
    near = difflib.get_close_matches(text, names, n=1)
    if near:
        return f"Did you mean {near[0]}? References are {_DATASET_FORMS}"
    return "`workbench datasets` lists them" if names else "`workbench ingest SRC --name N` first"


# ---- References as people write them, to records.
#
# sha256:DIGEST  KIND/PREFIX  NAME  NAME@N  models:/NAME/VERSION  models:/NAME@ALIAS


_MODEL_URI = re.compile(r"^models:/([^/@]+)(?:/(\d+)|@(\w+))$")
_REFERENCE_FORMS = "sha256:…, KIND/PREFIX, NAME, NAME@N, models:/NAME/VERSION or models:/NAME@ALIAS"


def resolve_reference(workspace: Workspace, text: str) -> Ref:
    """The one record that ``text`` names; raises `RecordError` when there is none or several."""
    model = _MODEL_URI.match(text)
    if model:
        return _released_model(workspace, *model.groups())
    if text.startswith("models:"):
        raise RecordError(
            "not a model reference", where=text, hint=f"References are {_REFERENCE_FORMS}"
        )
    if text.startswith("sha256:"):
        return _record_by_digest(workspace, list(RECORD_TYPES), text.removeprefix("sha256:"), text)
    kind, slash, prefix = text.partition("/")
    if slash and kind in RECORD_TYPES:
        return _record_by_digest(workspace, [kind], prefix, text)

    return resolve_dataset(workspace, text)


def _record_by_digest(workspace: Workspace, kinds: list[str], prefix: str, text: str) -> Ref:
    store = Store(workspace)
    found = [ref for kind in kinds for ref in store.refs(kind) if digest_of(ref).startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordError(
            "no record has this digest", where=text, hint=f"References are {_REFERENCE_FORMS}"
        )
    several = ", ".join(ref[: ref.index("/") + 13] for ref in found[:5])
    raise RecordError(f"{len(found)} records match: {several}", where=text, hint="Give more digits")


def _released_model(workspace: Workspace, name: str, version: str | None, alias: str | None) -> Ref:
    """A version from the release records; an alias, which moves, from the registry."""
    store = Store(workspace)
    versions: dict[int, Ref] = {}
    for ref in store.refs(Release.KIND):
        if store.get(ref, Release).model == name:
            registered = store.side(ref, "registry") or {}
            versions[registered.get("version", 0)] = ref
    if not versions or (version is not None and int(version) not in versions):
        known = ", ".join(str(number) for number in sorted(versions)) or "none"
        raise RecordError(
            "no release here is registered as this",
            where=f"models:/{name}/{version}" if version else f"models:/{name}@{alias}",
            hint=f"Versions of {name} made in this workspace: {known}",
        )
    if version is not None:
        return versions[int(version)]
    from workbench.tracking import Tracker

    services.up(workspace, ("mlflow",))
    uri = services.environment(workspace, ("mlflow",))["MLFLOW_TRACKING_URI"]
    return Tracker(uri, "workbench").release_of(name, alias=str(alias))
