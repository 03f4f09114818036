"""A step's key: everything that can shape its outputs, in one digest, and the index of keys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import digest, workspace
from workbench.errors import ParameterError
from workbench.pipeline import environment, modules
from workbench.pipeline.contract import StepContract
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import StepRun
from workbench.workspace import Workspace

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


@dataclass(frozen=True)
class StepKey:
    """``digest`` names the work; ``parts`` tell two keys apart in words."""

    digest: str
    parts: Json

    def differs_from(self, other: Json) -> list[str]:
        """What changed since ``other``, in words for people."""
        changes = []
        for part, words in PART_NAMES.items():
            before, now = other.get(part), self.parts[part]
            if before == now:
                continue
            if isinstance(before, dict) and isinstance(now, dict):
                names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n)]
                changes.append(f"{words} changed: {', '.join(names)}")
            else:
                changes.append(f"{words} changed")
        return changes


def compute(contract: StepContract, parameters: Json, inputs: dict[str, Ref | None]) -> StepKey:
    """The key of running ``contract`` with validated parameters on resolved inputs."""
    sources = {
        name: fingerprint(parameters[name]) for name in path_parameters(contract, parameters)
    }
    parts = {
        "code": contract.code,
        "contract": digest.of_json(contract.declaration.shaping),
        "modules": modules.digest_of(contract.sources),
        "parameters": {n: digest.of_json(v) for n, v in parameters.items() if n not in sources},
        "inputs": inputs,
        "sources": sources,
        "environment": digest.of_json(environment.current().model_dump(mode="json")),
        "threads": contract.declaration.resources.threads,
    }
    return StepKey(digest.of_json(parts), parts)


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


def fingerprint(path: str) -> str:
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
    """Which key was answered by which run. Lost entries only cost a rerun."""

    def __init__(self, place: Workspace) -> None:
        self._steps = place.index / "steps"
        self._latest = place.index / "latest"
        self._store = Store(place)

    def find(self, key: StepKey) -> StepRun | None:
        """The finished run of this key, if all of its outputs are whole."""
        ref = self.run_ref(key)
        if ref is None or not self._store.exists(ref):
            return None
        run = self._store.get(ref, StepRun)
        whole = all(self._store.exists(output) for output in run.outputs.values())
        return run if whole else None

    def run_ref(self, key: StepKey) -> Ref | None:
        entry = _read(self._steps / f"{key.digest}.json")
        return entry["run"] if entry else None

    def add(self, key: StepKey, run: Ref) -> None:
        _write(self._steps / f"{key.digest}.json", {"run": run})

    def latest(self, pipeline: str, step: str) -> Json | None:
        """Parts of the key that this step of this pipeline had when it last finished."""
        return _read(self._latest / f"{pipeline}.{step}.json")

    def set_latest(self, pipeline: str, step: str, key: StepKey) -> None:
        _write(self._latest / f"{pipeline}.{step}.json", key.parts)


def _read(path: Path) -> Json | None:
    try:
        content: Json = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content


def _write(path: Path, value: Json) -> None:
    workspace.write_atomic(path, json.dumps(value, sort_keys=True).encode())
