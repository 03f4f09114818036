"""Which recorded steps made something, in the order to rebuild them, and where that ends.

Only records are read. A **leaf** is taken as it is: what people or a server gave, raw frames, the
champion that a candidate was compared with, and what no recorded step made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from workbench.errors import RecordError
from workbench.pipeline.contracts import contract as contracts
from workbench.pipeline.contracts.contract import StepContract
from workbench.pipeline.planning import keys
from workbench.pipeline.reproduction.report import LeafCopy
from workbench.records.base import Ref, kind_of, refs_in
from workbench.records.store import Store
from workbench.records.types import (
    Agreement,
    DatasetVersion,
    ExportBundle,
    GateReport,
    LabelBatch,
    LabelSet,
    NotebookSource,
    Release,
    StepRun,
)

NOTEBOOK = "notebook.ipynb"


_OF_PEOPLE = {
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


def trace(store: Store, target: Ref) -> Ancestry:
    """The steps that made ``target``; nothing is written.

    Raises:
        RecordError: No recorded step made it, or a notebook or a leaf is no longer whole.
    """
    walk = _Walk(store)
    wanted, notes = _wanted(store, target)
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


def _wanted(store: Store, target: Ref) -> tuple[list[Ref], list[str]]:
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


class _Walk:
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
        if leaf or kind_of(ref) in _OF_PEOPLE:
            self._leaf(ref, leaf or _OF_PEOPLE[kind_of(ref)])
            return
        makers = self._makers.get(ref)
        if not makers:
            self._leaf(ref, "was made by no recorded step")
            return
        self._made_by(ref, makers[0])

    def _made_by(self, ref: Ref, run: Ref) -> None:
        record = self.store.get(run, StepRun)
        contract = _contract(self.store, record)
        why = _beyond_reach(contract, record)
        merged = self._parents_of_merged(ref) if why else None
        if why and merged is None:
            self._leaf(ref, why)
            return
        for needed in merged or _flat(record.inputs.values()):
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
        if record.made_by != "collect" or not merged or not _OF_PEOPLE.keys() >= set(kinds[1:]):
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
        if getattr(record, "simulated", False) and kind_of(ref) in _OF_PEOPLE:
            why += " (simulated)"
        self.leaves.append(LeafCopy(ref=ref, why=why))
        if kind_of(ref) in _OF_PEOPLE:  # what was asked and answered belongs together
            for other in refs_in(record.model_dump(mode="json")):
                if kind_of(other) in _OF_PEOPLE and self.store.exists(other):
                    self.visit(other)


def _contract(store: Store, run: StepRun) -> StepContract:
    """The contract as it was when the step ran, from the notebook that the run recorded."""
    try:
        path: Path = store.payload(run.notebook, NOTEBOOK)
        name = store.get(run.notebook, NotebookSource).name
    except RecordError as error:
        raise RecordError(
            f"the notebook of step {run.step!r} cannot be read: {error.what}",
            where=error.where,
            hint=f"Restore {run.notebook[:21]}… from a backup; without it there is no way back",
        ) from error
    return replace(contracts.read(path, name=name), notebook=path.with_name(f"{name}.ipynb"))


def _beyond_reach(contract: StepContract, run: StepRun) -> str:
    """Why a step cannot be rebuilt from records alone, or nothing."""
    declared = contract.declaration
    if declared.services:
        return f"was made by {run.step!r}, which works with {', '.join(declared.services)}"
    if declared.secrets or declared.access.network:
        return f"was made by {run.step!r}, which reaches beyond this machine"
    folders = [
        name
        for name in keys.path_parameters(contract, run.parameters)
        if any(kind_of(ref) == DatasetVersion.KIND for ref in run.outputs.values())
    ]
    return f"holds raw frames that {run.step!r} read from {folders[0]!r}" if folders else ""


def _flat(values: Iterable[Ref | tuple[Ref, ...]]) -> list[Ref]:
    flat: list[Ref] = []
    for value in values:
        flat.extend([value] if isinstance(value, str) else value)
    return flat
