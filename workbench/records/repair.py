"""`workbench doctor --records`: check every record and image of a workspace, and repair them.

A digest cannot be turned back into bytes. What is damaged is repaired from other places with the
same bytes: images from the source that they were ingested from, payload files from other records
and from release folders. The rest is named, with what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import RecordError, system_error
from workbench.core.parsing import UNREADABLE, parse_json, read_regular
from workbench.core.text import short_repr
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace, write_atomic
from workbench.records.base import Digest, Ref, digest_of, kind_of, make_ref
from workbench.records.dataset import media_path
from workbench.records.frames import Frame
from workbench.records.integrity import damaged_media, dataset_frames, erased_frames
from workbench.records.model_types import Release, Rollback, StepRun
from workbench.records.releases import SIGNATURE, registered_releases, release_models
from workbench.records.sequence import COMPLETE_FILE
from workbench.records.store import RECORD_FILE, Store
from workbench.records.types import RECORD_TYPES, DatasetVersion

__all__ = ["Finding", "RecordsReport", "check_records"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Finding:
    """Something that was damaged.

    Attributes:
        where: The record or file.
        problem: What was wrong.
        repaired: Whether it is right again.
        fix: What to do if it was not repaired.
    """

    where: str
    problem: str
    repaired: bool
    fix: str = ""


@short_repr
@dataclass
class RecordsReport:
    """Result of `check_records`: how much was read, and what was damaged."""

    records: int = 0
    images: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is right now."""
        return all(finding.repaired for finding in self.findings)

    def to_json(self) -> Json:
        """The result as ``--json`` prints it."""
        return {
            "ok": self.ok,
            "records": self.records,
            "images": self.images,
            "findings": [vars(finding) for finding in self.findings],
        }


def check_records(workspace: Workspace, progress: Progress | None = None) -> RecordsReport:
    """Read every record, payload file and image, and repair what can be repaired.

    Args:
        workspace: The workspace.
        progress: Called with the number of records read and their total.
    """
    report = RecordsReport()
    store = Store(workspace)
    refs = list(_all_refs(workspace))
    whole = []
    for done, ref in enumerate(refs, start=1):
        if _check_record(store, ref, report):
            whole.append(ref)
        if progress:
            progress(done, len(refs))
    report.records = len(refs)
    _check_releases(store, report)
    _check_images(store, [ref for ref in whole if ref.startswith(DatasetVersion.KIND)], report)
    return report


def _all_refs(workspace: Workspace) -> Iterator[Ref]:
    """References of all folders of records, whole or not."""
    for kind in RECORD_TYPES:
        folder = workspace.records / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir() and _DIGEST.fullmatch(path.name):
                yield make_ref(kind, path.name)


def _check_record(store: Store, ref: Ref, report: RecordsReport) -> bool:
    """Check and repair one record; returns whether it is whole now."""
    folder = store.folder(ref)
    complete = (folder / COMPLETE_FILE).exists()
    try:
        if not complete and not _is_whole(store, ref):
            fix = f"It was never finished: remove {folder}"
            report.findings.append(Finding(ref, "record is incomplete", False, fix))
            return False
        if not complete:
            problem = _try_to((folder / COMPLETE_FILE).touch)
            found = Finding(ref, "its mark COMPLETE was missing", not problem, problem)
            report.findings.append(found)
            if problem:
                return False
        store.load(ref)
        files = store.payload_digests(ref)
    except RecordError as error:
        report.findings.append(Finding(ref, error.what, False, _how_to_write_again(store, ref)))
        return False
    _check_side_files(store, ref, report)
    whole = True
    for name, expected in sorted(files.items()):
        path = folder / "payload" / name
        if digest.file_matches(path, expected):
            continue
        copy = _find_copy(store, ref, name, expected)
        fix = _write_copy(path, copy) if copy else _how_to_write_again(store, ref)
        whole = whole and not fix
        problem = f"payload file {name!r} was missing or changed"
        report.findings.append(Finding(ref, problem, not fix, fix))
    return whole


def _try_to(write: Callable[[], object]) -> str:
    """Repair something; what to do instead if the system refuses, else an empty text."""
    try:
        write()
    except OSError as error:
        refused = system_error(error)
        return f"It can be repaired, but {refused.what}. {refused.hint or ''}"
    return ""


def _write_copy(path: Path, content: bytes) -> str:
    return _try_to(lambda: write_atomic(path, content))


def _is_whole(store: Store, ref: Ref) -> bool:
    """Whether a record without its mark has all of its bytes: only the mark was lost then."""
    folder = store.folder(ref)
    if not digest.file_matches(folder / RECORD_FILE, digest_of(ref)):
        return False
    try:
        payload: Json = parse_json((folder / RECORD_FILE).read_bytes()).get("payload", {})
        files = {folder / "payload" / name: entry["sha256"] for name, entry in payload.items()}
    except UNREADABLE:  # a record of another shape with a right digest
        return False
    return all(digest.file_matches(path, expected) for path, expected in files.items())


def _check_side_files(store: Store, ref: Ref, report: RecordsReport) -> None:
    for path in sorted((store.folder(ref) / "side").glob("*.json")):
        if store.side(ref, path.stem) is not None:
            continue
        if path.stem == SIGNATURE:
            if kind_of(ref) not in (Release.KIND, Rollback.KIND):  # those follow
                fix = "Restore it from a backup, or check and promote the notebook again"
                report.findings.append(Finding(ref, "its signature is damaged", False, fix))
            continue
        fix = _try_to(partial(path.replace, path.with_suffix(".damaged")))
        renamed = "" if fix else f"; renamed to {path.stem}.damaged"
        problem = f"side file {path.name} was damaged{renamed}"
        report.findings.append(Finding(ref, problem, not fix, fix))


def _check_releases(store: Store, report: RecordsReport) -> None:
    """Name the releases and rollbacks that do not count, such as one with a damaged signature."""
    named = {finding.where for finding in report.findings}
    for model in release_models(store.workspace):
        for ref, problem in registered_releases(store.workspace, model).refused.items():
            if ref not in named:
                fix = f"Restore {store.folder(ref)} and the signing key from a backup"
                report.findings.append(Finding(ref, problem, False, fix))


def _find_copy(store: Store, ref: Ref, name: str, expected: str) -> bytes | None:
    """The bytes of a payload file, from a release or another record."""
    candidates = [
        folder / name
        for folder in (store.workspace.root / "releases").glob("*/*")
        if (folder / name).is_file()
    ]
    candidates += [
        store.folder(other) / "payload" / other_name
        for other in _all_refs(store.workspace)
        if other != ref
        for other_name, found in _payload_or_nothing(store, other).items()
        if found == expected
    ]
    return next(filter(None, (_bytes_if(path, expected) for path in candidates)), None)


def _payload_or_nothing(store: Store, ref: Ref) -> dict[str, str]:
    try:
        return store.payload_digests(ref)
    except RecordError:
        return {}


def _how_to_write_again(store: Store, ref: Ref) -> str:
    """How to get a damaged record back."""
    backup = f"restore {store.folder(ref)} from a backup"
    for run_ref in store.refs(StepRun.KIND):
        try:
            run = store.get(run_ref, StepRun)
        except RecordError:
            continue
        if ref in run.outputs.values():
            return f"Run its pipeline again: step {run.step} writes it anew. Or {backup}"
    return f"{backup.capitalize()}, or make it again; if it is lost, remove that folder"


def _check_images(store: Store, datasets: list[Ref], report: RecordsReport) -> None:
    frames: dict[Digest, Frame] = {}
    for ref in datasets:
        frames.update({frame.id: frame for frame in dataset_frames(store, ref)})
    report.images = len(frames)
    damaged = damaged_media(store.workspace, frames.values(), full=True)
    erased = erased_frames(store, damaged)
    damaged = [frame for frame in damaged if frame.id not in erased]
    if not damaged:
        return
    sources = _source_files(store, datasets, {frame.id for frame in damaged})
    for frame in damaged:
        path, known = media_path(store.workspace, frame), sources.get(frame.id, [])
        data = next(filter(None, (_bytes_if(file, frame.id) for file in known)), None)
        if data and path.is_dir():
            data, known = None, []
        fix = _write_copy(path, data) if data else _how_to_restore(known)
        where = f"{path.relative_to(store.workspace.root)} ({frame.drive} #{frame.index})"
        problem = "image was missing or not the one that was ingested"
        report.findings.append(Finding(where, problem, not fix, fix))


def _how_to_restore(known: list[Path]) -> str:
    again = "ingest its unchanged source again (`workbench ingest`, or the pipeline's ingest step)"
    if not known:
        return f"Its source is unknown here: restore it from a backup, or {again}"
    return f"{known[0]} is missing or has other bytes, too: restore it from a backup, or {again}"


def _source_files(
    store: Store, datasets: list[Ref], frames: set[Digest]
) -> dict[Digest, list[Path]]:
    """Where the images of frames were ingested from, as the side files of datasets say."""
    files: dict[Digest, list[Path]] = {}
    for ref in datasets:
        root, names = store.side(ref, "source_root"), store.side(ref, "sources")
        folder = root.get("folder") if root else None
        if not isinstance(folder, str) or not names:
            continue
        for frame in frames & names.keys():
            if isinstance(names[frame], str):
                files.setdefault(frame, []).append(Path(folder) / names[frame])
    return files


def _bytes_if(path: Path, expected: str) -> bytes | None:
    """The content of a file, if its digest is the expected one."""
    try:
        data = read_regular(path)
    except (OSError, ValueError):
        return None
    return data if digest.of_bytes(data) == expected else None
