"""Copies what is never rebuilt into the clean workspace, checked to the byte on the way.

Files are linked where the file system can: everything here is written once and only ever replaced
whole, so two names for the same bytes are safe.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from workbench import digest, workspace
from workbench.errors import RecordError
from workbench.pipeline.planning import keys, sources
from workbench.pipeline.reproduction.ancestry import RecordedStep
from workbench.pipeline.reproduction.report import LeafCopy
from workbench.records import dataset as datasets
from workbench.records.base import Ref, kind_of
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, GateReport


def copy(source: Store, target: Store, leaves: Iterable[LeafCopy]) -> None:
    """Copy each leaf, images of frames included; what is there already is left alone.

    Raises:
        RecordError: A leaf is no longer what its digest says.
    """
    for leaf in leaves:
        if target.exists(leaf.ref):
            continue
        if kind_of(leaf.ref) == DatasetVersion.KIND:
            _copy_images(source, target, leaf.ref)
        _copy_record(source, target, leaf.ref)


def parameters_of(source: Store, step: RecordedStep, folder: Path) -> tuple[dict[str, object], str]:
    """The step's parameters with path parameters that hold here, and a note on how.

    A file that a step read is taken from its run's record; the rules of a gate from their report,
    which carries them; else it has to be where it was, and the note says so.
    """
    given = dict(step.record.parameters)
    notes = []
    for name in keys.path_parameters(step.contract, given):
        kept = _kept_file(source, step, name)
        if kept is not None:
            path = folder / sources.FOLDER / name / Path(str(given[name])).name
            workspace.write_atomic(path, kept)
            given[name] = str(path)
        elif Path(str(given[name])).exists():
            notes.append(f"step {step.name} read {name!r} where it lay; its lineage has no copy")
        else:
            raise RecordError(
                f"step {step.name!r} read {name!r}, which is gone and has no copy in its lineage",
                where=given[name],
                hint="Put the file back where it was",
            )
    return given, "; ".join(notes)


def _kept_file(source: Store, step: RecordedStep, name: str) -> bytes | None:
    payload = f"{sources.FOLDER}/{name}"
    if payload in source.payload_names(step.run):
        return source.payload(step.run, payload).read_bytes()
    for output in step.record.outputs.values():
        if kind_of(output) == GateReport.KIND and name == "rules":
            return _rules(source, output)
    return None


def _rules(source: Store, gates: Ref) -> bytes | None:
    content = json.loads(source.payload(gates, "metrics.json").read_bytes()).get("rules")
    recorded = source.get(gates, GateReport).rules
    if content is None or digest.of_json(content) != recorded:
        return None
    return digest.canonical_json(content)


def _copy_images(source: Store, target: Store, ref: Ref) -> None:
    for frame in datasets.read_lines(source.payload(ref, "frames.jsonl"), Frame):
        here = datasets.media_path(source.workspace, frame)
        there = datasets.media_path(target.workspace, frame)
        if not here.exists() or digest.of_file(here) != frame.id:
            raise RecordError(
                "an image of the dataset is missing or was changed",
                where=here,
                hint="Ingest its drive again: frames are named by content",
            )
        _link(here, there)


def _copy_record(source: Store, target: Store, ref: Ref) -> None:
    source.load(ref)  # checks the record against its digest
    names = source.payload_names(ref)
    folder = target.folder(ref)
    _place(folder, source.folder(ref), "record.json")
    for name in names:
        source.payload(ref, name)  # checks the file against its digest
        _place(folder, source.folder(ref), f"payload/{name}")
    (folder / "COMPLETE").touch()


def _place(target: Path, source: Path, name: str) -> None:
    _link(source / name, target / name)


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with workspace.replacing(target) as temporary:
            shutil.copyfile(source, temporary)
