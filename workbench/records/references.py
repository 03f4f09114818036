"""References as people write them, resolved to records.

    sha256:DIGEST  KIND/PREFIX  NAME  NAME@N  models:/NAME/VERSION  models:/NAME@ALIAS

``camvid`` is the newest version of that dataset, ``camvid@2`` the second. Versions are numbered
when they are registered, and a number never changes. It is in the version's side file; the index
of names below ``index/datasets`` mirrors it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
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
    "conflicting_versions",
    "list_dataset_versions",
    "register_dataset",
    "resolve_dataset",
    "resolve_reference",
]

_DATASET_NAME = re.compile(r"^(?P<name>[^@/:]+)(?:@(?P<number>[0-9]{1,9}))?\Z")
_PREFIX = re.compile(r"[0-9a-f]{4,64}\Z")
_DATASET_REF = re.compile(rf"{DatasetVersion.KIND}/[0-9a-f]{{64}}\Z")
_MODEL_URI = re.compile(r"^models:/([^/@]+)(?:/([0-9]{1,9})|@(\w+))\Z")
_MAX_NUMBER = 10**6
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


def resolve_reference(workspace: Workspace, text: str, kinds: Collection[str] = ()) -> Ref:
    """The record that ``text`` names.

    The first four or more digits of a digest are enough, where no dataset has that name.

    A model such as ``models:/NAME@champion`` is looked up among the signed releases; MLflow, which
    mirrors them, is not asked.

    Args:
        kinds: Kinds of record that are asked for; all by default. It is not an error if the
            record is of another kind, but the message says what was looked for.

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
    if slash:
        hint = did_you_mean(kind, RECORD_TYPES)
        raise RecordError(f"unknown kind of record {kind!r}", where=text, hint=hint)
    if _PREFIX.match(text) and text not in _numbered(workspace)[0]:
        return _record_by_digest(workspace, kinds or RECORD_TYPES, text, text)
    if kinds and DatasetVersion.KIND not in kinds:
        wanted = list(kinds)
        hint = f"Write {' or '.join(f'{kind}/PREFIX' for kind in wanted)}"
        raise RecordError(f"unknown {' or '.join(wanted)}", where=text, hint=hint)
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
    names, conflicts = _numbered(workspace)
    _refuse_conflicts(conflicts, match["name"], int(match["number"] or 0))
    versions = names.get(match["name"])
    if versions is None:
        hint = did_you_mean(text, names) if names else "Run `workbench ingest SOURCE --name NAME`"
        raise RecordError("unknown dataset name", where=text, hint=hint)
    number = int(match["number"]) if match["number"] else max(versions)
    if number not in versions:
        message = f"{match['name']} has {counted(len(versions), 'version')}"
        raise RecordError(message, where=text, hint=f"Numbers: {_listed(versions)}")
    found = versions[number]
    if Store(workspace).get(found, DatasetVersion).name != match["name"]:
        raise RecordError(
            f"the version numbered {match['name']}@{number} has another name",
            where=found,
            hint="Remove its side/version.json, which was changed",
        )
    return found


def register_dataset(workspace: Workspace, ref: Ref) -> RegisteredVersion:
    """Give a dataset version the next number of its name, unless it has a number.

    Raises:
        RecordError: The version does not exist.
    """
    from filelock import FileLock

    store = Store(workspace)
    record = store.get(ref, DatasetVersion)
    path = _index_path(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        names, conflicts = _numbered(workspace)
        _refuse_conflicts(conflicts, record.name)
        versions = names.setdefault(record.name, {})
        known = [number for number, version in versions.items() if version == ref]
        number = known[0] if known else max(versions, default=0) + 1
        versions[number] = ref
        for name, numbers in names.items():
            for value, version in numbers.items():
                side = {"name": name, "number": value}
                if store.side(version, "version") != side:
                    store.write_side(version, "version", side)
        index = {name: _as_list(numbers) for name, numbers in names.items()}
        write_atomic(path, json.dumps(index, indent=1, sort_keys=True).encode())
    return RegisteredVersion(record.name, number, ref)


def list_dataset_versions(workspace: Workspace) -> list[RegisteredVersion]:
    """All registered versions, by name and number, without `conflicting_versions`."""
    return [
        RegisteredVersion(name, number, ref)
        for name, versions in sorted(_numbered(workspace)[0].items())
        for number, ref in sorted(versions.items())
    ]


def conflicting_versions(workspace: Workspace) -> list[RegisteredVersion]:
    """Versions whose number another version of the same name has, too; both are listed."""
    return _numbered(workspace)[1]


def _refuse_conflicts(conflicts: list[RegisteredVersion], name: str, number: int = 0) -> None:
    """Refuse a version whose number two have, or, without a number, a name with such versions."""
    both = [one for one in conflicts if one.name == name and number in (0, one.number)]
    if both:
        raise RecordError(
            f"two dataset versions are {both[0]}",
            where=" and ".join(one.ref for one in both if one.number == both[0].number),
            hint="Remove side/version.json of the one that is wrong",
        )


def _listed(versions: Collection[int]) -> str:
    numbers = sorted(versions)
    contiguous = numbers == list(range(1, len(numbers) + 1))
    return f"1 to {len(numbers)}" if contiguous else ", ".join(map(str, numbers))


def _as_list(versions: dict[int, Ref]) -> list[Ref | None]:
    """Versions in the order of their numbers; None for a number whose record is gone."""
    return [versions.get(number) for number in range(1, max(versions) + 1)]


def _index_path(workspace: Workspace) -> Path:
    return workspace.index / "datasets" / "versions.json"


def _numbered(
    workspace: Workspace,
) -> tuple[dict[str, dict[int, Ref]], list[RegisteredVersion]]:
    """Dataset versions by name and number, and those whose number is not theirs alone.

    A number is in the version's side file. The index has the numbers from before that, and of
    versions whose side file is damaged; it is not believed about a version that is not of its name.
    """
    store = Store(workspace)
    refs = list(store.refs(DatasetVersion.KIND))
    names: dict[str, dict[int, Ref]] = {}
    claims: dict[tuple[str, int], list[Ref]] = {}
    for ref in refs:
        side = store.side(ref, "version")
        if side and 0 < side["number"] <= _MAX_NUMBER:
            claims.setdefault((side["name"], side["number"]), []).append(ref)
    conflicts = []
    for (name, number), claimed in claims.items():
        if len(claimed) == 1:
            names.setdefault(name, {})[number] = claimed[0]
        else:
            conflicts += [RegisteredVersion(name, number, ref) for ref in claimed]
    numbered = {ref for claimed in claims.values() for ref in claimed}
    for name, number, ref in _index_entries(workspace):
        if ref in numbered or number in names.get(name, {}):
            continue
        # A version whose record is lost keeps its number: resolving it is refused.
        if _name_of(store, ref) == name or not store.exists(ref):
            names.setdefault(name, {})[number] = ref
            numbered.add(ref)
    if not numbered:  # an index was lost that was the only place of the numbers
        for ref in refs:
            versions = names.setdefault(_name_of(store, ref) or "", {})
            versions[len(versions) + 1] = ref
        names.pop("", None)
    return names, conflicts


def _name_of(store: Store, ref: Ref) -> str | None:
    """Name of a dataset version; None if its record is damaged."""
    try:
        return store.get(ref, DatasetVersion).name
    except RecordError:
        return None


def _index_entries(workspace: Workspace) -> Iterator[tuple[str, int, Ref]]:
    """Name, number and version of each entry; none if the index is missing or damaged."""
    try:
        names = json.loads(_index_path(workspace).read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    for name, refs in names.items() if isinstance(names, dict) else ():
        for number, ref in enumerate(refs if isinstance(refs, list) else (), start=1):
            if isinstance(ref, str) and _DATASET_REF.match(ref):
                yield name, number, ref


def _record_by_digest(workspace: Workspace, kinds: Collection[str], prefix: str, text: str) -> Ref:
    store = Store(workspace)
    refs = [ref for kind in kinds for ref in store.refs(kind)]
    matches = [ref for ref in refs if prefix and digest_of(ref).startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        noun = " or ".join(kinds) if len(kinds) < len(RECORD_TYPES) else "record"
        raise RecordError(f"no {noun} has this digest", where=text, hint=_SYNTAX)
    listed = ", ".join(short_ref(ref) for ref in matches[:5])
    raise RecordError(
        f"ambiguous digest: {len(matches)} records match", where=text, hint=f"Choose from {listed}"
    )
