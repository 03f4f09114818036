"""A small data engine loop as records: two frames, one of them labeled, a model and its release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.records import dataset
from workbench.records.base import GateReport, Ref, Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin, Role
from workbench.records.model_types import (
    Checkpoint,
    Environment,
    ExportBundle,
    NotebookSource,
    Release,
    StepRun,
)
from workbench.records.store import Store
from workbench.records.types import Annotator, LabelBatch, LabelSet, SelectedFrame, Selection

SCHEMA = LabelSchema(name="test", version=1, classes=("car",))
POOL, SAFETY = "ab" * 32, "cd" * 32
LABELER = "ada <ada@example.org>"


@dataclass(frozen=True)
class World:
    """References by name; runs by their step."""

    refs: dict[str, Ref]

    def __getitem__(self, name: str) -> Ref:
        return self.refs[name]


def make(store: Store) -> World:
    refs: dict[str, Ref] = {}
    environment = store.put(Environment(python="3.11", distributions=(), machine={}))

    def run(step: str, inputs: dict[str, Any], **outputs: Ref) -> None:
        notebook = store.put(NotebookSource(name=f"{step}.ipynb", code="1" * 64))
        refs[f"run {step}"] = store.put(
            StepRun(
                step=step,
                key="2" * 64,
                notebook=notebook,
                environment=environment,
                modules="3" * 64,
                parameters={"n": len(refs)},
                inputs=inputs,
                outputs=outputs,
            )
        )
        refs.update(outputs)

    def label(frame: str, origin: Origin, who: str) -> Label:
        box = Box(x=1, y=2, w=3, h=4)
        return Label(frame=frame, cls="car", box=box, origin=origin, annotator=who)

    frames = tuple(
        Frame(id=name, drive=drive, index=0, width=8, height=8, suffix=".png", role=role)
        for name, drive, role in ((POOL, "north", Role.POOL), (SAFETY, "south", Role.SAFETY))
    )
    first = Dataset(
        name="drawn",
        label_schema=SCHEMA,
        drives=(Drive(id="north"), Drive(id="south")),
        frames=frames,
        labels=(label(SAFETY, Origin.IMPORTED, "import"),),
    )
    run("ingest", {}, first=dataset.save_dataset(store, first, made_by="ingest"))
    chosen = SelectedFrame(frame=POOL, rank=1, score=1.0)
    selection = Selection(dataset=refs["first"], budget=1, seed=0, method="m", chosen=(chosen,))
    run("curate", {"dataset": refs["first"]}, selection=store.put(selection))
    batch = LabelBatch(
        dataset=refs["first"],
        selection=refs["selection"],
        model=None,
        label_schema=SCHEMA,
        frames=(POOL,),
    )
    run("send", {"selection": refs["selection"]}, batch=store.put(batch))
    who = (Annotator(id=LABELER, frames=1, boxes=1, minutes=2.0),)
    labels = store.put(LabelSet(batch=refs["batch"], annotators=who, labels=1))
    more = (*first.labels, label(POOL, Origin.HUMAN, LABELER))
    both = Dataset(
        name="drawn", label_schema=SCHEMA, drives=first.drives, frames=frames, labels=more
    )
    second = dataset.save_dataset(store, both, made_by="collect", parents=(refs["first"], labels))
    run("collect", {"batch": refs["batch"]}, labels=labels, second=second)
    checkpoint = Checkpoint(
        dataset=second, classes=("car",), architecture={}, training={}, preprocessing={}
    )
    run("train", {"all": (refs["first"], second)}, checkpoint=store.put(checkpoint))
    bundle = ExportBundle(
        checkpoint=refs["checkpoint"], calibration=second, classes=("car",), parity={}
    )
    run("export", {"checkpoint": refs["checkpoint"]}, bundle=store.put(bundle))
    gates = GateReport(
        candidate=refs["bundle"],
        reference=None,
        dataset=second,
        rules="4" * 64,
        verdict=Verdict.PASS,
        gates=(),
    )
    run("validate", {"bundle": refs["bundle"]}, gates=store.put(gates))
    release = Release(
        model="front",
        bundle=refs["bundle"],
        gates=refs["gates"],
        verdict=Verdict.PASS,
        promoted=True,
        key="5" * 64,
        signature="6" * 64,
    )
    run("release", {"gates": refs["gates"]}, release=store.put(release))
    return World(refs)
