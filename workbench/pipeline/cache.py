"""Step keys: everything that can shape a step's outputs in one digest, and the index of keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core import digest, workspace
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.pipeline import environment, secret_scan
from workbench.pipeline.contract import StepContract
from workbench.records.base import Ref
from workbench.records.model_types import StepRun
from workbench.records.store import Store

Json = dict[str, Any]

PART_NAMES = {
    "code": "a cell of the notebook",
    "contract": "the notebook's contract",
    "modules": "a workbench module that it imports",
    "parameters": "a parameter",
    "inputs": "an input",
    "sources": "a file or folder that it reads",
    "environment": "the installed packages or the machine",
    "threads": "the number of threads",
}


_MAX_NAMES = 6


@dataclass(frozen=True)
class StepKey:
    """``digest`` names the work; ``parts``, which it digests, tell two keys apart.

    ``detail`` breaks some parts down for people (cells, modules, distributions) and shapes nothing.
    """

    digest: str
    parts: Json
    detail: Json = field(default_factory=dict)

    def differs_from(self, other: LatestKey) -> list[str]:
        """What changed since ``other``, in words for people."""
        changes = []
        for part, words in PART_NAMES.items():
            if other.parts.get(part) == self.parts[part]:
                continue
            before = other.detail.get(part, other.parts.get(part))
            now = self.detail.get(part, self.parts[part])
            names = _changed_names(before, now)
            changes.append(f"{words} changed{f': {names}' if names else ''}")
        return changes


@dataclass(frozen=True)
class LatestKey:
    """The key that a step had when it last finished, and the run that answered it."""

    parts: Json
    detail: Json
    run: Ref


def _changed_names(before: Any, now: Any) -> str:
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    shown = [_describe_change(name, before, now) for name in names[:_MAX_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _describe_change(name: str, before: Json, now: Json) -> str:
    """A name; with its values where they are short words for people, such as versions."""
    old, new = before.get(name), now.get(name)
    if name not in before:
        return f"{name} (new)"
    if name not in now:
        return f"{name} (gone)"
    if isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) <= 24:
        return f"{name} ({old} → {new})"
    return name


def compute_key(
    contract: StepContract,
    parameters: Json,
    inputs: dict[str, Ref | tuple[Ref, ...] | None],
    *,
    threads: int | None = None,
) -> StepKey:
    """The key of running ``contract`` with validated parameters on resolved inputs."""
    files = environment.module_digests(contract.import_sources)
    sources = {
        name: path_fingerprint(parameters[name]) for name in path_parameters(contract, parameters)
    }
    parts = {
        "code": contract.code,
        "contract": digest.of_json(contract.declaration.shaping),
        "modules": digest.of_json(files),
        "parameters": {n: digest.of_json(v) for n, v in parameters.items() if n not in sources},
        "inputs": inputs,
        "sources": sources,
        "environment": environment.environment_digest(),
        "threads": threads or contract.declaration.resources.threads,
    }
    detail = {
        "code": {cell: digest.of_bytes(source.encode()) for cell, source in contract.cells},
        "modules": files,
        "environment": environment.environment_versions(),
    }
    return StepKey(digest.of_json(parts), parts, detail)


def path_parameters(contract: StepContract, parameters: Json) -> list[str]:
    """Parameters that name a file or folder with the values they have here."""
    paths = contract.declaration.paths
    return [name for name, declared in paths.items() if parameters[name] not in declared.unless]


def absolute_path(name: str, value: str, unless: tuple[str, ...], base: Path) -> str:
    """A path parameter's value made absolute from ``base``; raises when nothing is there."""
    path = (base / value).resolve()
    if not path.exists():
        raise ParameterError(
            f"parameter {name!r}: no such file or folder",
            where=path,
            hint=f"Or use one of: {', '.join(unless)}" if unless else None,
        )
    return str(path)


def path_fingerprint(path: str) -> str:
    """A file by content; a folder by names, sizes and change times, so that a terabyte is quick."""
    place = Path(path)
    if place.is_file():
        return digest.of_file(place)
    listing = []
    for entry in sorted(place.rglob("*")):
        if entry.is_file():
            status = entry.stat()
            listing.append([str(entry.relative_to(place)), status.st_size, str(status.st_mtime_ns)])
    return digest.of_json(listing)


class KeyIndex:
    """Which key was answered by which run. Lost entries only cost a rerun.

    A run's record is written first and its entry after it. Whoever is killed between the two leaves
    the mark of `about_to_add`, and the record is looked for by its key.
    """

    def __init__(self, place: Workspace) -> None:
        self._steps = place.index / "steps"
        self._latest = place.index / "latest"
        self._store = Store(place)

    def find(self, key: StepKey) -> StepRun | None:
        """The finished run of this key, if all of its outputs are whole."""
        ref = self.run_ref(key)
        return self.finished(ref) if ref else None

    def finished(self, ref: Ref) -> StepRun | None:
        """The run behind ``ref``, if it and all of its outputs are whole."""
        if not self._store.exists(ref):
            return None
        run = self._store.get(ref, StepRun)
        whole = all(self._store.exists(output) for output in run.outputs.values())
        return run if whole else None

    def run_ref(self, key: StepKey) -> Ref | None:
        entry = _read_json(self._steps / f"{key.digest}.json")
        if entry:
            ref: Ref = entry["run"]
            return ref
        return self._found_by_key(key) if self._mark(key).exists() else None

    def about_to_add(self, key: StepKey) -> None:
        """Say that the record of this key's run is being written."""
        workspace.write_atomic(self._mark(key), b"")

    def add(self, key: StepKey, run: Ref) -> None:
        _write_json(self._steps / f"{key.digest}.json", {"run": run})
        self._mark(key).unlink(missing_ok=True)

    def _mark(self, key: StepKey) -> Path:
        return self._steps / f"{key.digest}.writing"

    def _found_by_key(self, key: StepKey) -> Ref | None:
        for ref in self._store.refs(StepRun.KIND):
            if self._store.get(ref, StepRun).key == key.digest:
                return ref
        return None

    def latest(self, pipeline: str, step: str) -> LatestKey | None:
        """How this step of this pipeline last finished."""
        entry = _read_json(self._latest / f"{pipeline}.{step}.json")
        return LatestKey(**entry) if entry and "run" in entry else None

    def set_latest(self, pipeline: str, step: str, key: StepKey, run: Ref) -> None:
        entry = {"parts": key.parts, "detail": key.detail, "run": run}
        _write_json(self._latest / f"{pipeline}.{step}.json", entry)


def _read_json(path: Path) -> Json | None:
    try:
        content: Json = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content


def _write_json(path: Path, value: Json) -> None:
    workspace.write_atomic(path, json.dumps(value, sort_keys=True).encode())


# ---- Keeps the small files that a step read, so that its lineage alone is enough to run it again.


FILES_FOLDER = "files"
"""Where they lie in the payload of a run's record."""

_MAX_FILE_BYTES = 2**20


def collect_small_files(
    parameters: Mapping[str, Any], fingerprints: Mapping[str, str]
) -> dict[str, bytes]:
    """Payload of a run's record: each file that a path parameter named, if it is small.

    A file that changed while the step ran is left out, as is one that holds what looks like a
    credential: records are for everybody.

    Args:
        fingerprints: Path parameters to what the step's key knows of them.
    """
    payload = {}
    for name, fingerprint in fingerprints.items():
        path = Path(str(parameters[name]))
        if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
            continue
        content = path.read_bytes()
        if digest.of_bytes(content) != fingerprint:
            continue
        if not secret_scan.scan_text(content.decode(errors="replace"), {}):
            payload[f"{FILES_FOLDER}/{name}"] = content
    return payload
