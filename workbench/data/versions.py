"""Names of dataset versions: ``camvid`` is the newest, ``camvid@2`` the second.

A number is given once, when a version is first registered, and stays. The index is a convenience:
it lies below ``index/datasets`` and is rebuilt from the records, oldest first, when it is away.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from workbench import workspace
from workbench.errors import RecordError
from workbench.records.base import Ref, digest_of
from workbench.records.store import Store
from workbench.records.types import DatasetVersion
from workbench.workspace import Workspace

_NUMBERED = re.compile(r"^(?P<name>[^@/:]+)(?:@(?P<number>\d+))?$")
_FORMS = "NAME, NAME@N, dataset/PREFIX or sha256:DIGEST"
_INDEX = "versions.json"


@dataclass(frozen=True)
class Version:
    """One version under its name; numbers count from 1."""

    name: str
    number: int
    ref: Ref

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


def register(place: Workspace, ref: Ref) -> Version:
    """Give a dataset version the next number of its name; one that has a number keeps it."""
    from filelock import FileLock

    record = Store(place).get(ref, DatasetVersion)
    path = _path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        names = _read(place)
        refs = names.setdefault(record.name, [])
        if ref not in refs:
            refs.append(ref)
        workspace.write_atomic(path, json.dumps(names, indent=1, sort_keys=True).encode())
    return Version(record.name, refs.index(ref) + 1, ref)


def versions(place: Workspace) -> list[Version]:
    """Every registered version, by name and number."""
    return [
        Version(name, number, ref)
        for name, refs in sorted(_read(place).items())
        for number, ref in enumerate(refs, start=1)
    ]


def resolve(place: Workspace, text: str) -> Ref:
    """The dataset version that ``text`` names: NAME, NAME@N, dataset/PREFIX or sha256:DIGEST.

    Raises:
        RecordError: None or several, with the nearest names.
    """
    if text.startswith("sha256:"):
        return _by_prefix(place, text.removeprefix("sha256:"), text)
    if text.startswith(f"{DatasetVersion.KIND}/"):
        return _by_prefix(place, text.partition("/")[2], text)
    match = _NUMBERED.match(text)
    if match is None:
        raise RecordError("not a dataset reference", where=text, hint=f"Write {_FORMS}")
    names = _read(place)
    refs = names.get(match["name"])
    if refs is None:
        raise RecordError("no dataset has this name", where=text, hint=_nearest(text, names))
    number = int(match["number"]) if match["number"] else len(refs)
    if not 1 <= number <= len(refs):
        raise RecordError(
            f"{match['name']} has {len(refs)} versions", where=text, hint="They count from 1"
        )
    return refs[number - 1]


def rebuild(place: Workspace) -> dict[str, list[Ref]]:
    """The index as the records tell it, in the order they were made."""
    store = Store(place)
    names: dict[str, list[Ref]] = {}
    for ref in store.refs(DatasetVersion.KIND):
        names.setdefault(store.get(ref, DatasetVersion).name, []).append(ref)
    return names


def _path(place: Workspace) -> Path:
    return place.index / "datasets" / _INDEX


def _read(place: Workspace) -> dict[str, list[Ref]]:
    try:
        names: dict[str, list[Ref]] = json.loads(_path(place).read_bytes())
        return names
    except (FileNotFoundError, ValueError):
        return rebuild(place)


def _by_prefix(place: Workspace, prefix: str, text: str) -> Ref:
    found = [ref for ref in Store(place).refs(DatasetVersion.KIND) if _starts(ref, prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordError(
            "no dataset has this digest", where=text, hint="`workbench datasets` lists them"
        )
    several = ", ".join(ref[:20] for ref in found[:5])
    raise RecordError(f"{len(found)} datasets match: {several}", where=text, hint="Say more digits")


def _starts(ref: Ref, prefix: str) -> bool:
    return bool(prefix) and digest_of(ref).startswith(prefix)


def _nearest(text: str, names: dict[str, list[Ref]]) -> str:
    near = difflib.get_close_matches(text, names, n=1)
    if near:
        return f"Did you mean {near[0]}? References are {_FORMS}"
    return "`workbench datasets` lists them" if names else "`workbench ingest SRC --name N` first"
