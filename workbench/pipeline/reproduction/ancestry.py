"""The recorded steps that made a record, and the leaves that are copied instead of rebuilt."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from workbench.core import digest, workspace
from workbench.core.errors import RecordError
from workbench.pipeline import cache
from workbench.pipeline import contract as contracts
from workbench.pipeline.contract import StepContract
from workbench.pipeline.reproduction.report import LeafCopy
from workbench.records import dataset
from workbench.records.base import GateReport, Ref, kind_of, refs_in
from workbench.records.frames import Frame
from workbench.records.model_types import ExportBundle, NotebookSource, Release, StepRun
from workbench.records.store import Store
from workbench.records.types import Agreement, DatasetVersion, LabelBatch, LabelSet

NOTEBOOK_FILE = "notebook.ipynb"


_LABELER_KINDS = {
    LabelBatch.KIND: "was sent to labelers",
    LabelSet.KIND: "came from labelers",
    Agreement.KIND: "compares labelers",
}


@dataclass(frozen=True)
class RecordedStep:
    """One step to rebuild.

    ``how`` is ``merged`` for a dataset that labels joined: that needs the label set and no server,
    so it is done without the notebook that asked one.
    """

    run: Ref
    record: StepRun
    contract: StepContract
    how: Literal["rebuilt", "merged"]

    @property
    def name(self) -> str:
        return self.record.step


@dataclass(frozen=True)
class Ancestry:
    """Everything to do about ``target``: steps from first to last, and leaves."""

    target: Ref
    steps: tuple[RecordedStep, ...]
    leaves: tuple[LeafCopy, ...]
    notes: tuple[str, ...] = ()


def trace_ancestry(store: Store, target: Ref) -> Ancestry:
    """The steps that made ``target``; nothing is written.

    Raises:
        RecordError: No recorded step made it, or a notebook or a leaf is no longer whole.
    """
    walk = _AncestryWalk(store)
    wanted, notes = _rebuild_targets(store, target)
    for ref in wanted:
        walk.visit(ref)
    if not walk.steps:
        why = walk.leaves[0].why if walk.leaves else "no recorded step made it"
        raise RecordError(
            f"there is nothing to rebuild: this {kind_of(target)} {why}",
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
            "the release names its bundle and gates, which were rebuilt; its signature is not made"
            " again, because the key stays where it is"
        )
        return [record.bundle, record.gates], [note]
    return [target], []


class _AncestryWalk:
    """Depth first, so that a step stands behind all that it needs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.steps: dict[Ref, RecordedStep] = {}
        self.leaves: list[LeafCopy] = []
        self._seen: set[Ref] = set()
        self._makers: dict[Ref, list[Ref]] = {}
        for run in store.refs(StepRun.KIND):
            for output in store.get(run, StepRun).outputs.values():
                self._makers.setdefault(output, []).append(run)

    def visit(self, ref: Ref, *, leaf: str = "") -> None:
        if ref in self._seen:
            return
        self._seen.add(ref)
        if leaf or kind_of(ref) in _LABELER_KINDS:
            self._leaf(ref, leaf or _LABELER_KINDS[kind_of(ref)])
            return
        makers = self._makers.get(ref)
        if not makers:
            self._leaf(ref, "was made by no recorded step")
            return
        self._made_by(ref, makers[0])

    def _made_by(self, ref: Ref, run: Ref) -> None:
        record = self.store.get(run, StepRun)
        contract = _recorded_contract(self.store, record)
        why = _external_dependency(contract, record)
        merged = self._parents_of_merged(ref) if why else None
        if why and merged is None:
            self._leaf(ref, why)
            return
        for needed in merged or _flatten(record.inputs.values()):
            self.visit(needed, leaf=self._champion(record, needed))
        how: Literal["rebuilt", "merged"] = "merged" if merged else "rebuilt"
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

    def _champion(self, run: StepRun, needed: Ref) -> str:
        """Why ``needed`` is not rebuilt although a step made it: it belongs to an earlier model."""
        if kind_of(needed) != ExportBundle.KIND:
            return ""
        for output in run.outputs.values():
            if kind_of(output) != GateReport.KIND:
                continue
            if self.store.get(output, GateReport).reference == needed:
                return "is the earlier model that the candidate was compared with"
        return ""

    def _leaf(self, ref: Ref, why: str) -> None:
        if not self.store.exists(ref):
            raise RecordError(
                f"this {kind_of(ref)} {why}, and is no longer in the store",
                where=ref,
                hint="Restore it from a backup: it cannot be rebuilt",
            )
        record = self.store.load(ref)
        if getattr(record, "simulated", False) and kind_of(ref) in _LABELER_KINDS:
            why += " (simulated)"
        self.leaves.append(LeafCopy(ref=ref, why=why))
        if kind_of(ref) in _LABELER_KINDS:  # what was asked and answered belongs together
            for other in refs_in(record.model_dump(mode="json")):
                if kind_of(other) in _LABELER_KINDS and self.store.exists(other):
                    self.visit(other)


def _recorded_contract(store: Store, run: StepRun) -> StepContract:
    """The contract as it was when the step ran, from the notebook that the run recorded."""
    try:
        path: Path = store.payload(run.notebook, NOTEBOOK_FILE)
        name = store.get(run.notebook, NotebookSource).name
    except RecordError as error:
        raise RecordError(
            f"the notebook of step {run.step!r} cannot be read: {error.what}",
            where=error.where,
            hint=f"Restore {run.notebook[:21]}… from a backup; without it there is no way back",
        ) from error
    return replace(
        contracts.read_contract(path, name=name), notebook=path.with_name(f"{name}.ipynb")
    )


def _external_dependency(contract: StepContract, run: StepRun) -> str:
    """Why a step cannot be rebuilt from records alone, or nothing."""
    declared = contract.declaration
    if declared.services:
        return f"was made by {run.step!r}, which works with {', '.join(declared.services)}"
    if declared.secrets or declared.access.network:
        return f"was made by {run.step!r}, which reaches beyond this machine"
    folders = [
        name
        for name in contract.path_parameters(run.parameters)
        if any(kind_of(ref) == DatasetVersion.KIND for ref in run.outputs.values())
    ]
    return f"holds raw frames that {run.step!r} read from {folders[0]!r}" if folders else ""


def _flatten(values: Iterable[Ref | tuple[Ref, ...]]) -> list[Ref]:
    flat: list[Ref] = []
    for value in values:
        flat.extend([value] if isinstance(value, str) else value)
    return flat


# ---- Copies what is never rebuilt into the clean workspace, checked to the byte on the way.
#
# Files are linked where the file system can: everything here is written once and only ever replaced
# whole, so two names for the same bytes are safe.


def copy_leaves(source: Store, target: Store, leaves: Iterable[LeafCopy]) -> None:
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


def rebuild_parameters(
    source: Store, step: RecordedStep, folder: Path
) -> tuple[dict[str, object], str]:
    """The step's parameters with path parameters that hold here, and a note on how.

    A file that a step read is taken from its run's record; the rules of a gate from their report,
    which carries them; else it has to be where it was, and the note says so.
    """
    given = dict(step.record.parameters)
    notes = []
    for name in step.contract.path_parameters(given):
        kept = _recorded_file(source, step, name)
        if kept is not None:
            path = folder / cache.FILES_FOLDER / name / Path(str(given[name])).name
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


def _recorded_file(source: Store, step: RecordedStep, name: str) -> bytes | None:
    payload = f"{cache.FILES_FOLDER}/{name}"
    if payload in source.payload_names(step.run):
        return source.payload(step.run, payload).read_bytes()
    for output in step.record.outputs.values():
        if kind_of(output) == GateReport.KIND and name == "rules":
            return _gate_rules(source, output)
    return None


def _gate_rules(source: Store, gates: Ref) -> bytes | None:
    content = json.loads(source.payload(gates, "metrics.json").read_bytes()).get("rules")
    recorded = source.get(gates, GateReport).rules
    if content is None or digest.of_json(content) != recorded:
        return None
    return digest.canonical_json(content)


def _copy_images(source: Store, target: Store, ref: Ref) -> None:
    for frame in dataset.read_json_lines(source.payload(ref, "frames.jsonl"), Frame):
        here = dataset.media_path(source.workspace, frame)
        there = dataset.media_path(target.workspace, frame)
        if not here.exists() or digest.of_file(here) != frame.id:
            raise RecordError(
                "an image of the dataset is missing or was changed",
                where=here,
                hint="Ingest its drive again: frames are named by content",
            )
        _link_or_copy(here, there)


def _copy_record(source: Store, target: Store, ref: Ref) -> None:
    source.load(ref)  # checks the record against its digest
    names = source.payload_names(ref)
    folder = target.folder(ref)
    _link_file(folder, source.folder(ref), "record.json")
    for name in names:
        source.payload(ref, name)  # checks the file against its digest
        _link_file(folder, source.folder(ref), f"payload/{name}")
    (folder / "COMPLETE").touch()


def _link_file(target: Path, source: Path, name: str) -> None:
    _link_or_copy(source / name, target / name)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with workspace.atomic_replace(target) as temporary:
            shutil.copyfile(source, temporary)
