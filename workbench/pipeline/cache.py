"""Step keys: everything that can change a step's outputs in one digest, and the index of keys."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core import digest, secret_scan
from workbench.core.errors import RecordError
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.pipeline import environment
from workbench.pipeline.contract import StepContract
from workbench.records import integrity
from workbench.records.base import Ref
from workbench.records.model_types import StepRun
from workbench.records.store import Store

__all__ = ()

FILES_FOLDER = "files"
"""Where the small files that a step read are stored in the payload of a run's record."""

_PARTS = {
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
_MAX_VALUE_LENGTH = 24
_MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class StepKey:
    """Identifies the work of a step.

    Attributes:
        digest: Digest of ``parts``.
        parts: Everything that can change the outputs.
        detail: Some parts in detail (cells, modules, distributions), only shown to people.
    """

    digest: str
    parts: Json
    detail: Json = field(default_factory=dict)

    def differs_from(self, other: LatestKey) -> list[str]:
        """What changed since ``other``, in words."""
        changes = []
        for part, description in _PARTS.items():
            if other.parts.get(part) == self.parts[part]:
                continue
            before = other.detail.get(part, other.parts.get(part))
            now = self.detail.get(part, self.parts[part])
            names = _changed_names(before, now)
            changes.append(f"{description} changed{f': {names}' if names else ''}")
        return changes


@dataclass(frozen=True)
class LatestKey:
    """The key that a step had when it last finished, and that run."""

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
    """A name; with its values where they are short, such as versions."""
    old, new = before.get(name), now.get(name)
    if name not in before:
        return f"{name} (new)"
    if name not in now:
        return f"{name} (removed)"
    if (
        isinstance(old, str)
        and isinstance(new, str)
        and max(len(old), len(new)) <= _MAX_VALUE_LENGTH
    ):
        return f"{name} ({old} → {new})"
    return name


def compute_key(
    contract: StepContract,
    parameters: Json,
    inputs: dict[str, Ref | tuple[Ref, ...] | None],
    *,
    threads: int | None = None,
) -> StepKey:
    """The key of one execution of a step.

    Args:
        contract: The step's notebook.
        parameters: Validated parameters.
        inputs: Resolved inputs.
        threads: If other than the contract says.
    """
    module_digests = environment.module_digests(contract.import_sources)
    sources = {
        name: path_fingerprint(parameters[name]) for name in contract.path_parameters(parameters)
    }
    parts = {
        "code": contract.code,
        "contract": digest.of_json(contract.declaration.shaping),
        "modules": digest.of_json(module_digests),
        "parameters": {n: digest.of_json(v) for n, v in parameters.items() if n not in sources},
        "inputs": inputs,
        "sources": sources,
        "environment": environment.environment_digest(),
        "threads": threads or contract.declaration.resources.threads,
    }
    detail = {
        "code": {cell: digest.of_bytes(source.encode()) for cell, source in contract.cells},
        "modules": module_digests,
        "environment": environment.environment_versions(),
    }
    return StepKey(digest.of_json(parts), parts, detail)


def path_fingerprint(path: str) -> str:
    """Digest of a file's content, or of a folder's names, sizes and modification times.

    Contents of a folder are not read, because it may hold terabytes.
    """
    root = Path(path)
    if root.is_file():
        return digest.of_file(root)
    listing = []
    for entry in sorted(root.rglob("*")):
        if entry.is_file():
            status = entry.stat()
            listing.append([str(entry.relative_to(root)), status.st_size, str(status.st_mtime_ns)])
    return digest.of_json(listing)


class KeyIndex:
    """Which run has which key. The records decide: an entry only says where to look.

    A run's record is written first and its entry after it. A process killed between the two leaves
    the marker of `about_to_add`. Then, and where an entry is damaged or names a run with another
    key, the records are searched.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._steps = workspace.index / "steps"
        self._latest = workspace.index / "latest"
        self._store = Store(workspace)

    def find(self, key: StepKey) -> StepRun | None:
        """The finished run with this key, if all of its outputs are whole, see `damaged_files`."""
        ref = self.run_ref(key)
        return self.finished(ref) if ref else None

    def finished(self, ref: Ref) -> StepRun | None:
        """The run ``ref``, if it and all of its outputs are whole."""
        run = self._run(ref)
        return run if run and not self.output_damage(run.outputs) else None

    def outputs(self, ref: Ref) -> dict[str, Ref]:
        """The outputs of the run ``ref``, whole or not."""
        return self._store.get(ref, StepRun).outputs

    def output_damage(self, outputs: Mapping[str, Ref]) -> list[str]:
        """What is wrong with the files of a step's outputs, a sentence for each output."""
        damage = []
        for name, output in outputs.items():
            if not self._store.exists(output):
                damage.append(f"output {name!r} is missing from the store")
            elif problems := integrity.damaged_files(self._store, output):
                damage.append(f"output {name!r} is damaged: {'; '.join(problems)}")
        return damage

    def run_ref(self, key: StepKey) -> Ref | None:
        """Reference of the run with this key, whether or not its outputs are whole."""
        path = self._steps / f"{key.digest}.json"
        entry = _read_json(path)
        ref = entry.get("run") if entry else None
        if (run := self._run(ref)) and run.key == key.digest:
            return str(ref)
        if not path.exists() and not self._marker(key).exists():
            return None
        found = self._search(key)
        with contextlib.suppress(OSError):
            if found:
                self.add(key, found)
            else:
                path.unlink(missing_ok=True)
        return found

    def about_to_add(self, key: StepKey) -> None:
        """Mark that the record of this key's run is being written."""
        write_atomic(self._marker(key), b"")

    def add(self, key: StepKey, run: Ref) -> None:
        """Enter a run whose record is written."""
        _write_json(self._steps / f"{key.digest}.json", {"run": run})
        self._marker(key).unlink(missing_ok=True)

    def latest(self, pipeline: str, step: str) -> LatestKey | None:
        """The key with which this step of this pipeline last finished."""
        entry = _read_json(self._latest / f"{pipeline}.{step}.json") or {}
        parts, detail, ref = (entry.get(name) for name in ("parts", "detail", "run"))
        run = self._run(ref)
        if not run or not isinstance(parts, dict) or not isinstance(detail, dict):
            return None
        # Of another step, or with parts that are not those of its run: damaged, as if never run.
        if run.step != step or run.key != digest.of_json(parts):
            return None
        return LatestKey(parts, detail, str(ref))

    def set_latest(self, pipeline: str, step: str, key: StepKey, run: Ref) -> None:
        """Enter the key with which a step has finished."""
        entry = {"parts": key.parts, "detail": key.detail, "run": run}
        _write_json(self._latest / f"{pipeline}.{step}.json", entry)

    def repair(self) -> list[str]:
        """Correct the entries that do not match the records; returns their names."""
        by_key = {run.key: ref for ref in self._store.refs(StepRun.KIND) if (run := self._run(ref))}
        wrong = []
        for path in sorted(self._steps.glob("*.json")):
            run = self._run((_read_json(path) or {}).get("run"))
            if run and run.key == path.stem:
                continue
            wrong.append(f"index/steps/{path.name}")
            if path.stem in by_key:
                _write_json(path, {"run": by_key[path.stem]})
            else:
                path.unlink(missing_ok=True)
        for path in sorted(self._latest.glob("*.json")):
            pipeline, _, step = path.stem.partition(".")
            if self.latest(pipeline, step) is None:
                wrong.append(f"index/latest/{path.name}")
                path.unlink(missing_ok=True)
        return wrong

    def _marker(self, key: StepKey) -> Path:
        return self._steps / f"{key.digest}.writing"

    def _run(self, ref: object) -> StepRun | None:
        """The run record ``ref``; None for anything else."""
        try:
            return self._store.get(ref, StepRun) if isinstance(ref, str) else None
        except RecordError:
            return None

    def _search(self, key: StepKey) -> Ref | None:
        for ref in reversed(list(self._store.refs(StepRun.KIND))):
            if (run := self._run(ref)) and run.key == key.digest:
                return ref
        return None


def collect_small_files(
    parameters: Mapping[str, Any], fingerprints: Mapping[str, str]
) -> dict[str, bytes]:
    """Payload of a run's record: the small files that path parameters name.

    They make a run's lineage sufficient to run it again. A file that changed while the step ran is
    left out, and so is one that seems to contain a credential.

    Args:
        parameters: The step's parameters.
        fingerprints: Path parameter to `path_fingerprint` when the step started.
    """
    payload = {}
    for name, fingerprint in fingerprints.items():
        path = Path(str(parameters[name]))
        if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
            continue
        content = path.read_bytes()
        if digest.of_bytes(content) != fingerprint:
            continue
        known = secret_scan.known_in_environment() | secret_scan.known_in_dotenv(path.parent)
        settings = secret_scan.is_settings_file(path.name) or path.suffix == ""
        text = content.decode(errors="replace")
        secret = secret_scan.is_secret_file(str(path))
        if not secret and not secret_scan.scan_text(text, known, settings=settings):
            payload[f"{FILES_FOLDER}/{name}"] = content
    return payload


def _read_json(path: Path) -> Json | None:
    """A JSON object; None if the file is missing, damaged or holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _write_json(path: Path, value: Json) -> None:
    write_atomic(path, json.dumps(value, sort_keys=True).encode())
