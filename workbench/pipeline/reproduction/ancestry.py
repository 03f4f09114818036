"""The recorded steps that made a record, and the leaves that are copied instead of rebuilt.

A leaf is what people or a server gave, a dataset of raw frames, the champion that a candidate was
compared with, and what no recorded step made. Only records are read. Copies are verified against
their digests; images are linked where the file system allows it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.workspace import atomic_replace, write_atomic
from workbench.pipeline import cache
from workbench.pipeline.contract import StepContract, read_contract
from workbench.pipeline.reproduction.report import LeafCopy, RebuildMethod
from workbench.records import dataset
from workbench.records.base import GateReport, Ref, kind_of, refs_in
from workbench.records.frames import Frame
from workbench.records.model_types import ExportBundle, NotebookSource, Release, StepRun
from workbench.records.store import Store
from workbench.records.types import Agreement, DatasetVersion, LabelBatch, LabelSet

__all__ = ()

NOTEBOOK_FILE = "notebook.ipynb"

_LABELER_KINDS = {
    LabelBatch.KIND: "was sent to labelers",
    LabelSet.KIND: "came from labelers",
    Agreement.KIND: "compares labelers",
}


@dataclass(frozen=True)
class RecordedStep:
    """One step to rebuild.

    Attributes:
        how: ``merged`` for a dataset that labels were merged into: it is merged again from its
            label set, because its notebook needs a server.
    """

    run: Ref
    record: StepRun
    contract: StepContract
    how: RebuildMethod

    @property
    def name(self) -> str:
        return self.record.step


@dataclass(frozen=True)
class Ancestry:
    """What it takes to rebuild ``target``: steps in order of execution, and leaves."""

    target: Ref
    steps: tuple[RecordedStep, ...]
    leaves: tuple[LeafCopy, ...]
    notes: tuple[str, ...] = ()


def trace_ancestry(store: Store, target: Ref) -> Ancestry:
    """The steps that made ``target``; nothing is written.

    Raises:
        RecordError: No recorded step made it, or a notebook or a leaf is damaged or missing.
    """
    walk = _AncestryWalk(store)
    refs, notes = _rebuild_targets(store, target)
    for ref in refs:
        walk.visit(ref)
    if not walk.steps:
        why = walk.leaves[0].why if walk.leaves else "was made by no recorded step"
        raise RecordError(
            f"nothing to rebuild: the {kind_of(target)} {why}",
            where=target,
            hint="Give a checkpoint, bundle, gates, release or models:/NAME/VERSION made by `run`",
        )
    return Ancestry(target, tuple(walk.steps.values()), tuple(walk.leaves), tuple(notes))


def _rebuild_targets(store: Store, target: Ref) -> tuple[list[Ref], list[str]]:
    record = store.load(target)
    if isinstance(record, StepRun):
        return list(record.outputs.values()), []
    if isinstance(record, Release):
        note = (
            "the bundle and gates of the release were rebuilt; its signature was not, because that"
            " needs the signing key"
        )
        return [record.bundle, record.gates], [note]
    return [target], []


class _AncestryWalk:
    """Visits records depth first, so that a step comes after everything that it needs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.steps: dict[Ref, RecordedStep] = {}
        self.leaves: list[LeafCopy] = []
        self._seen: set[Ref] = set()
        self._first_runs: dict[Ref, Ref] = {}
        for run, record in store.readable(StepRun):
            for output in record.outputs.values():
                self._first_runs.setdefault(output, run)

    def visit(self, ref: Ref, *, leaf: str = "") -> None:
        """Add the steps that made ``ref``; or ``ref`` as a leaf, for the reason ``leaf``."""
        if ref in self._seen:
            return
        self._seen.add(ref)
        reason = leaf or _LABELER_KINDS.get(kind_of(ref), "")
        run = self._first_runs.get(ref)
        if reason:
            self._add_leaf(ref, reason)
        elif run is None:
            self._add_leaf(ref, "was made by no recorded step")
        else:
            self._add_step(ref, run)

    def _add_step(self, ref: Ref, run: Ref) -> None:
        record = self.store.get(run, StepRun)
        contract = _recorded_contract(self.store, record)
        reason = _external_dependency(contract, record)
        merged = self._parents_of_merged(ref) if reason else None
        if reason and merged is None:
            self._add_leaf(ref, reason)
            return
        for needed in merged or _flatten(record.inputs.values()):
            self.visit(needed, leaf=self._champion_reason(record, needed))
        how: RebuildMethod = "merged" if merged else "rebuilt"
        self.steps.setdefault(run, RecordedStep(run, record, contract, how))

    def _parents_of_merged(self, ref: Ref) -> list[Ref] | None:
        """Dataset and label set that ``ref`` was merged from, if that is how it was made."""
        if kind_of(ref) != DatasetVersion.KIND:
            return None
        record = self.store.get(ref, DatasetVersion)
        kinds = [kind_of(parent) for parent in record.parents]
        merged = kinds[:2] == [DatasetVersion.KIND, LabelSet.KIND]
        if record.made_by != "collect" or not merged or not _LABELER_KINDS.keys() >= set(kinds[1:]):
            return None
        return list(record.parents)

    def _champion_reason(self, run: StepRun, needed: Ref) -> str:
        """Why a bundle is a leaf although a step made it: it belongs to an earlier model."""
        if kind_of(needed) == ExportBundle.KIND:
            for output in run.outputs.values():
                if (
                    kind_of(output) == GateReport.KIND
                    and self.store.get(output, GateReport).reference == needed
                ):
                    return "is the earlier model that the candidate was compared with"
        return ""

    def _add_leaf(self, ref: Ref, why: str) -> None:
        if not self.store.exists(ref):
            raise RecordError(
                f"missing record: the {kind_of(ref)} {why} and cannot be rebuilt",
                where=ref,
                hint="Restore it from a backup",
            )
        record = self.store.load(ref)
        is_of_labelers = kind_of(ref) in _LABELER_KINDS
        if getattr(record, "simulated", False) and is_of_labelers:
            why += " (simulated)"
        self.leaves.append(LeafCopy(ref=ref, why=why))
        if is_of_labelers:  # questions and answers belong together
            for other in refs_in(record.model_dump(mode="json")):
                if kind_of(other) in _LABELER_KINDS and self.store.exists(other):
                    self.visit(other)


def _recorded_contract(store: Store, run: StepRun) -> StepContract:
    """The contract at the time of the run, from the notebook that the run recorded."""
    try:
        path = store.payload(run.notebook, NOTEBOOK_FILE)
        name = store.get(run.notebook, NotebookSource).name
    except RecordError as error:
        raise RecordError(
            f"the notebook of step {run.step!r} cannot be read: {error.what}",
            where=error.where,
            hint=f"Restore {run.notebook[:21]}… from a backup",
        ) from error
    return replace(read_contract(path, name=name), notebook=path.with_name(f"{name}.ipynb"))


def _external_dependency(contract: StepContract, run: StepRun) -> str:
    """Why a step cannot be rebuilt from records alone, or an empty text."""
    declared = contract.declaration
    if declared.services:
        return f"was made by {run.step!r}, which needs {', '.join(declared.services)}"
    if declared.secrets or declared.access.network:
        return f"was made by {run.step!r}, which needs secrets or the network"
    paths = contract.path_parameters(run.parameters)
    if paths and any(kind_of(ref) == DatasetVersion.KIND for ref in run.outputs.values()):
        return f"contains raw frames that {run.step!r} read from {paths[0]!r}"
    return ""


def _flatten(values: Iterable[Ref | tuple[Ref, ...]]) -> list[Ref]:
    return [ref for value in values for ref in ([value] if isinstance(value, str) else value)]


def copy_leaves(source: Store, target: Store, leaves: Iterable[LeafCopy]) -> None:
    """Copy each leaf, with the images of frames; records that exist already are kept.

    Raises:
        RecordError: A leaf does not match its digest.
    """
    for leaf in leaves:
        if target.exists(leaf.ref):
            continue
        if kind_of(leaf.ref) == DatasetVersion.KIND:
            _copy_images(source, target, leaf.ref)
        _copy_record(source, target, leaf.ref)


def rebuild_parameters(
    source: Store, step: RecordedStep, folder: Path
) -> tuple[dict[str, object], str]:
    """The step's parameters with paths that exist here, and a note on where files came from.

    A file that a step read is taken from its run's record, and gate rules from their report.
    Otherwise it must still exist at its path, which the note reports.

    Raises:
        RecordError: A file is gone and has no copy.
    """
    values = dict(step.record.parameters)
    notes = []
    for name in step.contract.path_parameters(values):
        content = _recorded_file(source, step, name)
        if content is not None:
            path = folder / cache.FILES_FOLDER / name / Path(str(values[name])).name
            write_atomic(path, content)
            values[name] = str(path)
        elif Path(str(values[name])).exists():
            notes.append(f"step {step.name} read {name!r} at its path; its lineage has no copy")
        else:
            raise RecordError(
                f"missing file {name!r} of step {step.name!r}: its lineage has no copy",
                where=values[name],
                hint="Restore the file at its path",
            )
    return values, "; ".join(notes)


def _recorded_file(source: Store, step: RecordedStep, name: str) -> bytes | None:
    payload = f"{cache.FILES_FOLDER}/{name}"
    if payload in source.payload_names(step.run):
        return source.payload(step.run, payload).read_bytes()
    for output in step.record.outputs.values():
        if kind_of(output) == GateReport.KIND and name == "rules":
            return _gate_rules(source, output)
    return None


def _gate_rules(source: Store, gates: Ref) -> bytes | None:
    rules = json.loads(source.payload(gates, "metrics.json").read_bytes()).get("rules")
    if rules is None or digest.of_json(rules) != source.get(gates, GateReport).rules:
        return None
    return digest.canonical_json(rules)


def _copy_images(source: Store, target: Store, ref: Ref) -> None:
    for frame in dataset.read_json_lines(source.payload(ref, "frames.jsonl"), Frame):
        image = dataset.media_path(source.workspace, frame)
        if not image.exists() or digest.of_file(image) != frame.id:
            raise RecordError(
                "an image of the dataset is missing or was changed",
                where=image,
                hint="Ingest its drive again: frames are named by content",
            )
        _link_or_copy(image, dataset.media_path(target.workspace, frame))


def _copy_record(source: Store, target: Store, ref: Ref) -> None:
    content = (source.folder(ref) / "record.json").read_bytes()
    payload = {name: source.payload(ref, name) for name in source.payload_names(ref)}
    target.restore(ref, content, payload, side={})


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with atomic_replace(target) as temporary:
            shutil.copyfile(source, temporary)
